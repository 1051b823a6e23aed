"""The result of a run with labels: the labels of each node's values, and what the rules noted."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, fx, nn

from fxprune.analysis.context import Notebook
from fxprune.analysis.equalities import Components, components
from fxprune.rules.base import Family
from fxprune.tracing.module import TracedModule, modules_of, own_name


@dataclass(frozen=True)
class Value:
    """What a node's tensor looked like.

    Attributes:
        shape: its sizes.
        families: what it carried.
        plain: its dtype and memory format, if the node is a single ATen call whose result follows
            from its operands' labels at any widths (a shape function knows it, no argument is a
            size), so that it need not run again; else None.
    """

    shape: tuple[int, ...]
    families: tuple[Family, ...]
    plain: tuple[torch.dtype, torch.memory_format] | None = None


Values = Any
"""A Value, a Python number, a tuple or dict of such for a node that returns several, or None."""


@dataclass(frozen=True, eq=False)
class Labelled:
    """The result of a run.

    Attributes:
        context: what the rules said.
        axes: for each parameter and buffer, the labels of each of its dimensions longer than 1.
        values: for each graph (in the order of `TracedModule.all_graphs`), each node's values.
        batch: the length of the batch; see `fxprune.equivalence.batch_of`.
        copies: those of `Aliasing`.
        repeated: the later values of a region's nodes, where it ran several times, by name.
    """

    context: Notebook
    axes: Mapping[str, Mapping[int, Tensor]]
    values: tuple[Mapping[str, Values], ...]
    batch: int
    copies: list[fx.Node]
    repeated: Mapping[str, tuple[Values, ...]] = field(default_factory=dict)

    def components(self) -> Components:
        """Solve the equalities."""
        return components(self.context, self.context.edges)


@dataclass(frozen=True, eq=False)
class Compact:
    """A compact network that is run with the labels of the dense one.

    Nodes with a `Value.plain` do not run again: their results are made of the kept labels, and only
    where a node that has to run reads them.

    Attributes:
        module: the network.
        dense: the run of the dense network.
        kept: selects those labels of a vector whose channels the compact network keeps.
        first_label: where fresh labels begin.
    """

    module: TracedModule
    dense: Labelled
    kept: Callable[[Tensor], Tensor]
    first_label: int

    def is_plain(self, graph: int, node: fx.Node) -> bool:
        """Tell whether a node need not be run."""
        value = self.dense.values[graph].get(node.name)
        if graph >= len(self.module.graphs):
            return False  # a region may run several times
        return node.op == "output" or (isinstance(value, Value) and value.plain is not None)

    @cached_property
    def own_nodes(self) -> list[fx.Node]:
        """The nodes of the network's own graphs that have to run."""
        return [
            node
            for number, graph in enumerate(self.module.graphs)
            for node in graph.nodes
            if not self.is_plain(number, node)
        ]

    @cached_property
    def running(self) -> tuple[list[fx.Node], dict[str, nn.Module]]:
        """The nodes that have to run, and the modules that they call with all in them, by path."""
        nodes = self.own_nodes
        called = dict.fromkeys(str(n.target) for n in nodes if n.op == "call_module")
        inner = [
            node
            for region in self.module.regions.values()
            for graph in region.graphs
            for node in graph.nodes
        ]
        return [*nodes, *inner], {
            own_name(f"{path}.{name}" if name else path): part
            for path in called
            for name, part in modules_of(self.module.get_submodule(path)).items()
        }

    def result(self, graph: int, node: fx.Node) -> tuple[Tensor, list[Family]]:
        """Return a plain node's result: a meta tensor and what it carries."""
        value: Value = self.dense.values[graph][node.name]
        assert value.plain is not None
        dtype, memory_format = value.plain
        families = [Family(f.dim, self.kept(f.labels), f.free) for f in value.families]
        shape = list(value.shape)
        for family in families:
            shape[family.dim] = len(family.labels)
        tensor = torch.empty(shape, dtype=dtype, device="meta", memory_format=memory_format)
        return tensor, families
