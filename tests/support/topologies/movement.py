"""Channels that are cut, joined, moved and folded into other dimensions."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.support.topologies.base import ENDS, Net, along, group, makes, makes_biased, norms, takes


class Split(nn.Module):
    """Parts of unequal size go their own ways, one of them straight on."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 9, 3)
        self.a, self.b = nn.Conv2d(4, 3, 1), nn.Conv2d(3, 2, 1)
        self.fc = nn.Linear(7, 5)

    def forward(self, x: Tensor) -> Tensor:
        a, b, c = torch.split(F.relu(self.stem(x)), [4, 3, 2], dim=1)
        x = torch.cat([self.b(b), c, self.a(a)], dim=1)
        return self.fc(F.relu(x).mean((2, 3)))


class Slices(nn.Module):
    """Literal bounds from both ends, overlapping."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3)
        self.a, self.b = nn.Conv2d(5, 4, 1), nn.Conv2d(6, 4, 1)
        self.fc = nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        return self.fc(F.relu(self.a(x[:, :5]) + self.b(x[:, -6:])).mean((2, 3)))


class Strided(nn.Module):
    """Even and odd channels apart."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3)
        self.a, self.b = nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1)
        self.fc = nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        return self.fc(F.relu(self.a(x[:, ::2]) + self.b(x[:, 1::2])).mean((2, 3)))


class Padded(nn.Module):
    """Channels of a constant are put on both sides."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.conv = nn.Conv2d(3, 4, 3), nn.Conv2d(7, 4, 3)
        self.fc = nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.pad(F.relu(self.stem(x)), (0, 0, 0, 0, 1, 2), value=0.5)
        return self.fc(F.relu(self.conv(x)).mean((2, 3)))


class Moved(nn.Module):
    """Turned round, rolled, and mixed with space; flattened with the channels last."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.conv = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 12, 3, padding=1)
        self.small = nn.Conv2d(3, 3, 3, stride=2, padding=1)
        self.fc = nn.Linear(3 * 64, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = self.conv(F.relu(x.flip(1) + x.roll(1, 1)))
        x = self.small(F.pixel_shuffle(F.relu(x), 2))
        return self.fc(F.relu(x).permute(0, 2, 3, 1).flatten(1))


class Stacked(nn.Module):
    """Branches are stacked, weighted by a softmax over the branches, and summed."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(3, 6, 1)
        self.squeeze, self.attend = nn.Linear(6, 3), nn.Linear(3, 12)
        self.fc = nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        both = torch.stack([self.a(x), self.b(x)], dim=1)
        weights = self.attend(F.relu(self.squeeze(both.sum(1).mean((2, 3)))))
        weights = torch.softmax(weights.view(-1, 2, 6), dim=1)[..., None, None]
        return self.fc((both * weights).sum(1).mean((2, 3)))


class Reckoned(nn.Module):
    """Sizes that are reckoned from widths: of views, of repeats, of slices, and as a factor."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.conv = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 6, 1)
        self.scale, self.fc = nn.Parameter(torch.ones(1, 1, 1)), nn.Linear(3, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x)) / (self.stem.out_channels * 1.0)
        x = F.relu(self.conv(x / x.shape[1] ** 0.5))
        c = x.shape[1]
        torch._assert(c % 3 == 0, "three heads")
        heads = x.reshape(x.shape[0], 3, c // 3, -1) * 2
        x = heads.reshape(x.shape[0], c, -1) * self.scale.repeat(1, c, 1)
        return self.fc(x[:, c // 2 :].amax(2))


class Other(nn.Module):
    """One and three spatial dimensions."""

    def __init__(self) -> None:
        super().__init__()
        self.three, self.bn3 = nn.Conv3d(1, 4, 3, padding=1), nn.BatchNorm3d(4)
        self.one, self.bn1 = nn.Conv1d(4, 6, 3), nn.BatchNorm1d(6)
        self.fc, self.bn = nn.Linear(6, 4, bias=False), nn.BatchNorm1d(4)
        self.out = nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn3(self.three(x.unsqueeze(1)))).amax(2)
        x = F.relu(self.bn1(self.one(x.flatten(2))))
        return self.out(F.relu(self.bn(self.fc(x.mean(2)))))


class Written(nn.Module):
    """Parts of the channels are written in place: constants, a shift in time, a sum."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(6, 6, 3, padding=1)
        self.fc = nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x)
        shifted = torch.zeros_like(x)
        shifted[:, :2, 1:] = x[:, :2, :-1]
        shifted[:, 2:] = x[:, 2:]
        x = self.b(shifted)
        x[:, 0] = 0.5
        x[:, 1:3] += x[:, 3:5]
        return self.fc(x.mean((2, 3)))


class AddedTo(nn.Module):
    """A sum in place shows in the view that was taken before, and not in the copy."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 6, 3), nn.Conv2d(3, 6, 3)
        self.seen, self.copied, self.fc = nn.Linear(6, 5), nn.Linear(6, 5), nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        x, y = self.a(x), self.b(x)
        n, _, h, w = x.shape
        view = x.view(n, 2, 3, h, w)
        copy = view.transpose(1, 2).contiguous().view(n, 6, h, w)
        x += y
        parts = self.seen(view.flatten(1, 2).mean((2, 3))), self.copied(copy.mean((2, 3)))
        return self.fc(x.mean((2, 3))) + parts[0] + parts[1]


class Twice(nn.Module):
    """The same channels twice, rolled: of the last one, the second copy comes first."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.fc = nn.Conv2d(3, 6, 3), nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        return self.fc(torch.cat([F.relu(x), x], 1).roll(1, 1).mean((2, 3)))


class EveryOther(nn.Module):
    """Channels and what a depthwise convolution makes of them; each goes on once, as either."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.deep = nn.Conv2d(3, 9, 3), nn.Conv2d(9, 9, 1, groups=9)
        self.fc = nn.Linear(9, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        return self.fc(torch.cat([self.deep(x), x], 1)[:, 1::2].mean((2, 3)))


PAIR = ("conv.weight[0] out x2", "conv.bias[0] along x2")  # the two rows of a head

NETS = (
    Net(
        "split",
        Split,
        (
            group(4, makes_biased("stem"), takes("a")),
            group(3, makes_biased("stem"), takes("b")),
            group(2, makes_biased("stem"), takes("fc")),
            group(2, makes_biased("b"), takes("fc")),  # b runs before a
            group(3, makes_biased("a"), takes("fc")),
        ),
    ),
    Net(
        "slices",
        Slices,
        (
            group(2, makes_biased("stem"), takes("a")),
            group(3, makes_biased("stem"), takes("a", "b")),
            group(3, makes_biased("stem"), takes("b")),
            group(4, makes_biased("a", "b"), takes("fc")),
        ),
    ),
    Net(
        "strided_slices",
        Strided,
        (
            group(4, makes_biased("stem"), takes("a")),
            group(4, makes_biased("stem"), takes("b")),
            group(4, makes_biased("a", "b"), takes("fc")),
        ),
    ),
    Net(
        "padded",
        Padded,
        (
            group(4, makes_biased("stem"), takes("conv")),
            group(4, makes_biased("conv"), takes("fc")),
            group(3, takes("conv")),  # the constants: to remove one is to lose a column
        ),
    ),
    Net(
        "moved",
        Moved,
        (
            # 3 - i and i - 1 fall together: 0 with 2; 1 and 3 with themselves
            group(1, ("stem.weight[0] out x2", "stem.bias[0] along x2", "conv.weight[1] in x2")),
            group(2, makes_biased("stem"), takes("conv")),
            group(3, ("conv.weight[0] out x4",), along("conv.bias", times=4), takes("small")),
            group(3, makes_biased("small"), takes("fc", times=64)),
        ),
    ),
    Net(
        "stacked",
        Stacked,
        (
            group(
                6,
                makes_biased("a", "b"),
                takes("squeeze", "fc"),
                ("attend.weight[0] out x2",),
                along("attend.bias", times=2),
            ),
            group(3, makes_biased("squeeze"), takes("attend")),
        ),
        pinned=((ENDS[0][0], 3), (ENDS[0][0], 3), ENDS[1]),
    ),
    Net(
        "reckoned",
        Reckoned,
        (
            group(8, makes_biased("stem"), takes("conv")),
            group(1, *PAIR),
            group(1, *PAIR, takes("fc")),
            group(1, *PAIR, takes("fc", times=2)),
        ),
    ),
    Net(
        "one_and_three",
        Other,
        (
            group(4, makes_biased("three"), norms("bn3"), takes("one")),
            group(6, makes_biased("one"), norms("bn1"), takes("fc")),
            group(4, makes("fc"), norms("bn"), takes("out")),
        ),
        pinned=ENDS[1:],
    ),
    Net(
        "written",
        Written,
        (
            group(2, makes_biased("a"), takes("b")),
            group(4, makes_biased("a"), takes("b")),
            group(2, ("b.weight[0] out x2",), along("b.bias", times=2), takes("fc", times=2)),
            group(1, makes_biased("b"), takes("fc")),
        ),
        pinned=(ENDS[0], ("a single channel fills the whole dimension", 1), ENDS[1]),
    ),
    Net(
        "added_to",
        AddedTo,
        (
            group(
                3,
                ("a.weight[0] out x2", "b.weight[0] out x2"),
                along("a.bias", "b.bias", times=2),
                takes("seen", "copied", "fc", times=2),
            ),
        ),
        pinned=(ENDS[0], ENDS[0], ENDS[1]),
    ),
    Net(
        "twice",
        Twice,
        (
            group(5, makes_biased("conv"), takes("fc", times=2)),
            group(1, makes_biased("conv"), takes("fc", times=2)),
        ),
    ),
    Net(
        "every_other",
        EveryOther,
        tuple(
            group(
                size,
                makes_biased("conv"),
                along("deep.weight", "deep.bias"),
                takes("fc"),
            )
            for size in (5, 4)
        ),
    ),
)
