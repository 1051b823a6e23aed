"""A network, and what the analysis has to find in it."""

import functools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from fxprune import GatedModule
from fxprune.budget.budget import Budget
from fxprune.gated.module import Settings
from fxprune.passes import Program, apply
from fxprune.policies import Policy, parse

INPUT = "the convolution reads a fixed number of channels"
OUTPUT = "the model returns these channels"
WIDTHS = "the code here does not follow narrow widths"
ENDS = ((INPUT, 3), (OUTPUT, 5))
"""The two pins of a network with 3 input channels and 5 classes."""


@dataclass(frozen=True)
class Group:
    """An expected channel group: its size and the text of each of its members, in any order."""

    size: int
    members: tuple[str, ...]


@dataclass(frozen=True)
class Net:
    """A topology and its channel dependency graph.

    Attributes:
        name: for the test's id.
        build: makes the network; its weights are drawn from torch's global generator.
        groups: what has to be found, exactly.
        pinned: how the reason of each pin begins and its number of channels, in order.
        shapes: of the inputs, without the batch.
        mixes: whether statistics are mixed across channels, so that removing a channel is not the
            same as zeroing its consumers' columns.
        differs: whether the training graph is another one.
        structural: dimensions that are no channels and are not told of, as `parameter[dim]`.
    """

    name: str
    build: Callable[[], nn.Module]
    groups: tuple[Group, ...]
    pinned: tuple[tuple[str, int], ...] = ENDS
    shapes: tuple[tuple[int, ...], ...] = field(default=((3, 8, 8),))
    mixes: bool = False
    differs: bool = False
    structural: tuple[str, ...] = ()

    def model(self, dtype: torch.dtype = torch.float64, seed: int = 0) -> nn.Module:
        """The network with weights and statistics that hide nothing, in evaluation mode."""
        with torch.random.fork_rng(devices=()):
            torch.manual_seed(seed)
            return randomised(self.build()).to(dtype).eval()

    def gated(
        self, policy: str | Policy = "cucb", budget: str = "keep=0.5", **settings: Any
    ) -> GatedModule:
        """What `instrument` makes of it; traced and analysed once for all tests."""
        settings = Settings(parse(policy), Budget.parse(budget), **settings)
        gated = apply("gate", _coupled(self), settings=settings).module
        assert isinstance(gated, GatedModule)
        return gated

    def inputs(
        self, batch: int = 2, dtype: torch.dtype = torch.float64, seed: int = 1
    ) -> tuple[Tensor, ...]:
        """Normal inputs."""
        generator = torch.Generator().manual_seed(seed)
        return tuple(
            torch.randn(batch, *shape, generator=generator, dtype=dtype) for shape in self.shapes
        )


@functools.cache
def _coupled(net: Net) -> Program:
    """The channel graph of the network; gating copies its weights."""
    return apply("couple", apply("trace", Program(net.model(), net.inputs())))


def group(size: int, *members: str | tuple[str, ...]) -> Group:
    """A group from texts and from the helpers below."""
    flat = (part if isinstance(part, tuple) else (part,) for part in members)
    return Group(size, tuple(text for part in flat for text in part))


def makes(*layers: str) -> tuple[str, ...]:
    """The rows of layers without a bias."""
    return tuple(f"{layer}.weight[0] out" for layer in layers)


def makes_biased(*layers: str) -> tuple[str, ...]:
    """The rows of layers, and their biases."""
    return (*makes(*layers), *(f"{layer}.bias[0] along" for layer in layers))


def takes(*layers: str, times: int = 1) -> tuple[str, ...]:
    """The columns of layers; `times` as many as there are channels."""
    often = f" x{times}" if times > 1 else ""
    return tuple(f"{layer}.weight[1] in{often}" for layer in layers)


def norms(*layers: str) -> tuple[str, ...]:
    """Batch norms."""
    names = ("weight", "bias", "running_mean", "running_var")
    return tuple(f"{layer}.{name}[0] along" for layer in layers for name in names)


def along(*names: str, dim: int = 0, times: int = 1) -> tuple[str, ...]:
    """Parameters with one element, or one kernel, a channel."""
    often = f" x{times}" if times > 1 else ""
    return tuple(f"{name}[{dim}] along{often}" for name in names)


def randomised(model: nn.Module) -> nn.Module:
    """Draws norms and per-channel parameters, whose initial 0 and 1 would hide mistakes."""
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._NormBase):
            _draw(module.weight, 0.5, 1.5)
            _draw(module.bias, -1, 1)
            _draw(module.running_mean, -1, 1)
            _draw(module.running_var, 0.5, 1.5)
        elif isinstance(module, (nn.GroupNorm, nn.LayerNorm)):
            _draw(module.weight, 0.5, 1.5)
            _draw(module.bias, -1, 1)
        elif isinstance(module, nn.PReLU):
            _draw(module.weight, 0.1, 0.5)
    return model


def _draw(tensor: Tensor | None, low: float, high: float) -> None:
    if tensor is not None:
        nn.init.uniform_(tensor, low, high)
