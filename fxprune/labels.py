"""Label propagation: one run of the network on meta tensors, with labels beside the data.

Every index of every dimension of every parameter and buffer gets a label. The run is an fx
interpretation, so that each ATen call is known to belong to a node; the op rules say what each
call does to labels. The equalities they find are solved once, at the end, as the connected
components of a graph whose vertices are labels.
"""

import contextlib
import operator
from collections.abc import Callable, Hashable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils._python_dispatch import TorchDispatchMode

from fxprune.components import Components, components
from fxprune.errors import TraceError
from fxprune.foretold import SIZED, AtenCall, Recipe, call_of, foretold, made
from fxprune.registry import collect
from fxprune.rules.base import Call, Context, Family, Rule, tensors_in
from fxprune.traced import TracedModule, modules_of, tensors_of, where


@dataclass(frozen=True)
class Value:
    """What a node's tensor looked like.

    Attributes:
        shape: its sizes.
        families: what it carried.
        plain: its dtype and memory format where the node is a single call that was foretold, and
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
        values: for each graph (in the order of `TracedModule.graphs`), each node's values.
        batch: the length of the first dimension of the first input.
    """

    context: Context
    axes: Mapping[str, Mapping[int, Tensor]]
    values: tuple[Mapping[str, Values], ...]
    batch: int

    def components(self) -> Components:
        """Solves the equalities."""
        return components(self.context, self.context.edges)


@dataclass(frozen=True, eq=False)
class Compact:
    """A compact network that is run with the labels of the dense one.

    What the dense run foretold is not run again: its results are made of what is kept of their
    labels, and only where a node that has to run asks for them.

    Attributes:
        dense: the run of the dense network.
        kept: what is left of a vector of its labels.
        first_label: where fresh labels begin.
    """

    dense: Labelled
    kept: Callable[[Tensor], Tensor]
    first_label: int

    def is_plain(self, graph: int, node: fx.Node) -> bool:
        """Whether the node needs not be run."""
        value = self.dense.values[graph].get(node.name)
        return node.op == "output" or (isinstance(value, Value) and value.plain is not None)

    def running(self, module: TracedModule) -> tuple[list[fx.Node], list[nn.Module]]:
        """The nodes that have to run, and the modules that they call with all in them."""
        nodes = [
            node
            for number, graph in enumerate(module.graphs)
            for node in graph.nodes
            if not self.is_plain(number, node)
        ]
        called = [module.get_submodule(str(n.target)) for n in nodes if n.op == "call_module"]
        return nodes, [part for child in called for part in modules_of(child).values()]

    def result(self, graph: int, node: fx.Node) -> tuple[Tensor, list[Family]]:
        """What a plain node comes to: a meta tensor and what it carries."""
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
    """Runs all of a module's graphs on meta tensors and follows the labels.

    Args:
        module: the traced network; its parameters are not touched.
        inputs: example inputs, of any dtype and device.
        compact: for a network of fewer channels, resized already, how its labels are those of the
            dense one.

    Raises:
        TraceError: the network does not run on inputs of this shape.
    """
    _rules()  # a broken rule is no fault of the model
    tensors = _visible(module, compact)
    if compact is None:
        context = Context()
        meta = {name: _to_meta(tensor) for name, tensor in tensors.items()}
        axes = _fresh_axes(context, meta)
    else:
        choices = dict(compact.dense.context.choices)
        context = Context(next_label=compact.first_label, choices=choices)
        known = {
            name: {dim: compact.kept(labels) for dim, labels in compact.dense.axes[name].items()}
            for name in tensors
        }
        meta = {name: _compact(tensor, known[name]) for name, tensor in tensors.items()}
        axes = {
            name: {dim: labels for dim, labels in dims.items() if len(labels) > 1}
            for name, dims in known.items()
        }
    for name, tensor in meta.items():
        context.parametric(tensor)
        context.carry(tensor, [Family(dim, labels) for dim, labels in axes[name].items()])
    context.sightings.clear()  # parameters are known by their axes
    with _lent(module, {id(tensor): meta[name] for name, tensor in tensors.items()}):
        values = tuple(
            _run(module, graph, inputs, _LabelMode(context, number), compact)
            for number, graph in enumerate(module.graphs)
        )
    batch = inputs[0].shape[0] if inputs and inputs[0].dim() else 1
    return Labelled(context, axes, values, batch)


def _visible(module: TracedModule, compact: Compact | None) -> dict[str, Tensor]:
    """The parameters and buffers by name; those only that nodes which have to run can see."""
    parameters, buffers = tensors_of(module)
    tensors = parameters | buffers
    if compact is None:
        return tensors
    nodes, modules = compact.running(module)
    read = [
        operator.attrgetter(str(node.target))(module) for node in nodes if node.op == "get_attr"
    ]
    seen = {id(value) for value in read}
    for child in modules:
        seen |= {id(t) for kind in ("_parameters", "_buffers") for t in vars(child)[kind].values()}
    return {name: tensor for name, tensor in tensors.items() if id(tensor) in seen}


class _Interpreter(fx.Interpreter):
    """Runs a graph and keeps, for each node, what its tensors carried."""

    def __init__(
        self, module: TracedModule, graph: fx.Graph, mode: "_LabelMode", compact: Compact | None
    ) -> None:
        super().__init__(module, graph=graph, garbage_collect_values=False)
        self.mode, self.context, self.compact = mode, mode.context, compact
        self.values: dict[str, Values] = {}
        self.extra_traceback = False

    def run_node(self, n: fx.Node) -> Any:
        if self.compact is not None and self.compact.is_plain(self.mode.graph, n):
            return _DUE
        self.context.node = n
        operand = self.env.__getitem__ if self.compact is None else self._operand
        args = fx.map_arg(n.args, operand)
        kwargs = fx.map_arg(n.kwargs, operand) if n.kwargs else {}
        call = self._call(n, args, kwargs)
        look = None if call is None else foretold(*call)
        if call is not None and look is not None:
            chosen = len(self.context.choices)
            out = _made(look, call[1])
            self.mode.follow(*call, {}, out)
            result: Any = out[0] if look[0] else out
            plain = chosen == len(self.context.choices) and call[0] not in SIZED
            self.values[n.name] = self._described(result, plain)
        else:
            with self.mode:
                result = getattr(self, n.op)(n.target, args, kwargs)
            self.values[n.name] = self._describe(result)
        return result

    def _operand(self, node: fx.Node) -> Any:
        """What a node gave, or what it would have given."""
        if self.env[node] is _DUE:
            assert self.compact is not None
            tensor, families = self.compact.result(self.mode.graph, node)
            self.context.carry(tensor, families)
            self.env[node] = tensor
        return self.env[node]

    def _call(self, node: fx.Node, args: Any, kwargs: Any) -> AtenCall | None:
        """The ATen call that a node is, where it is a single one."""
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
        if not plain:
            return Value(tuple(tensor.shape), families)
        format_ = torch.contiguous_format if tensor.is_contiguous() else torch.channels_last
        return Value(tuple(tensor.shape), families, (tensor.dtype, format_))


_DUE = object()
"""Stands for the result of a plain node until it is asked for."""


@contextlib.contextmanager
def _lent(module: nn.Module, tensors: Mapping[int, Tensor]) -> Iterator[None]:
    """Puts a module into evaluation mode, with other tensors in the place of its own, by id."""
    children = modules_of(module).values()
    training = [child for child in children if child.training]
    homes: list[tuple[dict[str, Any], str, Tensor]] = [
        (home, name, own)
        for child in children
        for home in (vars(child)["_parameters"], vars(child)["_buffers"])
        for name, own in home.items()
        if id(own) in tensors
    ]
    try:
        for child in training:
            child.training = False
        for home, name, own in homes:
            home[name] = tensors[id(own)]
        yield
    finally:
        for home, name, own in homes:
            home[name] = own
        for child in training:
            child.training = True


def _run(
    module: TracedModule,
    graph: fx.Graph,
    inputs: tuple[Tensor, ...],
    mode: "_LabelMode",
    compact: Compact | None,
) -> dict[str, Values]:
    context = mode.context
    interpreter = _Interpreter(module, graph, mode, compact)
    context.products.clear()  # macs are those of the last graph, which is the evaluation graph
    examples = tuple(_to_meta(tensor) for tensor in inputs)
    try:
        with torch.no_grad():
            interpreter.run(*examples, enable_io_processing=False)
    except Exception as error:
        node = context.node
        first = str(error).strip().splitlines() or [""]
        raise TraceError(
            f"the model does not run on inputs of shape {[tuple(x.shape) for x in inputs]}",
            at=where(node) if node is not None else "",
            why=f"{type(error).__name__}: {first[0]}",
            do="give example inputs of the shape the model takes, with the batch first",
            node=node.name if node is not None else "",
        ) from error
    return interpreter.values


class _LabelMode(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Sees every ATen call and hands it to the rule of its op."""

    def __init__(self, context: Context, graph: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.context, self.graph = context, graph
        self.seen: dict[Any, Any] = {}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        inputs = tensors_in((*args, *kwargs.values()))
        if any(tensor.is_meta for tensor in inputs) and not all(t.is_meta for t in inputs):
            args, kwargs = _lift((args, kwargs))
        out = self._run(func, args, kwargs)
        self.follow(func, args, kwargs, out)
        return out

    def follow(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
        """Hands a call and its result to the rule of its op."""
        context = self.context
        inputs = tensors_in((*args, *kwargs.values()))
        computed = bool(inputs) and all(context.is_parametric(tensor) for tensor in inputs)
        known = len(context.edges)
        rule = _rule(func)
        if rule is not None:  # also where nothing carries labels: macs are counted all the same
            context.read(self.graph, func.__name__, inputs)
            rule(context, Call(func, _bind(func, args, kwargs), out, args, kwargs))
        elif tensors_in((out,)):
            context.pin_all(inputs, f"there is no rule for {func.overloadpacket}")
        if computed:
            context.computed += context.edges[known:]
            for tensor in tensors_in((out,)):
                context.parametric(tensor)

    def _run(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Runs an op; what was seen before is not run again, since meta ops are slow."""
        resized = torch.Tag.inplace_view in func.tags
        if func.is_view or resized or not kwargs.keys().isdisjoint(("out", "device")):
            return func(*args, **kwargs)
        if not kwargs and (look := foretold(func, args)) is not None:
            return _made(look, args)
        key = _key((func, args, tuple(kwargs.items())))
        if key is None:
            return func(*args, **kwargs)
        if key not in self.seen:
            out = func(*args, **kwargs)
            parts = out if isinstance(out, tuple) else (out,)
            if all(isinstance(part, Tensor) and part.is_meta for part in parts):
                self.seen[key] = isinstance(out, tuple), [_recipe(part, args) for part in parts]
            return out
        return _made(self.seen[key], args)


def _recipe(result: Tensor, args: tuple[Any, ...]) -> Recipe:
    same = next((place for place, value in enumerate(args) if value is result), None)
    return (result.shape, result.stride(), result.dtype) if same is None else same


def _made(look: tuple[bool, list[Recipe]], args: tuple[Any, ...]) -> Any:
    several, recipes = look
    parts = tuple(made(recipe, args) for recipe in recipes)
    return parts if several else parts[0]


@cache
def _rule(func: Any) -> Rule | None:
    known = _rules()
    for key in (func, func.overloadpacket, *func.tags):
        if key in known:
            return known[key]()
    return None


@cache
def _rules() -> Mapping[Any, type[Rule]]:
    return collect("fxprune.rules", Rule)  # type: ignore[type-abstract]


def _bind(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """The call's arguments by the names of the op's schema; absent ones have their defaults."""
    bound = _defaults(func) | kwargs
    bound.update(zip(bound, args, strict=False))
    return bound


@cache
def _defaults(func: Any) -> dict[str, Any]:
    """The op's arguments in their order, each with its default or None."""
    return {
        argument.name: argument.default_value if argument.has_default_value() else None
        for argument in func._schema.arguments
    }


def _key(value: Any) -> Any:
    """What tells one call from another; None where something in it cannot be compared."""
    if isinstance(value, Tensor):
        return (value.shape, value.stride(), value.dtype) if value.is_meta else None
    if isinstance(value, (list, tuple)):
        parts = tuple(_key(part) for part in value)
        return None if None in parts else parts
    return _NONE if value is None else value if isinstance(value, Hashable) else None


_NONE = object()


def _fresh_axes(context: Context, tensors: Mapping[str, Tensor]) -> dict[str, dict[int, Tensor]]:
    dims = {n: [d for d, size in enumerate(t.shape) if size > 1] for n, t in tensors.items()}
    sizes = [tensors[name].shape[dim] for name, own in dims.items() for dim in own]
    vectors = iter(context.fresh_vectors(sizes) if sizes else ())
    return {name: {dim: next(vectors) for dim in own} for name, own in dims.items()}


def _to_meta(tensor: Tensor) -> Tensor:
    if tensor.is_contiguous():  # much the quicker way
        return torch.empty(tensor.shape, dtype=tensor.dtype, device="meta")
    return torch.empty_like(tensor, device="meta", requires_grad=False)


def _compact(tensor: Tensor, axes: Mapping[int, Tensor]) -> Tensor:
    shape = [len(axes[dim]) if dim in axes else size for dim, size in enumerate(tensor.shape)]
    return torch.empty(shape, dtype=tensor.dtype, device="meta")


def _lift(value: Any) -> Any:
    """Puts constants made inside forward on the meta device, beside the tensors they meet."""
    if isinstance(value, Tensor):
        return value if value.is_meta else _to_meta(value)
    if isinstance(value, dict):
        return {key: _lift(part) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(_lift(part) for part in value)
    return value
