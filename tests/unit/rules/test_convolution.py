"""Conv groups of convolutions whose weight a parametrization computes."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
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


class Styled(nn.Module):
    """A convolution whose weight is scaled for each example, with the batch in its groups."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(outputs, inputs, 3, 3))
        self.scales = nn.Linear(16, inputs)

    def forward(self, x: Tensor, style: Tensor) -> Tensor:
        batch, channels, height, width = x.shape
        weight = self.weight * self.scales(style).view(batch, 1, channels, 1, 1)
        weight = weight.view(-1, channels, 3, 3)
        y = F.conv2d(x.reshape(1, -1, height, width), weight, padding=1, groups=batch)
        return y.view(batch, -1, height, width)


class Generator(nn.Module):
    """Two of them, after a learned image that all examples share."""

    def __init__(self) -> None:
        super().__init__()
        self.styles, self.image = nn.Linear(8, 16), nn.Parameter(torch.randn(1, 24, 4, 4))
        self.a, self.b, self.head = Styled(24, 20), Styled(20, 16), nn.Conv2d(16, 3, 1)

    def forward(self, z: Tensor) -> Tensor:
        style = self.styles(z).relu()
        x = self.a(self.image.expand(z.shape[0], -1, -1, -1), style).relu()
        return self.head(self.b(x, style).relu())


def test_groups_may_have_a_single_channel_in_a_compact_network_alone() -> None:
    graph = fxprune.analyze(Generator(), (torch.randn(2, 8),))
    assert sorted(group.size for group in graph.groups) == [16, 16, 20, 24]
