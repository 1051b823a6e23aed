"""Sizes that are written into a network, and how they follow its widths.

Three kinds of them: attributes of modules (`in_channels`, `groups`, `num_features` …), literals
in the graph (`view(n, 512, 7, 7)`, `split([32, 64])`, `x[:, :16]`, `pad` …), and numbers that are
computed from widths (`view(n, heads, c // heads)`), which become literals. All are worked out
from what the dense run saw, which is kept on every node as a `Record`, so that a network can be
resized again and again.
"""

import operator
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import fx, nn
from torch.nn import functional as F

from fxprune.channels.graph import Axis, ChannelGraph, Widths
from fxprune.channels.records import KEY, Number, Record, Shape, compact_shape
from fxprune.tracing.module import TracedModule, modules_of, tensors_of


def resize(module: TracedModule, channels: ChannelGraph, widths: Widths) -> None:
    """Sets all sizes that are written into `module` to what the widths ask for, in place.

    The parameters are the caller's business, and so is `recompile`, without which the module runs
    the code of its old graph.
    """
    nodes = (node for graph in module.graphs for node in graph.nodes)
    resize_parts(module, modules_of(module).values(), nodes, channels, widths)


def resize_parts(
    module: TracedModule,
    modules: Iterable[nn.Module],
    nodes: Iterable[fx.Node],
    channels: ChannelGraph,
    widths: Widths,
) -> None:
    """Sets the sizes that are written into some modules and some nodes of `module`."""
    parameters, buffers = tensors_of(module)
    names = {id(tensor): name for name, tensor in (parameters | buffers).items()}
    for child in modules:
        kind: Any = type(child)
        mend = _mending(kind)
        if mend is not None:
            mend(child, _Sizes(child, names, channels, widths))
    for node in nodes:
        record = node.meta.get(KEY)
        if record is None:
            continue
        computed = record.is_computed
        rewrite = _NODES.get((node.op, record.target), _other if computed else None)
        if rewrite is not None and (computed or _follows(node)):
            rewrite(node, record, widths)


def _follows(node: fx.Node) -> bool:
    """Whether the node's tensors, or those it reads, have axes that follow the widths."""
    records = [n.meta[KEY] for n in (node, *node.all_input_nodes) if KEY in n.meta]
    return any(shape.axes for record in records for shape in _shapes(record.result))


def _shapes(result: Any) -> list[Shape]:
    if isinstance(result, Shape):
        return [result]
    if isinstance(result, dict):
        result = tuple(result.values())
    if isinstance(result, tuple):
        return [shape for part in result for shape in _shapes(part)]
    return []


# --- attributes of modules -------------------------------------------------------------------


@dataclass(frozen=True)
class _Sizes:
    """The sizes of one module's parameters at given widths."""

    module: nn.Module
    names: Mapping[int, str]
    channels: ChannelGraph
    widths: Widths

    def of(self, parameter: str) -> tuple[int, ...] | None:
        name = self.name(parameter)
        if name not in self.channels.axes:
            return None
        return compact_shape(name, self.channels, self.widths)

    def name(self, parameter: str) -> str:
        """The name by which the channel graph knows a parameter, which may be a tied one."""
        return self.names.get(id(getattr(self.module, parameter, None)), "")


def _mend_conv(conv: Any, sizes: _Sizes) -> None:
    shape, name = sizes.of("weight"), sizes.name("weight")
    if shape is None or name not in sizes.channels.conv_inputs:
        return
    source = sizes.channels.conv_inputs[name]
    # a network of width 1 may have a single conv group left, and must know that it had more
    if conv.transposed:
        axis = sizes.channels.axes[name].get(0)
        groups = axis.blocks(source.groups, sizes.widths) if axis else source.groups
        inputs, outputs = shape[0], shape[1] * groups
    else:
        inputs, outputs = source.length(sizes.widths), shape[0]
        groups = inputs // shape[1]
    vars(conv).update(in_channels=inputs, out_channels=outputs, groups=groups)


def _mend_linear(linear: Any, sizes: _Sizes) -> None:
    shape = sizes.of("weight")
    if shape is not None:
        linear.out_features, linear.in_features = shape


def _mend_channels(attribute: str) -> Callable[[Any, _Sizes], None]:
    def mend(module: Any, sizes: _Sizes) -> None:
        for parameter in ("weight", "bias", "running_mean"):
            shape = sizes.of(parameter)
            if shape is not None:
                setattr(module, attribute, shape[0])
                return

    return mend


def _mend_layer_norm(norm: Any, sizes: _Sizes) -> None:
    shape = sizes.of("weight") or sizes.of("bias")
    if shape is not None:
        norm.normalized_shape = shape


_MODULES: tuple[tuple[Any, Callable[[Any, _Sizes], None]], ...] = (
    (nn.modules.conv._ConvNd, _mend_conv),
    (nn.Linear, _mend_linear),
    (nn.modules.batchnorm._NormBase, _mend_channels("num_features")),
    (nn.GroupNorm, _mend_channels("num_channels")),
    (nn.PReLU, _mend_channels("num_parameters")),
    (nn.LayerNorm, _mend_layer_norm),
)


@lru_cache(maxsize=256)
def _mending(kind: Any) -> Callable[[Any, _Sizes], None] | None:
    return next((mend for base, mend in _MODULES if issubclass(kind, base)), None)


# --- literals in the graph -------------------------------------------------------------------

Rewrite = Callable[[fx.Node, Record, Widths], None]


def _literals(node: fx.Node, place: int, dense: Any, sizes: tuple[int, ...]) -> None:
    """Puts sizes for literals and computed widths from `place` on; -1 and other nodes stay."""
    nested = place < len(dense) and isinstance(dense[place], (tuple, list))
    old = dense[place] if nested else dense[place:]
    now: Any = node.args[place] if nested else node.args[place:]
    new = [
        size if isinstance(literal, (int, Number)) and literal != -1 else current
        for literal, current, size in zip(old, now, sizes, strict=True)
    ]
    head = node.args[:place]
    node.args = (*head, tuple(new), *node.args[place + 1 :]) if nested else (*head, *new)


def _view(node: fx.Node, record: Record, widths: Widths) -> None:
    if record.args[1:] == (None,):
        return  # another node gives the whole size, as in x.expand(y.shape)
    if len(record.args) > 1 and not isinstance(record.args[1], torch.dtype):
        _literals(node, 1, record.args, record.result.at(widths))


def _unflatten(node: fx.Node, record: Record, widths: Widths) -> None:
    if len(record.args) == 3:
        sizes, shape = record.args[2], record.result.at(widths)
        dim = record.args[1] % (len(shape) - len(sizes) + 1)
        _literals(node, 2, record.args, shape[dim : dim + len(sizes)])


def _split(node: fx.Node, record: Record, widths: Widths) -> None:
    """All ways to split become a split into the parts' sizes."""
    source = _input(node)
    dim = _argument(record, 2, "dim", 0)
    if source is None or not isinstance(dim, int) or dim % len(source.sizes) not in source.axes:
        return
    dim %= len(source.sizes)
    sizes = [part.at(widths)[dim] for part in record.result]
    node.target = "split" if node.op == "call_method" else torch.split
    node.args, node.kwargs = (node.args[0], sizes, dim), {}


def _getitem(node: fx.Node, record: Record, widths: Widths) -> None:
    source = _input(node)
    if source is None:
        return
    index = record.args[1] if isinstance(record.args[1], tuple) else (record.args[1],)
    current = node.args[1] if isinstance(node.args[1], tuple) else (node.args[1],)
    used = sum(part is not None and part is not Ellipsis for part in index)
    dim, new = 0, []
    for part, now in zip(index, current, strict=True):
        axis = source.axes.get(dim)
        if part is Ellipsis:
            dim += len(source.sizes) - used
            new.append(now)
            continue
        if axis is not None and isinstance(part, slice):
            new.append(_slice(axis, part, now, widths))
        elif axis is not None and isinstance(part, (int, Number)) and not isinstance(part, bool):
            place = int(part.value) if isinstance(part, Number) else part
            new.append(_place(axis, place % source.sizes[dim], now, widths))
        else:
            new.append(now)
        dim += part is not None or now is not None
    indices = tuple(new) if isinstance(node.args[1], tuple) else new[0]
    node.args = (node.args[0], indices, *node.args[2:])


def _slice(axis: Axis, dense: slice, now: Any, widths: Widths) -> Any:
    """What takes those of a slice's positions that the template keeps; `now` is what did so."""
    if dense.step not in (None, 1):  # what is left of every n-th position has no fixed step
        dense = slice(*(_plain(part) for part in (dense.start, dense.stop, dense.step)))
        inside = torch.zeros(len(axis.channel), dtype=torch.bool)
        inside[dense] = True
        return inside[axis.template(widths)].nonzero().flatten().tolist()
    start = _place(axis, dense.start, now.start, widths)
    return slice(start, _place(axis, dense.stop, now.stop, widths), dense.step)


def _narrow(node: fx.Node, record: Record, widths: Widths) -> None:
    source = _input(node)
    if source is None or len(record.args) != 4:
        return
    dim, start, length = map(_plain, record.args[1:])
    axis = source.axes.get(dim % len(source.sizes))
    if axis is not None and isinstance(start, int) and isinstance(length, int):
        first, last = (_place(axis, end, end, widths) for end in (start, start + length))
        node.args = (node.args[0], dim, first, last - first)


def _pad(node: fx.Node, record: Record, widths: Widths) -> None:
    source, amounts = _input(node), _argument(record, 1, "pad", ())
    if source is None or any(not isinstance(amount, int) for amount in amounts):
        return
    new = list(amounts)
    for dim, axis in record.result.axes.items():
        place = 2 * (len(source.sizes) - 1 - dim)
        if place < len(amounts) and any(amounts[place : place + 2]):
            kept = axis.template(widths)
            left, right = amounts[place], amounts[place] + source.sizes[dim]
            new[place] = int((kept < left).sum())
            new[place + 1] = int((kept >= right).sum())
    node.args = (node.args[0], tuple(new), *node.args[2:])
    node.kwargs = {name: value for name, value in node.kwargs.items() if name != "pad"}


def _roll(node: fx.Node, record: Record, widths: Widths) -> None:
    """As many positions go round the end as the template keeps of those that did."""
    source = _input(node)
    shifts, dims = _argument(record, 1, "shifts", None), _argument(record, 2, "dims", ())
    shifts, dims = ((v,) if isinstance(v, int) else v for v in (shifts, dims))
    if source is None or not dims or not all(isinstance(v, int) for v in (*shifts, *dims)):
        return
    new = list(shifts)
    for place, (shift, dim) in enumerate(zip(shifts, dims, strict=True)):
        axis = source.axes.get(dim % len(source.sizes))
        if axis is not None:
            size = len(axis.channel)
            new[place] = int((axis.template(widths) >= size - shift % size).sum())
    node.args, node.kwargs = (node.args[0], tuple(new), tuple(dims)), {}


def _conv(node: fx.Node, record: Record, widths: Widths) -> None:
    """The number of conv groups; one that the batch is in (a kernel an example) stays a node."""
    groups = _argument(record, 6, "groups", 1)
    source, weight = _operand(node, 0, "input"), _operand(node, 1, "weight")
    if groups not in (1, None) and source is not None and weight is not None:
        _set(node, 6, "groups", source.at(widths)[1] // weight.at(widths)[1])


def _conv_transpose(node: fx.Node, record: Record, widths: Widths) -> None:
    groups, source = _argument(record, 6, "groups", 1), _operand(node, 0, "input")
    if groups not in (1, None) and source is not None and 1 in source.axes:
        _set(node, 6, "groups", source.axes[1].blocks(int(_plain(groups)), widths))


def _layer_norm(node: fx.Node, record: Record, widths: Widths) -> None:
    dense = _argument(record, 1, "normalized_shape", ())
    _set(node, 1, "normalized_shape", record.result.at(widths)[-len(dense) :])


def _place(axis: Axis, position: Any, now: Any, widths: Widths) -> Any:
    """How many positions the template keeps before a literal one; `now` where it is no literal."""
    if isinstance(position, Number):
        position = int(position.value)
    if not isinstance(position, int):
        return now
    size = len(axis.channel)
    position = position + size if position < 0 else position
    return int((axis.template(widths) < position).sum())


def _other(node: fx.Node, record: Record, widths: Widths) -> None:
    """Numbers that are no sizes (`x / c ** 0.5`) stay what they are in the dense network."""
    del widths
    if isinstance(record.result, Shape):
        pairs = zip(record.args, node.args, strict=True)
        node.args = tuple(_plain(d) if isinstance(d, Number) else now for d, now in pairs)
        numbers = {name: v for name, v in record.kwargs.items() if isinstance(v, Number)}
        node.kwargs = {**node.kwargs, **{name: _plain(v) for name, v in numbers.items()}}


def _assertion(node: fx.Node, record: Record, widths: Widths) -> None:
    """What the code asserts of widths was true of the dense ones."""
    del widths
    if isinstance(record.args[0], Number):
        node.args = (True, *node.args[1:])


def _repeat(node: fx.Node, record: Record, widths: Widths) -> None:
    source = _input(node)
    if source is None or not isinstance(record.result, Shape):
        return
    nested = isinstance(record.args[1], (tuple, list))
    times = record.args[1] if nested else record.args[1:]
    current = node.args[1] if isinstance(node.args[1], (tuple, list)) else node.args[1:]
    shape, new = record.result.at(widths), list(current)
    for place in range(1, len(times) + 1):
        single = place > len(source.sizes) or source.sizes[-place] == 1
        if single and isinstance(times[-place], (int, Number)):
            new[-place] = shape[-place]
        else:
            new[-place] = _plain(times[-place]) if times[-place] is not None else current[-place]
    node.args = (node.args[0], *new)


def _plain(number: Any) -> Any:
    """The dense value of what may be a Number."""
    return number.value if isinstance(number, Number) else number


def _shape(node: Any) -> Shape | None:
    result = node.meta[KEY].result if isinstance(node, fx.Node) and KEY in node.meta else None
    return result if isinstance(result, Shape) else None


def _input(node: fx.Node) -> Shape | None:
    return _shape(node.args[0]) if node.args else None


def _operand(node: fx.Node, place: int, name: str) -> Shape | None:
    return _shape(node.args[place] if place < len(node.args) else node.kwargs.get(name))


def _argument(record: Record, place: int, name: str, default: Any) -> Any:
    if place < len(record.args):
        return record.args[place]
    return record.kwargs.get(name, default)


def _set(node: fx.Node, place: int, name: str, value: Any) -> None:
    if place < len(node.args):
        node.args = (*node.args[:place], value, *node.args[place + 1 :])
    else:
        node.kwargs = {**node.kwargs, name: value}


_NODES: dict[tuple[str, Any], Rewrite] = {
    **{
        ("call_method", name): rewrite
        for name, rewrite in (
            ("view", _view),
            ("reshape", _view),
            ("expand", _view),
            ("unflatten", _unflatten),
            ("split", _split),
            ("chunk", _split),
            ("tensor_split", _split),
            ("narrow", _narrow),
            ("roll", _roll),
            ("repeat", _repeat),
        )
    },
    **{
        ("call_function", function): rewrite
        for function, rewrite in (
            (torch.reshape, _view),
            (torch.split, _split),
            (torch.chunk, _split),
            (torch.tensor_split, _split),
            (torch.narrow, _narrow),
            (torch.roll, _roll),
            (operator.getitem, _getitem),
            (operator.setitem, _getitem),
            (torch._assert, _assertion),
            (F.pad, _pad),
            (F.conv1d, _conv),
            (F.conv2d, _conv),
            (F.conv3d, _conv),
            (F.conv_transpose1d, _conv_transpose),
            (F.conv_transpose2d, _conv_transpose),
            (F.conv_transpose3d, _conv_transpose),
            (F.layer_norm, _layer_norm),
        )
    },
}
