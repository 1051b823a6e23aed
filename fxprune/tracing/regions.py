"""Traced modules inside a module that keeps its code, so that their literal sizes can be set.

A module whose own code cannot be followed calls its children, most of which can be. Such a child is
traced on its own: it stays what it is, but its `forward` is a `Region`, which runs the child's
graphs. Where a call of it is unlike those that were seen, the child's own code runs.
"""

import copy
from collections.abc import Callable, Mapping
from typing import Any, Self

from torch import Tensor, fx, nn
from torch.fx.graph import CodeGen

from fxprune.tracing.deepcopy import copied
from fxprune.tracing.signature import CallCodeGen, Signature

Code = Callable[..., Any]
"""Runs a graph: it takes the module whose graph it is, then the graph's inputs."""
Runner = Callable[["Region", fx.Graph, list[Tensor]], Any]
"""Runs a graph of a region on the tensors of a call."""


class Region:
    """Runs the graphs of a module in the place of its own code.

    Attributes:
        module: the module; this is its attribute `forward`.
        signature: how it is called.
        runner: what runs the graphs instead of their code, while they are analysed.
    """

    def __init__(
        self, module: nn.Module, signature: Signature, training: fx.Graph, evaluation: fx.Graph
    ) -> None:
        """Take the graphs of both modes, which may be the same."""
        self.module, self.signature = module, signature
        self.runner: Runner | None = None
        self._graphs = {True: training, False: evaluation}
        self._outputs = {}
        for mode, graph in self._graphs.items():
            codegen = graph._codegen
            self._outputs[mode] = codegen.output if isinstance(codegen, CallCodeGen) else None
        for graph in self.graphs:
            graph.set_codegen(CodeGen())
        self._codes: dict[bool, Code] = {}

    @property
    def graphs(self) -> tuple[fx.Graph, ...]:
        """The graphs that differ, that of evaluation last."""
        training, evaluation = self._graphs[True], self._graphs[False]
        return (evaluation,) if training is evaluation else (training, evaluation)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the graph of the mode that the module is in; another call runs its own code."""
        try:
            tensors = self.signature.bind(args, kwargs)
        except TypeError:
            return type(self.module).forward(self.module, *args, **kwargs)
        mode = self.module.training
        if self.runner is not None:
            result = self.runner(self, self._graphs[mode], tensors)
        else:
            if not self._codes:
                self.recompile()
            result = self._codes[mode](self.module, *tensors)
        output = self._outputs[mode]
        return result if output is None else output.rebuild(result)

    def recompile(self) -> None:
        """Make the code of the graphs as they are now."""
        codes = {id(graph): function_of(self.module, graph) for graph in self.graphs}
        self._codes = {mode: codes[id(graph)] for mode, graph in self._graphs.items()}

    def on(self, module: nn.Module) -> Self:
        """Return a copy with graphs of its own that runs them on another module."""
        clone = object.__new__(type(self))
        clone.__dict__.update(self.__dict__)
        clone.module, clone._codes, clone.runner = module, {}, None
        known = {id(graph): copy.deepcopy(graph) for graph in self.graphs}
        clone._graphs = {mode: known[id(graph)] for mode, graph in self._graphs.items()}
        return clone

    def __reduce__(self) -> Any:
        """Say how it is pickled: with modules in the place of graphs, which cannot be."""
        held = {id(graph): fx.GraphModule(self.module, graph, "Region") for graph in self.graphs}
        parts = {mode: held[id(graph)] for mode, graph in self._graphs.items()}
        return _from_parts, (self.module, self.signature, parts, self._outputs)

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return self.on(copied(self.module, memo))


def _from_parts(
    module: nn.Module,
    signature: Signature,
    parts: Mapping[bool, fx.GraphModule],
    outputs: dict[bool, Any],
) -> Region:
    """Make a region of what was pickled."""
    region = Region(module, signature, parts[True].graph, parts[False].graph)
    region._outputs = outputs
    return region


def region_of(module: nn.Module) -> Region | None:
    """Return the region that runs in the place of a module's own code."""
    found = vars(module).get("forward")
    return found if isinstance(found, Region) else None


def has_sizes(graphs: tuple[fx.Graph, ...]) -> bool:
    """Tell whether literals stand in graphs that may be sizes of channels."""
    return any(
        node.op in ("call_function", "call_method") and _holds_size((node.args, node.kwargs))
        for graph in graphs
        for node in graph.nodes
    )


def _holds_size(value: Any) -> bool:
    if isinstance(value, Mapping):
        return any(map(_holds_size, value.values()))
    if isinstance(value, (list, tuple)):
        return any(map(_holds_size, value))
    if isinstance(value, slice):
        return _holds_size((value.start, value.stop, value.step))
    return type(value) is int and value > 1


def function_of(module: nn.Module, graph: fx.Graph) -> Code:
    """Compile a graph to a function that takes the module as its first argument."""
    made: Any = type(fx.GraphModule(module, graph, "Code"))
    code: Code = made.forward
    return code
