"""What an example of a rule is: a small network around an op, and what has to be found."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fxprune.rules.base import Rule
from tests.support.topologies.base import randomised

Layers = Callable[[], tuple[nn.Module, ...]]


def inputs(batch: int = 2) -> tuple[Tensor]:
    """Images [batch, 3, 8, 8] for an example, float64."""
    generator = torch.Generator().manual_seed(batch)
    return (torch.randn(batch, 3, 8, 8, generator=generator, dtype=torch.float64),)


class Around(nn.Module):
    """A convolution to 8 channels, the op, a convolution to 4 channels, a classifier."""

    def __init__(self, op: Callable[..., Tensor], out: int, layers: Layers) -> None:
        super().__init__()
        self.stem, self.op = nn.Conv2d(3, 8, 3), op
        self.layers = nn.ModuleList(layers())
        self.tail, self.fc = nn.Conv1d(out, 4, 1), nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.op(torch.tanh(self.stem(x)), *self.layers)
        return self.fc(torch.tanh(self.tail(x.flatten(2))).mean(2))


@dataclass(frozen=True)
class Example:
    """An op in the middle of a network.

    Attributes:
        rule: whose example it is.
        name: for the test's id.
        op: from an activation [N, 8, 6, 6] and the layers to [N, out, …], three dimensions or more.
        out: the length of its dimension 1.
        groups: the sizes of the groups that have to be found, that of the tail's 4 included.
        pinned: how the reasons begin, in order, but for those of the network's two ends.
        layers: makes what the op needs.
        mixes: whether it mixes channels, so that a removed one is not the same as a zero column.
    """

    rule: type[Rule]
    name: str
    op: Callable[..., Tensor]
    out: int = 8
    groups: tuple[int, ...] = (8, 4)
    pinned: tuple[str, ...] = ()
    layers: Layers = tuple
    mixes: bool = False

    def model(self, dtype: torch.dtype = torch.float64) -> nn.Module:
        """The network with drawn weights, in evaluation mode."""
        with torch.random.fork_rng(devices=()):
            torch.manual_seed(0)
            return randomised(Around(self.op, self.out, self.layers)).to(dtype).eval()


def one(kind: Callable[..., nn.Module], *args: Any, **options: Any) -> Layers:
    """A single layer."""
    return lambda: (kind(*args, **options),)


def run(x: Tensor, layer: nn.Module) -> Tensor:
    """The layer itself."""
    return layer(x)


def tokens(x: Tensor) -> Tensor:
    """[N, C, H, W] to [N, H W, C]."""
    return x.flatten(2).transpose(1, 2)


class Rows(nn.Module):
    """A convolution of which a function of the weight is used."""

    def __init__(self, weight: Callable[[Tensor], Tensor], *shape: int) -> None:
        super().__init__()
        self.weight, self.change = nn.Parameter(torch.randn(shape)), weight

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.change(self.weight))
