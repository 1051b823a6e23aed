"""Parameters outside the usual layers: raw, shared, tied, unused, computed."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.support.topologies.base import Net, along, group, makes, makes_biased, norms, takes


def _drawn(*shape: int) -> nn.Parameter:
    return nn.Parameter(torch.randn(shape))


class Raw(nn.Module):
    """No layer at all: weights, a learned shift, a layer scale, a classifier by F.linear."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.shift = _drawn(6, 3, 3, 3), _drawn(1, 6, 1, 1)
        self.gamma = _drawn(6, 1, 1)
        self.second, self.bias = _drawn(4, 6, 3, 3), _drawn(4)
        self.out, self.out_bias = _drawn(5, 4), _drawn(5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.conv2d(x, self.first, padding=1) + self.shift
        x = F.relu(x) * self.gamma
        x = F.relu(F.conv2d(x, self.second, self.bias))
        return F.linear(x.mean((2, 3)), self.out, self.out_bias)


class Shared(nn.Module):
    """One convolution and one norm, run twice."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3)
        self.body, self.bn = nn.Conv2d(6, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6)
        self.fc = nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for _ in range(2):
            x = F.relu(self.bn(self.body(x)))
        return self.fc(x.mean((2, 3)))


class Tied(nn.Module):
    """Two convolutions with one weight and a bias each, a norm each."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3)
        self.a, self.bn_a = nn.Conv2d(6, 6, 3, padding=1), nn.BatchNorm2d(6)
        self.b, self.bn_b = nn.Conv2d(6, 6, 3, padding=1), nn.BatchNorm2d(6)
        self.b.weight = self.a.weight
        self.fc = nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = F.relu(self.bn_a(self.a(x)))
        x = F.relu(self.bn_b(self.b(x)))
        return self.fc(x.mean((2, 3)))


class Unused(nn.Module):
    """A layer, a parameter and a buffer that nothing reads."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.fc = nn.Conv2d(3, 6, 3), nn.Linear(6, 5)
        self.old = nn.Sequential(nn.Conv2d(6, 6, 3), nn.BatchNorm2d(6))
        self.spare = _drawn(6)
        self.register_buffer("mean", torch.randn(3))
        self.register_buffer("hidden", torch.randn(6), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(F.relu(self.conv(x)).mean((2, 3)))


class Standardised(nn.Module):
    """Weight standardisation: each kernel's mean and deviation, over its input channels too."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.conv = nn.Conv2d(3, 6, 3), nn.Conv2d(6, 4, 3)
        self.fc = nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        weight = self.conv.weight
        weight = weight - weight.mean((1, 2, 3), keepdim=True)
        weight = weight / (weight.flatten(1).std(1).view(-1, 1, 1, 1) + 1e-5)
        x = F.relu(F.conv2d(x, weight, self.conv.bias))
        return self.fc(x.mean((2, 3)))


class StandardisedByNorm(nn.Module):
    """The same by a batch norm over the weight, with a learned gain (normaliser-free nets)."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.conv = nn.Conv2d(3, 6, 3), nn.Conv2d(6, 4, 3)
        self.gain = _drawn(4, 1, 1, 1)
        self.fc = nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        weight = self.conv.weight
        rows = weight.reshape(1, self.conv.out_channels, -1)
        rows = F.batch_norm(rows, None, None, self.gain.view(-1), training=True, momentum=0.0)
        x = F.conv2d(F.relu(self.stem(x)), rows.reshape_as(weight), self.conv.bias)
        return self.fc(F.relu(x).mean((2, 3)))


class Reparametrised(nn.Module):
    """Three branches whose kernels are added before one convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3)
        self.wide, self.narrow = _drawn(6, 6, 3, 3), _drawn(6, 6, 1, 1)
        self.scale = _drawn(6)
        self.fc = nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        kernel = (self.wide + F.pad(self.narrow, (1, 1, 1, 1))) * self.scale[:, None, None, None]
        x = x + F.conv2d(x, kernel, padding=1)
        return self.fc(F.relu(x).mean((2, 3)))


class Slopes(nn.Module):
    """A PReLU with a slope a channel, and one with a single slope."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.slopes = nn.Conv2d(3, 6, 3, bias=False), nn.PReLU(6)
        self.b, self.slope = nn.Conv2d(6, 4, 3, bias=False), nn.PReLU()
        self.fc = nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.slope(self.b(self.slopes(self.a(x))))
        return self.fc(x.mean((2, 3)))


NETS = (
    Net(
        "raw",
        Raw,
        (
            group(
                6,
                "first[0] out",
                along("shift", dim=1),
                along("gamma"),
                "second[1] in",
            ),
            group(4, "second[0] out", along("bias"), "out[1] in"),
        ),
    ),
    Net(
        "shared",
        Shared,
        (group(6, makes_biased("stem"), makes("body"), takes("body", "fc"), norms("bn")),),
    ),
    Net(
        "tied",
        Tied,
        (
            group(
                6,
                makes_biased("stem", "a"),
                along("b.bias"),
                takes("a", "fc"),
                norms("bn_a", "bn_b"),
            ),
        ),
    ),
    Net("unused", Unused, (group(6, makes_biased("conv"), takes("fc")),)),
    Net(
        "weight_standardised",
        Standardised,
        (
            group(6, makes_biased("stem"), takes("conv")),
            group(4, makes_biased("conv"), takes("fc")),
        ),
        mixes=True,
    ),
    Net(
        "weight_standardised_by_norm",
        StandardisedByNorm,
        (
            group(4, makes_biased("conv"), "gain[0] out", takes("fc")),
            group(6, makes_biased("stem"), takes("conv")),
        ),
        mixes=True,
    ),
    Net(
        "reparametrised",
        Reparametrised,
        (
            group(
                6,
                makes_biased("stem"),
                ("wide[0] out", "wide[1] in", "narrow[0] out", "narrow[1] in", "scale[0] out"),
                takes("fc"),
            ),
        ),
    ),
    Net(
        "prelu",
        Slopes,
        (
            group(6, makes("a"), along("slopes.weight"), takes("b")),
            group(4, makes("b"), takes("fc")),
        ),
    ),
)
