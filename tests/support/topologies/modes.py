"""Training and evaluation that differ, opaque submodules, several inputs and outputs."""

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.support.topologies.base import (
    ENDS,
    INPUT,
    OUTPUT,
    WIDTHS,
    Net,
    along,
    group,
    makes,
    makes_biased,
    norms,
    takes,
)


class Auxiliary(nn.Module):
    """A second classifier in training."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.bn = nn.Conv2d(3, 6, 3, bias=False), nn.BatchNorm2d(6)
        self.aux_conv, self.aux = nn.Conv2d(6, 3, 1), nn.Linear(3, 5)
        self.b, self.fc = nn.Conv2d(6, 4, 3), nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        x = F.relu(self.bn(self.a(x)))
        out = self.fc(F.relu(self.b(x)).mean((2, 3)))
        if self.training:
            return out, self.aux(self.aux_conv(x).mean((2, 3)))
        return out


class Dropped(nn.Module):
    """Dropout by function, and a branch that training may leave out."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 6, 3), nn.Conv2d(6, 6, 3, padding=1)
        self.fc = nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.a(x))
        branch = self.b(x)
        if self.training:
            branch = branch * x.new_empty(x.shape[0], 1, 1, 1).bernoulli_(0.8) / 0.8
        x = F.dropout(F.relu(x + branch).mean((2, 3)), 0.5, training=self.training)
        return self.fc(x)


class HandNorm(nn.Module):
    """A batch norm by hand: one running statistic is written in place, the other assigned anew."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.scale, self.shift = nn.Parameter(torch.ones(width)), nn.Parameter(torch.zeros(width))
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("variance", torch.ones(width))
        self.register_buffer("steps", torch.tensor(0))

    def forward(self, x: Tensor) -> Tensor:
        mean, variance = self.mean, self.variance
        if self.training:
            mean, variance = x.mean((0, 2, 3)), x.var((0, 2, 3), unbiased=False)
            self.mean.mul_(0.9).add_(0.1 * mean.detach())
            self.variance = 0.9 * self.variance + 0.1 * variance.detach()
            self.steps += 1
        scale = self.scale / torch.sqrt(variance + 1e-5)
        shift = self.shift - mean * scale
        return x * scale.view(1, -1, 1, 1) + shift.view(1, -1, 1, 1)


class ByHand(nn.Module):
    """A network of one's own norms."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 6, 3), HandNorm(6)
        self.fc = nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(F.relu(self.norm(self.conv(x))).mean((2, 3)))


class Reversed(torch.autograd.Function):
    """The same numbers; the gradient comes back reversed, and twice as large."""

    @staticmethod
    def forward(_: Any, x: Tensor) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def backward(_: Any, gradient: Tensor) -> Tensor:  # type: ignore[override]
        return -2 * gradient


class CustomGradient(nn.Module):
    """A function whose gradient is its own."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.fc = nn.Conv2d(3, 6, 3), nn.Conv2d(6, 4, 3), nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = Reversed.apply(F.relu(self.a(x)))
        return self.fc(F.relu(self.b(x)).mean((2, 3)))


class Skipped(nn.Module):
    """A branch that training leaves out by a number that Python draws."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(6, 6, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        if self.training and float(torch.rand(())) < 0.5:
            return x
        return x + self.conv(x)


class StochasticDepth(nn.Module):
    """Blocks that training leaves out now and then."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.block, self.fc = nn.Conv2d(3, 6, 3), Skipped(), nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(F.relu(self.block(self.stem(x))).mean((2, 3)))


class Follows(nn.Module):
    """Control flow on a dtype, which the tracer does not follow; nothing in it names a width."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(4, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6)

    def forward(self, x: Tensor) -> Tensor:
        x = x.float() if len(x) > 1000 else x
        return F.relu(self.bn(self.conv(x)))


class Literal(nn.Module):
    """Control flow as well, and a width written into the code."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 6, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = x.float() if len(x) > 1000 else x
        return self.conv(x.reshape(-1, 4, x.shape[2], x.shape[3]))


class FirstThree(nn.Module):
    """Control flow, and a look at three channels that runs at any width, but not on the same."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 6, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = x.float() if len(x) > 1000 else x
        return self.conv(x) * x[:, :3].mean(1, keepdim=True).sigmoid()


class Rolling(nn.Module):
    """Control flow, and a literal step that takes narrow channels to other places."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 6, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = x.float() if len(x) > 1000 else x
        return self.conv(x.roll(1, 1))


class Sized(nn.Module):
    """Control flow on sizes, of images and of channels."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.wide = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 6, 1)
        self.fc = nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        while x.shape[-1] > 4:
            x = F.max_pool2d(x, 2)
        x = self.wide(x) if x.shape[1] < 6 else x
        pairs = [x[:, 2 * place : 2 * place + 2] for place in range(x.shape[1] // 2)]
        x = torch.cat([pair.flip(1) for pair in pairs], 1)
        return self.fc(x.reshape(x.shape[0], 6, math.ceil(x.shape[2] / 2) * 8).mean(2))


class Opaque(nn.Module):
    """A stem, a block that becomes a leaf, a classifier."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.stem, self.block = nn.Conv2d(3, 4, 3, padding=1), block
        self.head, self.fc = nn.Conv2d(6, 4, 1), nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.block(F.relu(self.stem(x))))
        return self.fc(F.relu(self.head(x)).mean((2, 3)))


class Several(nn.Module):
    """Two inputs, an option with a default, a dict with a tuple in it as the output."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(1, 6, 3, padding=1)
        self.mask, self.fc = nn.Conv2d(6, 2, 1), nn.Linear(6, 5)

    def forward(self, x: Tensor, y: Tensor, scale: float = 2.0) -> dict[str, object]:
        x = F.relu(self.a(x) + scale * self.b(y))
        return {"mask": self.mask(x), "more": (self.fc(x.mean((2, 3))), x.mean((1, 2, 3)))}


NETS = (
    Net(
        "auxiliary_head",
        Auxiliary,
        (
            group(6, makes("a"), norms("bn"), takes("aux_conv", "b")),
            group(4, makes_biased("b"), takes("fc")),
            group(3, makes_biased("aux_conv"), takes("aux")),
        ),
        pinned=((INPUT, 3), (OUTPUT, 5), (OUTPUT, 5)),
        differs=True,
    ),
    Net(
        "dropped",
        Dropped,
        (group(6, makes_biased("a", "b"), takes("b", "fc")),),
        differs=True,
    ),
    Net(
        "by_hand",
        ByHand,
        (
            group(
                6,
                makes_biased("conv"),
                along("norm.scale", "norm.shift", "norm.mean", "norm.variance"),
                takes("fc"),
            ),
        ),
        differs=True,
    ),
    Net(
        "custom_gradient",
        CustomGradient,
        (group(6, makes_biased("a"), takes("b")), group(4, makes_biased("b"), takes("fc"))),
    ),
    Net(
        "stochastic_depth",
        StochasticDepth,
        (group(6, makes_biased("stem", "block.conv"), takes("block.conv", "fc")),),
        differs=True,
    ),
    Net(
        "opaque",
        lambda: Opaque(Follows()),
        (
            group(4, makes_biased("stem"), takes("block.conv")),
            group(6, makes("block.conv"), norms("block.bn"), takes("head")),
            group(4, makes_biased("head"), takes("fc")),
        ),
    ),
    Net(
        "opaque_literal",
        lambda: Opaque(Literal()),
        (
            group(6, makes_biased("block.conv"), takes("head")),
            group(4, makes_biased("head"), takes("fc")),
        ),
        pinned=(*ENDS, (f"{WIDTHS}: RuntimeError: shape '[-1, 4, 8, 8]' is invalid", 4)),
    ),
    Net(
        "opaque_first_three",
        lambda: Opaque(FirstThree()),
        (
            group(1, makes_biased("stem"), takes("block.conv")),
            group(6, makes_biased("block.conv"), takes("head")),
            group(4, makes_biased("head"), takes("fc")),
        ),
        pinned=(*ENDS, (f"{WIDTHS}: the call reads other channels than in the dense network", 3)),
    ),
    Net(
        "opaque_roll",
        lambda: Opaque(Rolling()),
        (
            group(6, makes_biased("block.conv"), takes("head")),
            group(4, makes_biased("head"), takes("fc")),
        ),
        pinned=(*ENDS, (f"{WIDTHS}: the call reads other channels than in the dense network", 4)),
    ),
    Net(
        "sized",
        Sized,
        (
            group(4, makes_biased("stem"), takes("wide")),
            *(group(2, makes_biased("wide"), takes("fc")) for _ in range(3)),  # a group a pair
        ),
    ),
    Net(
        "several",
        Several,
        (group(6, makes_biased("a", "b"), takes("mask", "fc")),),
        pinned=((INPUT, 3), (OUTPUT, 2), (OUTPUT, 5)),
        shapes=((3, 8, 8), (1, 8, 8)),
        mixes=True,
    ),
)
