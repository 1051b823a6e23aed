"""Conv groups of convolutions whose weight a parametrization computes."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize

import fxprune


class MaxNorm(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return weight.renorm(2, 0, 1.0)


def max_norm(conv: nn.Module) -> nn.Module:
    parametrize.register_parametrization(conv, "weight", MaxNorm())
    return conv


@pytest.mark.parametrize(
    "kind",
    [
        lambda: nn.Conv2d(16, 16, 3, groups=16),
        lambda: nn.Conv2d(16, 32, 3, groups=16),
        lambda: nn.ConvTranspose2d(16, 16, 3, groups=16),
    ],
    ids=["depthwise", "two for each", "transposed"],
)
@pytest.mark.parametrize(
    "computed",
    [max_norm, parametrizations.weight_norm, parametrizations.spectral_norm],
    ids=["renorm", "weight norm", "spectral norm"],
)
def test_conv_groups_go_whole(kind, computed) -> None:
    torch.manual_seed(0)
    inner = kind()
    outputs = inner.out_channels
    model = nn.Sequential(
        nn.Conv2d(1, 16, 3), nn.BatchNorm2d(16), computed(inner), nn.BatchNorm2d(outputs),
        nn.ELU(), nn.Conv2d(outputs, 4, 1),
    ).double().eval()  # fmt: skip
    x = torch.rand(2, 1, 12, 12, dtype=torch.float64)
    gated = fxprune.instrument(model, (x,), policy="random", budget="keep=0.5")
    assert [pin.reason for pin in gated.channels.pinned] == ["the model returns these channels"]
    compact = fxprune.shrink(gated.eval())
    assert compact.get_submodule("2").groups == 8
    torch.testing.assert_close(compact(x), gated(x), rtol=0, atol=1e-12)
    reference = fxprune.reference_of(gated, model)
    torch.testing.assert_close(compact(x), reference(x), rtol=0, atol=1e-12)
