"""Grouped convolutions, and what shuffles channels between them."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.support.topologies.base import Net, along, group, makes, makes_biased, norms, takes


class Grouped(nn.Module):
    """A stem and one grouped convolution."""

    def __init__(self, stem: int, out: int, groups: int) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, stem, 3)
        self.conv, self.bn = nn.Conv2d(stem, out, 3, groups=groups), nn.BatchNorm2d(out)
        self.fc = nn.Linear(out, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn(self.conv(F.relu(self.stem(x)))))
        return self.fc(x.mean((2, 3)))


class PaddedGrouped(nn.Module):
    """Zero channels on both sides, then two convolution groups.

    Padding meets a channel in the first group once (the fourth stem channel) and in the second
    group once (the third one): these two are not interchangeable.
    """

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3)
        self.plain = nn.Conv2d(8, 4, 1, bias=False)
        self.conv = nn.Conv2d(8, 8, 1, groups=2, bias=False)
        self.fc = nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.pad(F.relu(self.stem(x)), (0, 0, 0, 0, 1, 1))
        x = torch.cat([self.plain(x), self.conv(x)], 1)
        return self.fc(x.mean((2, 3)))


class TransposedDepthwise(nn.Module):
    """A depthwise transposed convolution, as upsampling decoders have it."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3)
        self.up = nn.ConvTranspose2d(6, 6, 4, stride=2, padding=1, groups=6)
        self.fc = nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(F.relu(self.up(F.relu(self.stem(x)))).mean((2, 3)))


def shuffle(x: Tensor, groups: int) -> Tensor:
    """ShuffleNet's channel shuffle."""
    n, c, h, w = x.size()
    x = x.view(n, groups, c // groups, h, w)
    x = torch.transpose(x, 1, 2).contiguous()
    return x.view(n, -1, h, w)


class ShuffleUnit(nn.Module):
    """ShuffleNet v1: grouped, shuffle, depthwise, grouped."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3)
        self.a, self.bn = nn.Conv2d(8, 8, 1, groups=2), nn.BatchNorm2d(8)
        self.deep = nn.Conv2d(8, 8, 3, padding=1, groups=8, bias=False)
        self.b = nn.Conv2d(8, 8, 1, groups=2)
        self.fc = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        x = shuffle(F.relu(self.bn(self.a(x))), 2)
        x = F.relu(self.b(self.deep(x)))
        return self.fc(x.mean((2, 3)))


class ShuffleSplit(nn.Module):
    """ShuffleNet v2: half of the channels pass by, the halves are shuffled; twice."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, bias=False)
        self.first = nn.Sequential(nn.Conv2d(4, 4, 1, bias=False), nn.BatchNorm2d(4), nn.ReLU())
        self.second = nn.Sequential(nn.Conv2d(4, 4, 1, bias=False), nn.BatchNorm2d(4), nn.ReLU())
        self.fc = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        for branch in (self.first, self.second):
            a, b = x.chunk(2, dim=1)
            x = shuffle(torch.cat((a, branch(b)), dim=1), 2)
        return self.fc(x.mean((2, 3)))


class ShuffleModule(nn.Module):
    """nn.ChannelShuffle before an ordinary convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.shuffle = nn.Conv2d(3, 6, 3), nn.ChannelShuffle(2)
        self.conv, self.fc = nn.Conv2d(6, 4, 3), nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(F.relu(self.conv(self.shuffle(self.stem(x)))).mean((2, 3)))


NETS = (
    Net(
        "grouped_few",
        lambda: Grouped(8, 6, groups=2),
        (
            group(
                4,
                ("stem.weight[0] out x2",),
                along("stem.bias", times=2),
                takes("conv"),
            ),
            group(
                3,
                ("conv.weight[0] out x2",),
                along("conv.bias", "bn.weight", "bn.bias", times=2),
                along("bn.running_mean", "bn.running_var", times=2),
                takes("fc", times=2),
            ),
        ),
    ),
    Net(
        "grouped_many",
        lambda: Grouped(8, 12, groups=4),
        (
            group(
                4,
                ("stem.weight[0] out x2",),
                along("stem.bias", times=2),
                along("conv.weight", "conv.bias", "bn.weight", "bn.bias", times=3),
                along("bn.running_mean", "bn.running_var", times=3),
                takes("fc", times=3),
            ),
        ),
        structural=("conv.weight[1]",),  # a position within a conv group
    ),
    Net(
        "depthwise_multiplier",
        lambda: Grouped(4, 8, groups=4),
        (
            group(
                4,
                makes_biased("stem"),
                along("conv.weight", "conv.bias", "bn.weight", "bn.bias", times=2),
                along("bn.running_mean", "bn.running_var", times=2),
                takes("fc", times=2),
            ),
        ),
    ),
    Net(
        "transposed_depthwise",
        TransposedDepthwise,
        (group(6, makes_biased("stem"), along("up.weight", "up.bias"), takes("fc")),),
    ),
    Net(
        "shuffle_unit",
        ShuffleUnit,
        (
            group(4, ("stem.weight[0] out x2",), along("stem.bias", times=2), takes("a")),
            # after the shuffle the second grouped convolution ties what the first kept apart
            group(
                2,
                ("a.weight[0] out x4",),
                along("a.bias", "bn.weight", "bn.bias", times=4),
                along("bn.running_mean", "bn.running_var", "deep.weight", times=4),
                takes("b", times=2),
            ),
            group(4, ("b.weight[0] out x2",), along("b.bias", times=2), takes("fc", times=2)),
        ),
    ),
    Net(
        "shuffle_split",
        ShuffleSplit,
        (
            # the view of the shuffle ties channel i of one half to channel i of the other
            group(
                2,
                makes("stem", "first.0"),
                norms("first.1"),
                ("second.0.weight[0] out x2",),
                along("second.1.weight", "second.1.bias", times=2),
                along("second.1.running_mean", "second.1.running_var", times=2),
                takes("fc", times=4),
            ),
            group(
                2,
                makes("stem", "first.0"),
                norms("first.1"),
                takes("second.0", times=2),
            ),
            group(4, makes("stem"), takes("first.0")),
        ),
    ),
    Net(
        "padded_grouped",
        PaddedGrouped,
        (
            group(
                2,
                ("stem.weight[0] out x2",),
                along("stem.bias", times=2),
                takes("plain", times=2),
                takes("conv"),
            ),
            group(
                1,
                ("stem.weight[0] out",),
                along("stem.bias"),
                takes("plain", times=2),
                takes("conv"),
            ),
            group(
                1,
                ("stem.weight[0] out",),
                along("stem.bias"),
                takes("plain", times=2),
                takes("conv"),
            ),
            group(4, makes("plain"), takes("fc")),
            group(4, ("conv.weight[0] out x2",), takes("fc", times=2)),
        ),
    ),
    Net(
        "shuffle_module",
        ShuffleModule,
        (
            group(
                3,
                ("stem.weight[0] out x2",),
                along("stem.bias", times=2),
                takes("conv", times=2),
            ),
            group(4, makes_biased("conv"), takes("fc")),
        ),
    ),
)
