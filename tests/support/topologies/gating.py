"""Channels that gate others, or are measured together with others: attention, norms, maxima."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.support.topologies.base import Net, along, group, makes, makes_biased, norms, takes


class ChunkGate(nn.Module):
    """One half gates the other."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 12, 3), nn.Conv2d(6, 4, 3)
        self.fc = nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        value, gate = self.a(x).chunk(2, dim=1)
        x = F.relu(self.b(value * torch.sigmoid(gate)))
        return self.fc(x.mean((2, 3)))


class SqueezeExcite(nn.Module):
    """A gate for each channel, computed from all of them."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 6, 3, bias=False), nn.BatchNorm2d(6)
        self.reduce, self.expand = nn.Conv2d(6, 2, 1), nn.Conv2d(2, 6, 1)
        self.head, self.fc = nn.Conv2d(6, 4, 3), nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn(self.conv(x)))
        gate = self.expand(F.relu(self.reduce(F.adaptive_avg_pool2d(x, 1))))
        x = self.head(x * gate.sigmoid())
        return self.fc(F.relu(x).mean((2, 3)))


class Maxout(nn.Module):
    """The larger of two maps, by a view."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.fc = nn.Conv2d(3, 8, 3), nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        x = x.view(x.size(0), 4, 2, x.size(2), x.size(3)).amax(2)
        return self.fc(x.mean((2, 3)))


class GroupNormed(nn.Module):
    """Statistics over pairs of channels."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 8, 3), nn.GroupNorm(2, 8)
        self.fc = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(F.relu(self.norm(self.conv(x))).mean((2, 3)))


class ConvNext(nn.Module):
    """Depthwise, then a channels-last MLP with a layer norm and a layer scale."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 2, stride=2)
        self.deep, self.norm = nn.Conv2d(6, 6, 3, padding=1, groups=6), nn.LayerNorm(6)
        self.up, self.down = nn.Linear(6, 10), nn.Linear(10, 6)
        self.gamma = nn.Parameter(torch.randn(6))
        self.fc = nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        y = self.norm(self.deep(x).permute(0, 2, 3, 1))
        y = self.gamma * self.down(F.gelu(self.up(y)))
        x = x + y.permute(0, 3, 1, 2)
        return self.fc(x.mean((2, 3)))


class ExpandedLike(nn.Module):
    """Per-channel deviations are expanded to the size of another tensor (EvoNorm)."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.fc = nn.Conv2d(3, 6, 3), nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        deviation = x.var((2, 3), unbiased=False, keepdim=True).add(1e-5).sqrt()
        x = x.sigmoid() * x / deviation.expand(x.shape)
        return self.fc(x.mean((2, 3)))


class Neighbours(nn.Module):
    """A convolution slides along the channels and gates them (ECA)."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.eca = nn.Conv2d(3, 8, 3), nn.Conv1d(1, 1, 3, padding=1, bias=False)
        self.fc = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        gate = self.eca(x.mean((2, 3)).view(x.shape[0], 1, -1))
        x = x * gate.view(x.shape[0], -1, 1, 1).sigmoid()
        return self.fc(x.amax((2, 3)))


NETS = (
    Net(
        "chunk_gate",
        ChunkGate,
        (
            group(6, ("a.weight[0] out x2",), along("a.bias", times=2), takes("b")),
            group(4, makes_biased("b"), takes("fc")),
        ),
    ),
    Net(
        "squeeze_excite",
        SqueezeExcite,
        (
            group(
                6,
                makes("conv"),
                norms("bn"),
                makes_biased("expand"),
                takes("reduce", "head"),
            ),
            group(2, makes_biased("reduce"), takes("expand")),
            group(4, makes_biased("head"), takes("fc")),
        ),
    ),
    Net(
        "maxout",
        Maxout,
        (group(4, ("conv.weight[0] out x2",), along("conv.bias", times=2), takes("fc")),),
    ),
    Net(
        "group_norm",
        GroupNormed,
        (
            group(
                4,
                ("conv.weight[0] out x2",),
                along("conv.bias", "norm.weight", "norm.bias", times=2),
                takes("fc", times=2),
            ),
        ),
        mixes=True,
    ),
    Net(
        "convnext",
        ConvNext,
        (
            group(
                6,
                makes_biased("stem", "down"),
                along("deep.weight", "deep.bias", "norm.weight", "norm.bias", "gamma"),
                takes("up", "fc"),
            ),
            group(10, makes_biased("up"), takes("down")),
        ),
        mixes=True,
    ),
    Net("expanded_like", ExpandedLike, (group(6, makes_biased("conv"), takes("fc")),)),
    Net(
        "neighbours",
        Neighbours,
        (group(8, makes_biased("stem"), takes("fc"), along("fxprune_places_0")),),
        mixes=True,
    ),
)
