"""Label propagation: one run of the network on meta tensors, with labels beside the data.

Every index of every dimension of every parameter and buffer gets a label. The run is an fx
interpretation, so that each ATen call is known to belong to a node; the op rules say what each
call does to labels. The equalities they find are solved once, at the end, as the connected
components of a graph whose vertices are labels.
"""

import contextlib
import operator
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils._python_dispatch import _disable_current_modes

from fxprune.analysis.aliasing import Aliasing
from fxprune.analysis.context import Notebook, Product, Slide
from fxprune.analysis.equalities import Components, components
from fxprune.analysis.label_mode import LabelMode, results, rules, to_meta
from fxprune.analysis.own_code import OwnCode
from fxprune.analysis.shape_functions import SIZED, AtenCall, call_of, known_results
from fxprune.errors import TraceError
from fxprune.rules.base import Family, Place, tensors_in
from fxprune.tracing.data_dependent import really_run
from fxprune.tracing.module import (
    TracedModule,
    has_leaves,
    keeps_code,
    modules_of,
    own_name,
    tensors_of,
    with_tensors,
)
from fxprune.tracing.regions import Region
from fxprune.tracing.side_effects import left_alone
from fxprune.tracing.snapshot import CONSTANT
from fxprune.user_lines import where


class RunError(TraceError):
    """A network that does not run on its inputs.

    `near` are the labels of the tensors that the failing call had, or that came just before it.
    """

    near: Sequence[Tensor] = ()


@dataclass(frozen=True)
class Value:
    """What a node's tensor looked like.

    Attributes:
        shape: its sizes.
        families: what it carried.
        plain: its dtype and memory format where shape functions know the node's single call, and
            whose rule only ties dimensions to each other: then it comes to the same at any widths.
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
        batch: the length of the first dimension of the first input.
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

    What shape functions knew in the dense run is not run again: its results are made of what is
    kept of their labels, and only where a node that has to run asks for them.

    Attributes:
        module: the network.
        dense: the run of the dense network.
        kept: what is left of a vector of its labels.
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


def propagate(
    module: TracedModule, inputs: tuple[Tensor, ...], compact: Compact | None = None
) -> Labelled:
    """Run all of a module's graphs on meta tensors and follow the labels.

    Args:
        module: the traced network; its parameters are not touched.
        inputs: example inputs, of any dtype and device.
        compact: for a network of fewer channels, resized already, how its labels are those of the
            dense one.

    Raises:
        TraceError: the network does not run on inputs of this shape.
    """
    rules()  # a broken rule is no fault of the model
    tensors = _visible(module, compact)
    parts = modules_of(module).items()
    group_norms = frozenset(path for path, part in parts if isinstance(part, nn.GroupNorm))
    if compact is None:
        context = Notebook(group_norms=group_norms)
        meta = {name: _on_meta(name, tensor) for name, tensor in tensors.items()}
        axes = _fresh_axes(context, meta)
    else:
        choices = dict(compact.dense.context.choices)
        context = Notebook(compact.first_label, choices=choices, group_norms=group_norms)
        known = {
            name: {dim: compact.kept(labels) for dim, labels in compact.dense.axes[name].items()}
            for name in tensors
        }
        meta = {
            name: _compact(tensor, known[name]) if known[name] else _on_meta(name, tensor)
            for name, tensor in tensors.items()
        }
        axes = {
            name: {dim: labels for dim, labels in dims.items() if len(labels) > 1}
            for name, dims in known.items()
        }
    for name, tensor in meta.items():
        context.parametric(tensor, name)
        context.carry(tensor, [Family(dim, labels) for dim, labels in axes[name].items()])
    context.sightings.clear()  # parameters are known by their axes
    on_meta = {id(tensor): meta[name] for name, tensor in tensors.items()}
    alone = left_alone(module) if has_leaves(module) else contextlib.nullcontext()
    with alone, with_tensors(module, on_meta):
        seen: dict[Any, Any] = {}
        runs: list[_Interpreter] = []
        real = {id(meta[name]): tensor for name, tensor in tensors.items()}
        aliasing = Aliasing(context, module)
        for number, graph in enumerate(module.graphs):
            mode = LabelMode(aliasing, number, seen)
            first = runs[0] if runs and compact is None else None
            runs.append(_Interpreter(module, graph, mode, compact, first, real))
            with _regions_run(module, runs[-1]):
                _run(runs[-1], inputs)
    batch = inputs[0].shape[0] if inputs and inputs[0].dim() else 1
    inner = [
        {name: seen for (number, name), seen in context.inner.items() if number == own}
        for own in range(len(runs), len(module.all_graphs))
    ]
    values = [run.values for run in runs] + [{n: seen[0] for n, seen in v.items()} for v in inner]
    again = [{n: seen[1:] for n, seen in v.items() if len(seen) > 1} for v in inner]
    repeated = {name: seen for own in again for name, seen in own.items()}
    return Labelled(context, axes, tuple(values), batch, aliasing.copies, repeated)


def _visible(module: TracedModule, compact: Compact | None) -> dict[str, Tensor]:
    """Return the parameters and buffers by name, of those nodes only that have to run."""
    parameters, buffers = tensors_of(module)
    tensors = parameters | buffers
    if compact is None:
        return tensors
    nodes, modules = compact.own_nodes, compact.running[1]
    read = [
        operator.attrgetter(str(node.target))(module) for node in nodes if node.op == "get_attr"
    ]
    seen = {id(value) for value in read}
    for child in modules.values():
        seen |= {id(t) for kind in ("_parameters", "_buffers") for t in vars(child)[kind].values()}
    return {name: tensor for name, tensor in tensors.items() if id(tensor) in seen}


class _Interpreter(fx.Interpreter):
    """Runs a graph and keeps, for each node, what its tensors carried.

    The graphs of training and of evaluation have most of their nodes in common. A node is not run
    again where its arguments are those of its namesake in the graph `before`. Where they differ
    and it carries the same all the same, as a dropout does, its namesake's tensor stands for its
    own from there on.
    """

    def __init__(
        self,
        module: nn.Module,
        graph: fx.Graph,
        mode: LabelMode,
        compact: Compact | None,
        before: "_Interpreter | None",
        real: Mapping[int, Tensor],
    ) -> None:
        """Run a graph; `real` are the network's own tensors by the id of their meta tensors."""
        super().__init__(module, graph=graph, garbage_collect_values=False)
        self.real = real
        known = None if compact is None else compact.dense.context.ways
        self.code = OwnCode(mode, real, known)
        self.mode, self.context, self.compact, self.before = mode, mode.context, compact, before
        self.nodes = {node.name: node for node in graph.nodes}
        self.values: dict[str, Values] = {}
        self.said: dict[str, tuple[list[Product], list[Slide], list[Place]]] = {}
        self.extra_traceback = False

    def run_node(self, n: fx.Node) -> Any:
        if self.compact is not None and self.compact.is_plain(self.mode.graph, n):
            return _DUE
        self.context.node = n
        before = self.before
        twin = None if before is None else before.nodes.get(n.name)
        if before is None or twin is None:
            return self._run(n)
        if n.op not in ("placeholder", "output") and self._repeats(n, twin, before):
            return self._repeated(n, before)
        result, earlier = self._run(n), before.env[twin]
        if not self._stands_for(earlier, result, before.values[n.name]):
            return result
        self.context.ungate(result, n)
        return earlier

    def _repeats(self, node: fx.Node, twin: fx.Node, before: "_Interpreter") -> bool:
        """Tell whether a node does to the same values what its namesake in the graph before did."""

        def same(a: Any, b: Any) -> bool:
            if isinstance(a, fx.Node) and isinstance(b, fx.Node):
                return self.env[a] is before.env[b]
            if isinstance(a, (list, tuple)) and isinstance(b, (list, tuple)):
                return len(a) == len(b) and all(map(same, a, b))
            return type(a) is type(b) and not isinstance(a, (dict, slice)) and bool(a == b)

        kind, known = (node.op, node.target), (twin.op, twin.target)
        if kind != known or node.kwargs.keys() != twin.kwargs.keys():
            return False
        return same(node.args, twin.args) and all(
            same(value, twin.kwargs[name]) for name, value in node.kwargs.items()
        )

    def _repeated(self, node: fx.Node, before: "_Interpreter") -> Any:
        """Return the result of a node that repeats its namesake, and note it for this graph."""
        products, slides, asked = before.said[node.name]
        self.context.products += [replace(product, node=node) for product in products]
        self.context.sliding += [replace(slide, node=node) for slide in slides]
        choices = self.context.choices
        choices.update({(self.mode.graph, *place[1:]): choices[place] for place in asked})
        self.values[node.name] = before.values[node.name]
        return before.env[before.nodes[node.name]]

    def _stands_for(self, earlier: Any, result: Any, value: Values) -> bool:
        """Tell whether a tensor of the graph before can take the place of one of this graph."""
        if not isinstance(earlier, Tensor) or not isinstance(result, Tensor):
            return False
        families, context = self.context.of(result), self.context
        return (
            (earlier.shape, earlier.stride(), earlier.dtype)
            == (result.shape, result.stride(), result.dtype)
            and context.is_parametric(earlier) == context.is_parametric(result)
            and _are_one(families, value.families)
            and _are_one(families, context.of(earlier))  # later nodes may have changed it in place
        )

    def _run(self, n: fx.Node) -> Any:
        context = self.context
        products, slides = len(context.products), len(context.sliding)
        asked = len(context.asked)
        operand = self.env.__getitem__ if self.compact is None else self._operand
        args = fx.map_arg(n.args, operand)
        kwargs = fx.map_arg(n.kwargs, operand) if n.kwargs else {}
        call = self._call(n, args, kwargs)
        look = None if call is None else known_results(*call)
        if call is not None and look is not None:
            out = results(look, call[1])
            self.mode.follow(*call, {}, out)
            result: Any = out[0] if look[0] else out
            plain = asked == len(context.asked) and call[0] not in SIZED
            self.values[n.name] = self._described(result, plain)
        else:
            try:
                if n.target is operator.getitem:
                    args = (args[0], _numbers(args[1]))
                if n.op == "call_module" and keeps_code(self.submodules[str(n.target)]):
                    result = self.code.run(n.name, self.submodules[str(n.target)], args, kwargs)
                else:
                    with self.mode:
                        result = getattr(self, n.op)(n.target, args, kwargs)
            except (RuntimeError, TypeError):  # what meta tensors raise; a rule's fault is no such
                if not self._may_be_opaque(n):
                    raise
                del context.products[products:], context.sliding[slides:]
                result = self._opaque(n, args, kwargs)
            self.values[n.name] = self._describe(result)
        self.said[n.name] = (
            context.products[products:],
            context.sliding[slides:],
            context.asked[asked:],
        )
        return result

    def _may_be_opaque(self, node: fx.Node) -> bool:
        """Tell whether a node that does not run on meta tensors is a leaf that need not do so."""
        before = None if self.compact is None else self.compact.dense.context.opaque
        return node.op == "call_module" and (before is None or node.name in before)

    def _opaque(self, node: fx.Node, args: Any, kwargs: Any) -> Any:
        """Run a leaf that asks for values on real tensors, and pin all of its result."""
        context, module = self.context, self.submodules[str(node.target)]
        context.opaque.add(node.name)
        result, macs = really_run(module, self.real, args, kwargs)
        self.code.pin_around(module, args, kwargs, "the code here asks for what is in a tensor")
        context.gates = {key: gate for key, gate in context.gates.items() if gate[0] is not node}
        if macs:
            context.multiplies(macs, made=None)
        return result

    def _operand(self, node: fx.Node) -> Any:
        """Return what a node gave, or would have given."""
        if self.env[node] is _DUE:
            assert self.compact is not None
            tensor, families = self.compact.result(self.mode.graph, node)
            self.context.carry(tensor, families)
            self.env[node] = tensor
        return self.env[node]

    def _call(self, node: fx.Node, args: Any, kwargs: Any) -> AtenCall | None:
        """Return the ATen call of a node, where it is a single one."""
        target: Any = node.target
        if node.op == "call_module":
            target = self.submodules.get(target)
        elif node.op == "call_method":
            target = getattr(Tensor, target, None)
        return call_of(target, args, kwargs)

    def output(self, target: Any, args: Any, kwargs: Any) -> Any:
        for tensor in tensors_in(args):
            for family in self.context.of(tensor):
                self.context.pin(family.labels, "it reaches the model's output")
        return super().output(target, args, kwargs)

    def _describe(self, result: Any) -> Values:
        if isinstance(result, Tensor):
            return self._described(result)
        if isinstance(result, (list, tuple)):
            return tuple(self._describe(part) for part in result)
        if isinstance(result, dict):
            return {key: self._describe(part) for key, part in result.items()}
        return result if isinstance(result, (int, float)) else None

    def _described(self, tensor: Tensor, plain: bool = False) -> Value:
        families = self.context.of(tensor)
        if len(families) > 1 and len({family.dim for family in families}) < len(families):
            plain = False  # which of them says how long the dimension is depends on what follows
        layout = next((f for f in _FORMATS if tensor.is_contiguous(memory_format=f)), None)
        if not plain or layout is None:
            return Value(tuple(tensor.shape), families)
        return Value(tuple(tensor.shape), families, (tensor.dtype, layout))


class _Inner(_Interpreter):
    """Runs a graph of a region, inside the code of the module that calls it."""

    def run_node(self, n: fx.Node) -> Any:
        self.context.node = n
        result = self._run(n)
        place = self.mode.graph, n.name
        inner = self.context.inner
        inner[place] = (*inner.get(place, ()), self.values[n.name])
        return result

    def output(self, target: Any, args: Any, kwargs: Any) -> Any:
        return fx.Interpreter.output(self, target, args, kwargs)


@contextlib.contextmanager
def _regions_run(module: TracedModule, outer: _Interpreter) -> Iterator[None]:
    """Run the regions that the network's own code calls with labels, while this lasts."""
    regions = module.regions.values()
    numbers = {id(graph): number for number, graph in enumerate(module.all_graphs)}
    mode, context = outer.mode, outer.context

    def run(region: Region, graph: fx.Graph, tensors: list[Tensor]) -> Any:
        own, node = mode.graph, context.node
        mode.graph = numbers[id(graph)]
        try:
            inner = _Inner(region.module, graph, mode, outer.compact, None, outer.real)
            with _disable_current_modes():
                result = inner.run(*tensors, enable_io_processing=False)
        finally:
            mode.graph = own
        context.node = node
        return result

    for region in regions:
        region.runner = run
    try:
        yield
    finally:
        for region in regions:
            region.runner = None


def _are_one(a: Sequence[Family], b: Sequence[Family]) -> bool:
    """Tell whether two tensors carry the very same labels."""
    return len(a) == len(b) and all(
        one.dim == other.dim and one.labels is other.labels and one.free == other.free
        for one, other in zip(a, b, strict=True)
    )


def _numbers(index: Any) -> Any:
    """Turn lists in an index into tensors: made by PyTorch, these would be meta tensors."""
    if isinstance(index, list):
        plain = all(type(number) in (int, bool) for number in index)
        return torch.tensor(index) if index and plain else index
    return tuple(map(_numbers, index)) if isinstance(index, tuple) else index


_FORMATS = (torch.contiguous_format, torch.channels_last)
"""Layouts in memory that a new tensor can be asked for; permuted ones of other ranks are run."""

_DUE = object()
"""Stands for the result of a plain node until it is asked for."""


def _run(interpreter: _Interpreter, inputs: tuple[Tensor, ...]) -> None:
    context = interpreter.context
    context.products.clear()  # macs are those of the last graph, which is the evaluation graph
    examples = tuple(to_meta(tensor) for tensor in inputs)
    try:
        with torch.no_grad():
            interpreter.run(*examples, enable_io_processing=False)
    except Exception as error:
        node = context.node
        first = str(error).strip().splitlines() or [""]
        refused = RunError(
            f"the model does not run on inputs of shape {[tuple(x.shape) for x in inputs]}",
            at=where(node) if node is not None else "",
            why=f"{type(error).__name__}: {first[0]}",
            do="move code that asks for what is in a tensor into a submodule of its own"
            if "meta" in str(error)
            else "give example inputs of the shape the model takes, with the batch first",
            node=node.name if node is not None else "",
        )
        refused.near = [family.labels for x in context.near for family in context.of(x)]
        raise refused from error


def _fresh_axes(context: Notebook, tensors: Mapping[str, Tensor]) -> dict[str, dict[int, Tensor]]:
    dims = {n: [d for d, size in enumerate(t.shape) if size > 1] for n, t in tensors.items()}
    sizes = [tensors[name].shape[dim] for name, own in dims.items() for dim in own]
    vectors = iter(context.fresh_vectors(sizes) if sizes else ())
    return {name: {dim: next(vectors) for dim in own} for name, own in dims.items()}


def _on_meta(name: str, tensor: Tensor) -> Tensor:
    """Make a tensor's stand-in on meta; a number that forward has made itself keeps its value."""
    constant = name.rpartition(".")[2].startswith(CONSTANT) and tensor.dim() == 0
    return tensor.detach().cpu() if constant else to_meta(tensor)


def _compact(tensor: Tensor, axes: Mapping[int, Tensor]) -> Tensor:
    shape = [len(axes[dim]) if dim in axes else size for dim, size in enumerate(tensor.shape)]
    return torch.empty(shape, dtype=tensor.dtype, device="meta")
