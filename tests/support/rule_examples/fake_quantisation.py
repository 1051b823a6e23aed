"""Examples of `fxprune.rules.fake_quantisation`."""

import torch
from torch import Tensor, nn

from fxprune.rules.fake_quantisation import FakeQuantise, ObserveAndQuantise
from tests.support.rule_examples.base import Example, Rows, one, run


def rounded(w: Tensor) -> Tensor:
    """Rounded with a scale for each row."""
    scales, zeros = torch.linspace(0.1, 0.2, 6), torch.zeros(6, dtype=torch.int32)
    return torch.fake_quantize_per_channel_affine(w.float(), scales, zeros, 0, -128, 127).double()


def observed(x: Tensor, state: nn.Module) -> Tensor:
    """Rounded by the smallest and largest value of each channel."""
    s = state
    return torch.fused_moving_avg_obs_fake_quant(
        x.float(), s.no, s.yes, *s.floats(), s.zero, 0.01, 0, 255, 1, True, False
    ).double()


class Observed(nn.Module):
    """What an observer keeps of each channel."""

    def __init__(self) -> None:
        super().__init__()
        for name in ("no", "yes"):
            self.register_buffer(name, torch.tensor([int(name == "yes")]))
        for name in ("low", "high", "scale"):
            self.register_buffer(name, torch.rand(8) + 0.5)
        self.register_buffer("zero", torch.zeros(8, dtype=torch.int32))

    def floats(self) -> tuple[Tensor, Tensor, Tensor]:
        """What the op takes, which knows no doubles."""
        return self.low.float(), self.high.float(), self.scale.float()


EXAMPLES: tuple[Example, ...] = (
    Example(
        FakeQuantise,
        "by one scale",
        lambda x: torch.fake_quantize_per_tensor_affine(x.float(), 0.1, 3, 0, 255).double(),
    ),
    Example(
        FakeQuantise,
        "of a weight, each row by itself",
        run,
        6,
        (8, 6, 4),
        layers=lambda: (
            Rows(
                rounded,
                *(6, 8, 3, 3),
            ),
        ),
    ),
    Example(ObserveAndQuantise, "each channel by itself", observed, layers=one(Observed)),
)
