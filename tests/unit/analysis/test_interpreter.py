"""Functions that PyTorch has not written for meta tensors."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import fxprune
from fxprune.errors import TraceError
from tests.support.law import at_random, gap, zeroed

IMAGES = torch.randn(2, 3, 8, 8, dtype=torch.float64)


def covariance(x: Tensor) -> Tensor:
    return x * torch.cov(x.mean((0, 3))).mean()


def least_squares(x: Tensor) -> Tensor:
    points = x.mean(0).flatten(1)
    return x + torch.linalg.lstsq(points, points[:, :1]).solution.mean()


def split_by_a_tensor(x: Tensor) -> Tensor:
    return torch.cat(torch.tensor_split(x, torch.tensor([3, 5]), 1)[::-1], 1)


class Uses(nn.Module):
    """Four convolutions, a function between the second and the third."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 12, 3), nn.Conv2d(12, 8, 3)
        self.c, self.d, self.function = nn.Conv2d(8, 10, 1), nn.Conv2d(10, 4, 1), function

    def forward(self, x: Tensor) -> Tensor:
        return self.d(self.c(self.function(self.b(self.a(x).relu()))).relu())


@pytest.mark.parametrize("function", [covariance, least_squares, split_by_a_tensor])
@torch.no_grad()
def test_they_run_on_real_tensors_and_pin_what_they_take(
    function: Callable[[Tensor], Tensor],
) -> None:
    model = Uses(function).double().eval()
    gated = fxprune.instrument(model, (IMAGES,), round_to=1).eval()
    assert gated.channels.layout.sizes == (12, 10)
    assert "the function cannot be followed here" in {p.reason for p in gated.channels.pinned}
    for seed in range(3):
        chosen = at_random(gated.channels, seed)
        gated.settle(chosen)
        wanted = gated(IMAGES)
        assert gap(wanted, fxprune.shrink(gated)(IMAGES)) < 1e-10
        assert gap(wanted, zeroed(model, gated, chosen)(IMAGES)) < 1e-10


def test_a_function_that_runs_on_no_tensors_is_refused() -> None:
    def wrong(x: Tensor) -> Tensor:
        return x + torch.ones(5, 7)

    with pytest.raises(TraceError, match="does not run on inputs"):
        fxprune.analyze(Uses(wrong).double(), (IMAGES,))
