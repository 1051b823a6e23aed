"""What a pass is: it requires something of a program, changes it, and ensures something.

A pass is a frozen dataclass whose fields are its options. It never edits the program it is
given; it returns another. `ensures` looks at the result, not at the pass.
"""

import abc
from collections.abc import Hashable
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, fx, nn

from fxprune.channels.graph import ChannelGraph


@dataclass(frozen=True, eq=False)
class Program:
    """A network on its way through the compiler.

    Attributes:
        module: the network; the user's own at first, then traced, gated or compact.
        inputs: example inputs, the batch first.
        channels: the channel dependency graph, once it is known.
    """

    module: nn.Module
    inputs: tuple[Tensor, ...]
    channels: ChannelGraph | None = None

    @property
    def graph_module(self) -> fx.GraphModule:
        """The network, once it is traced."""
        assert isinstance(self.module, fx.GraphModule)
        return self.module


class Pass(abc.ABC):
    """One step from program to program."""

    keys: ClassVar[tuple[Hashable, ...]]

    @abc.abstractmethod
    def requires(self, program: Program) -> None:
        """Raises an FxpruneError where the pass cannot work on `program`."""

    @abc.abstractmethod
    def run(self, program: Program) -> Program:
        """Returns the changed program; the given one stays as it is."""

    @abc.abstractmethod
    def ensures(self, program: Program) -> None:
        """Raises AssertionError where the result is not what the pass promises."""

    def __call__(self, program: Program) -> Program:
        """Requires, runs, lints the graph, ensures."""
        self.requires(program)
        result = self.run(program)
        result.graph_module.graph.lint()
        self.ensures(result)
        return result
