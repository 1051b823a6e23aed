"""Runs a graph node by node on meta tensors, and keeps what each node's tensors carry."""

import contextlib
import operator
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils._python_dispatch import _disable_current_modes

from fxprune.analysis.context import Product, Slide
from fxprune.analysis.label_mode import LabelMode
from fxprune.analysis.labelled import Compact, Value, Values
from fxprune.analysis.own_code import OwnCode
from fxprune.rules.base import CallSite, Family, tensors_in
from fxprune.tracing.data_dependent import really_called, really_run
from fxprune.tracing.example import DEVICES, type_name
from fxprune.tracing.module import TracedModule, keeps_code
from fxprune.tracing.objects import held
from fxprune.tracing.regions import Region


class LabelInterpreter(fx.Interpreter):
    """Runs a graph and keeps, for each node, what its tensors carried.

    The graphs of training and of evaluation have most of their nodes in common. A node does not run
    again if its arguments are those of the node of the same name in the graph `before`. If they
    differ and the result still has the same labels (as behind a dropout), the earlier result takes
    its place, so that the nodes after it need not run either.
    """

    def __init__(
        self,
        module: nn.Module,
        graph: fx.Graph,
        mode: LabelMode,
        compact: Compact | None,
        before: "LabelInterpreter | None",
        real: Mapping[int, Tensor],
    ) -> None:
        """Run a graph; `real` are the network's own tensors by the id of their meta tensors."""
        super().__init__(module, graph=graph, garbage_collect_values=False)
        self.real = real
        self.home = next((own.device for own in real.values()), torch.device("cpu"))
        known = None if compact is None else compact.dense.context.code_paths
        self.code = OwnCode(mode, real, known)
        self.mode, self.context, self.compact, self.before = mode, mode.context, compact, before
        self.nodes = {node.name: node for node in graph.nodes}
        self.values: dict[str, Values] = {}
        self.said: dict[str, tuple[list[Product], list[Slide], list[CallSite]]] = {}
        self.extra_traceback = False
        self.returned = False

    def run_node(self, n: fx.Node) -> Any:
        """Run a node, unless its result is known from the dense run or the graph before."""
        if self.compact is not None and self.compact.is_plain(self.mode.graph, n):
            return _DUE
        self.context.node = n
        before = self.before
        namesake = None if before is None else before.nodes.get(n.name)
        if before is None or namesake is None:
            return self._run(n)
        if n.op not in ("placeholder", "output") and self._repeats(n, namesake, before):
            return self._repeated(n, before)
        result, earlier = self._run(n), before.env[namesake]
        if not self._stands_for(earlier, result, before.values[n.name]):
            return result
        self.context.ungate(result, n)
        return earlier

    def _repeats(self, node: fx.Node, namesake: fx.Node, before: "LabelInterpreter") -> bool:
        """Tell whether a node does to the same values what its namesake in the graph before did."""

        def same(a: Any, b: Any) -> bool:
            if isinstance(a, fx.Node) and isinstance(b, fx.Node):
                return self.env[a] is before.env[b]
            if isinstance(a, (list, tuple)) and isinstance(b, (list, tuple)):
                return len(a) == len(b) and all(map(same, a, b))
            return type(a) is type(b) and not isinstance(a, (dict, slice)) and bool(a == b)

        kind, known = (node.op, node.target), (namesake.op, namesake.target)
        if kind != known or node.kwargs.keys() != namesake.kwargs.keys():
            return False
        return same(node.args, namesake.args) and all(
            same(value, namesake.kwargs[name]) for name, value in node.kwargs.items()
        )

    def _repeated(self, node: fx.Node, before: "LabelInterpreter") -> Any:
        """Return the result of a node that repeats its namesake, and note it for this graph."""
        products, slides, asked = before.said[node.name]
        self.context.products += [replace(product, node=node) for product in products]
        self.context.sliding += [replace(slide, node=node) for slide in slides]
        choices = self.context.choices
        choices.update({(self.mode.graph, *site[1:]): choices[site] for site in asked})
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
        shortcut = self.mode.shortcut(self._function(n), args, kwargs)
        if shortcut is not None:
            result, follows = shortcut
            self.values[n.name] = self._described(result, follows and asked == len(context.asked))
        else:
            try:
                if n.target is operator.getitem:
                    args = (args[0], _numbers(args[1]))
                if n.op == "call_module" and keeps_code(self.submodules[str(n.target)]):
                    result = self.code.run(n.name, self.submodules[str(n.target)], args, kwargs)
                else:
                    if n.op == "call_module":  # its kernels want all tensors on one device
                        args, kwargs = self.mode.lift((args, kwargs))
                    with self.mode:
                        result = getattr(self, n.op)(n.target, args, kwargs)
            except (RuntimeError, TypeError) as error:  # of meta tensors; a rule's fault is no such
                if not self._may_be_opaque(n):
                    raise
                del context.products[products:], context.sliding[slides:]
                result = self._opaque(n, error, args, kwargs)
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
        calls = node.op in ("call_module", "call_function", "call_method")
        return calls and (before is None or node.name in before)

    def _opaque(self, node: fx.Node, error: Exception, args: Any, kwargs: Any) -> Any:
        """Run what asks for values on real tensors, and pin all of its result.

        A function may also be one that PyTorch has not written for meta tensors.

        Raises:
            Exception: `error`, where a function does not run on real tensors either.
        """
        context = self.context
        if node.op == "call_module":
            module = self.submodules[str(node.target)]
            result, macs = really_run(module, self.real, args, kwargs)
            self.code.pin_around(module, args, kwargs, "the code here asks for what is in a tensor")
        else:
            try:
                result, macs = really_called(self._function(node), self.real, args, kwargs)
            except Exception:
                raise error from None
            context.pin_all(tensors_in((args, kwargs)), "the function cannot be followed here")
        context.opaque.add(node.name)
        context.gates = {key: gate for key, gate in context.gates.items() if gate[0] is not node}
        if macs:
            context.multiplies(macs, made=None)
        return result

    def _operand(self, node: fx.Node) -> Any:
        """Return a node's result; that of a plain node is made when it is first read."""
        if self.env[node] is _DUE:
            assert self.compact is not None
            tensor, families = self.compact.result(self.mode.graph, node)
            self.context.carry(tensor, families)
            self.env[node] = tensor
        return self.env[node]

    def _function(self, node: fx.Node) -> Any:
        """Return the layer or function that a node calls; a method as a function of its tensor."""
        target: Any = node.target
        if node.op == "call_module":
            return self.submodules.get(target)
        return getattr(Tensor, target, None) if node.op == "call_method" else target

    def call_function(self, target: Any, args: Any, kwargs: Any) -> Any:
        """Call a function; one that asks where a tensor is, in Python, sees the network's own."""
        if target is getattr and isinstance(args[0], Tensor) and args[1] in DEVICES:
            return self.home.type == DEVICES[args[1]]
        if target is getattr or getattr(target, "__module__", "") == "_operator":
            args = tuple(
                self.home if isinstance(a, torch.device) and a.type == "meta" else a for a in args
            )
        return super().call_function(target, args, kwargs)

    def call_method(self, target: Any, args: Any, kwargs: Any) -> Any:
        """Call a method; one that names the kind of a tensor sees it beside the network's own."""
        if target == "type" and not args[1:] and not kwargs:
            return type_name(args[0], self.home)
        return super().call_method(target, args, kwargs)

    def output(self, target: Any, args: Any, kwargs: Any) -> Any:
        """Pin what reaches the model's output, and return it."""
        returned = held(args, Tensor)
        self.returned = bool(returned)
        for tensor in returned:
            self.context.use(tensor)
            for family in self.context.of(tensor):
                self.context.pin(family.labels, "the model returns these channels")
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


class _Inner(LabelInterpreter):
    """Runs a graph of a region, inside the code of the module that calls it."""

    def run_node(self, n: fx.Node) -> Any:
        self.context.node = n
        result = self._run(n)
        key = self.mode.graph, n.name
        inner = self.context.inner
        inner[key] = (*inner.get(key, ()), self.values[n.name])
        return result

    def output(self, target: Any, args: Any, kwargs: Any) -> Any:
        return fx.Interpreter.output(self, target, args, kwargs)


@contextlib.contextmanager
def regions_run(module: TracedModule, outer: LabelInterpreter) -> Iterator[None]:
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
        return torch.tensor(index, device="cpu") if index and plain else index
    return tuple(map(_numbers, index)) if isinstance(index, tuple) else index


_FORMATS = (torch.contiguous_format, torch.channels_last)
"""Layouts in memory that a new tensor can be asked for; permuted ones of other ranks are run."""


_DUE = object()
"""Stands for the result of a plain node until it is asked for."""
