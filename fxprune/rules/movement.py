"""Data movement: the op itself, run on the labels, says where each index goes.

Each family is laid out over the tensor's whole shape (with stride 0 where it does not vary), the
op moves it like data, and the result is read back. Where a view has split a labelled dimension
in two, the rows of the split are coupled, so that what is kept stays a rectangle.
"""

import operator
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, fx

from fxprune.channels.graph import Axis, Widths
from fxprune.channels.records import KEY, Number, Record, Shape
from fxprune.channels.sizes import (
    CallSizes,
    argument,
    input_of,
    kept_before,
    plain,
    set_argument,
    set_literals,
)
from fxprune.rules.base import Call, Context, Family, Rule
from fxprune.rules.layout import distinct, read_back, spread

aten = torch.ops.aten


class Movement(Rule):
    """One tensor in, its elements moved, one or several tensors out."""

    keys = (
        aten.view,
        aten._unsafe_view,
        aten.reshape,
        aten._reshape_alias,
        aten.permute,
        aten.transpose,
        aten.t,
        aten.numpy_T,
        aten.movedim,
        aten.unsqueeze,
        aten.squeeze,
        aten.expand,
        aten.select,
        aten.slice,
        aten.narrow,
        aten.split,
        aten.split_with_sizes,
        aten.unsafe_split,
        aten.unsafe_split_with_sizes,
        aten.chunk,
        aten.unbind,
        aten.unfold,
        aten.diagonal,
        aten.alias,
        aten.detach,
        aten.lift_fresh,
        aten._unsafe_index,
        aten.repeat,
        aten.flip,
        aten.roll,
        aten.rot90,
        aten.pixel_shuffle,
        aten.pixel_unshuffle,
        aten.reflection_pad1d,
        aten.reflection_pad2d,
        aten.reflection_pad3d,
        aten.replication_pad1d,
        aten.replication_pad2d,
        aten.replication_pad3d,
    )

    def __call__(self, context: Context, call: Call) -> None:
        x = call.tensors()[0]
        results = call.results()
        carried: list[list[Family]] = [[] for _ in results]
        for family in context.of(x):
            labels = family.labels
            if call.op.overloadpacket is aten.roll:
                labels = distinct(context, labels)
            moved = _move(call, spread(labels, family.dim, tuple(x.shape)), x)
            for slot, part in enumerate(moved):
                found = read_back(context, part, (family.dim, slot))
                if _is_cut_to_nothing(x, part) and part.shape[family.dim] == len(labels):
                    found = family  # none of the images are left, as in x[:0]
                if found is not None:
                    carried[slot].append(Family(found.dim, found.labels, family.free))
        if call.op.overloadpacket in _WIDENING:
            carried[0] += _repeated(context, x, results[0])
        if call.op.overloadpacket is aten.repeat:
            blocks = list(_blocks(context, x, results[0]))
            among = {family.dim for family in blocks}
            carried[0] = [family for family in carried[0] if family.dim not in among] + blocks
        for result, families in zip(results, carried, strict=True):
            context.carry(result, _bound(families))


def _is_cut_to_nothing(x: Tensor, part: Tensor) -> bool:
    return x.numel() > 0 and part.numel() == 0 and part.dim() == x.dim()


class ChannelShuffle(Rule):
    """Rows and columns of the channels, seen as [groups, n], change places.

    The number of groups is the module's own, so it stays: each group loses the same positions.
    """

    keys = (aten.channel_shuffle, aten.native_channel_shuffle)

    def __call__(self, context: Context, call: Call) -> None:
        x, groups = call["self"], call["groups"]
        carried = []
        for family in context.of(x):
            if family.dim == 1:
                lead = context.couple_rows(family.labels, groups)
                family = Family(1, lead.repeat_interleave(groups))
            carried.append(family)
        context.carry(call.out, carried)


class ViewSizes(CallSizes):
    """Sizes that a call spells out: those that are literals follow the result."""

    keys = (
        "view",
        "reshape",
        "expand",
        torch.reshape,
    )

    def __call__(self, node: fx.Node, record: Record, widths: Widths) -> None:
        if record.args[1:] == (None,):
            return  # another node gives the whole size, as in x.expand(y.shape)
        if len(record.args) > 1 and not isinstance(record.args[1], torch.dtype):
            sizes = record.result.at(widths)
            set_literals(node, 1, record.args, sizes)
            nested = isinstance(node.args[1], (tuple, list))
            given: Any = node.args[1] if nested else node.args[1:]
            pairs = zip(given, sizes, strict=True)
            stuck = [at for at, (number, size) in enumerate(pairs) if _is_stuck(number, size)]
            if node.target != "expand" and len(stuck) == 1 and -1 not in given:
                new = (*given[: stuck[0]], -1, *given[stuck[0] + 1 :])
                node.args = (node.args[0], new) if nested else (node.args[0], *new)


def _is_stuck(number: Any, size: int) -> bool:
    """Tell whether a computed size stays as it is where another is due, as in `b * 16`."""
    record = number.meta.get(KEY) if isinstance(number, fx.Node) else None
    found = record.result if record else None
    return isinstance(found, Number) and not found.follows and found.value != size


class UnflattenSizes(CallSizes):
    """The sizes that one dimension is split into."""

    keys = ("unflatten", torch.unflatten)

    def __call__(self, node: fx.Node, record: Record, widths: Widths) -> None:
        if len(record.args) == 3 and record.args[2] is not None:  # None: another node's sizes
            sizes, shape = record.args[2], record.result.at(widths)
            dim = record.args[1] % (len(shape) - len(sizes) + 1)
            set_literals(node, 2, record.args, shape[dim : dim + len(sizes)])


class SplitSizes(CallSizes):
    """All ways to split become a split into the parts' sizes."""

    keys = (
        "split",
        "split_with_sizes",
        "chunk",
        "tensor_split",
        "unsafe_split",
        "unsafe_chunk",
        torch.split,
        torch.chunk,
        torch.tensor_split,
        torch.unsafe_split,
        torch.unsafe_chunk,
    )

    def __call__(self, node: fx.Node, record: Record, widths: Widths) -> None:
        source = input_of(node)
        dim = argument(record, 2, "dim", 0)
        if source is None or not isinstance(dim, int) or dim % len(source.sizes) not in source.axes:
            return
        dim %= len(source.sizes)
        sizes = [part.at(widths)[dim] for part in record.result]
        node.target = "split" if node.op == "call_method" else torch.split
        node.args, node.kwargs = (node.args[0], sizes, dim), {}


class IndexSizes(CallSizes):
    """Positions and slices in `x[…]`."""

    keys = (
        operator.getitem,
        operator.setitem,
    )

    def __call__(self, node: fx.Node, record: Record, widths: Widths) -> None:
        source = input_of(node)
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
            elif (
                axis is not None and isinstance(part, (int, Number)) and not isinstance(part, bool)
            ):
                position = int(part.value) if isinstance(part, Number) else part
                new.append(kept_before(axis, position % source.sizes[dim], now, widths))
            elif axis is not None and isinstance(part, list):
                new.append(_listed(axis, part, now, widths))
            else:
                new.append(now)
            dim += part is not None or now is not None
        indices = tuple(new) if isinstance(node.args[1], tuple) else new[0]
        node.args = (node.args[0], indices, *node.args[2:])


class SelectSizes(CallSizes):
    """The position that is selected, counted among those that are kept."""

    keys = ("select", torch.select)

    def __call__(self, node: fx.Node, record: Record, widths: Widths) -> None:
        source = input_of(node)
        dim, index = argument(record, 1, "dim", None), argument(record, 2, "index", None)
        if source is None or not isinstance(dim, int) or not isinstance(index, (int, Number)):
            return
        axis = source.axes.get(dim % len(source.sizes))
        if axis is not None:
            position = int(plain(index)) % len(axis.channel)
            set_argument(node, 2, "index", kept_before(axis, position, index, widths))


class SqueezeSizes(CallSizes):
    """A dimension that follows the widths stays, also where one channel is left of it."""

    keys = ("squeeze", torch.squeeze)

    def __call__(self, node: fx.Node, record: Record, widths: Widths) -> None:
        del widths
        source = input_of(node)
        if source is None or not source.axes:
            return
        given = argument(record, 1, "dim", tuple(range(len(source.sizes))))
        dims = [dim % len(source.sizes) for dim in ((given,) if isinstance(given, int) else given)]
        node.args = (node.args[0], tuple(dim for dim in dims if dim not in source.axes))
        node.kwargs = {}


class NarrowSizes(CallSizes):
    """The start and the length of a narrowed dimension."""

    keys = (
        "narrow",
        torch.narrow,
    )

    def __call__(self, node: fx.Node, record: Record, widths: Widths) -> None:
        source = input_of(node)
        if source is None or len(record.args) != 4:
            return
        dim, start, length = map(plain, record.args[1:])
        axis = source.axes.get(dim % len(source.sizes))
        if axis is not None and isinstance(start, int) and isinstance(length, int):
            first, last = (kept_before(axis, end, end, widths) for end in (start, start + length))
            node.args = (node.args[0], dim, first, last - first)


class RollSizes(CallSizes):
    """As many positions go round the end as the template keeps of those that did."""

    keys = (
        "roll",
        torch.roll,
    )

    def __call__(self, node: fx.Node, record: Record, widths: Widths) -> None:
        source = input_of(node)
        shifts, dims = argument(record, 1, "shifts", None), argument(record, 2, "dims", ())
        shifts, dims = ((v,) if isinstance(v, int) else v for v in (shifts, dims))
        if source is None or not dims or not all(isinstance(v, int) for v in (*shifts, *dims)):
            return
        new = list(shifts)
        for at, (shift, dim) in enumerate(zip(shifts, dims, strict=True)):
            axis = source.axes.get(dim % len(source.sizes))
            if axis is not None:
                size = len(axis.channel)
                new[at] = int((axis.template(widths) >= size - shift % size).sum())
        node.args, node.kwargs = (node.args[0], tuple(new), tuple(dims)), {}


class RepeatSizes(CallSizes):
    """How often a single value is repeated."""

    keys = ("repeat",)

    def __call__(self, node: fx.Node, record: Record, widths: Widths) -> None:
        source = input_of(node)
        if source is None or not isinstance(record.result, Shape):
            return
        nested = isinstance(record.args[1], (tuple, list))
        times = record.args[1] if nested else record.args[1:]
        current = node.args[1] if isinstance(node.args[1], (tuple, list)) else node.args[1:]
        shape, new = record.result.at(widths), list(current)
        for last in range(1, len(times) + 1):
            size = 1 if last > len(source.sizes) else source.at(widths)[-last]
            if size and isinstance(times[-last], (int, Number)):
                new[-last] = shape[-last] // size
            else:
                new[-last] = plain(times[-last]) if times[-last] is not None else current[-last]
        node.args = (node.args[0], *new)


class InterleaveSizes(CallSizes):
    """The length that a call of `repeat_interleave` is told beforehand."""

    keys = ("repeat_interleave", torch.repeat_interleave)

    def __call__(self, node: fx.Node, record: Record, widths: Widths) -> None:
        given = record.kwargs.get("output_size")
        if isinstance(given, (int, Number)) and isinstance(record.result, Shape):
            dim = argument(record, 2, "dim", 0)  # without one the result has a single dimension
            node.kwargs = {**node.kwargs, "output_size": record.result.at(widths)[dim]}


def _listed(axis: Axis, dense: list[Any], now: Any, widths: Widths) -> Any:
    """Number the positions of a list among those that are kept; `now` where they are no numbers.

    Of 6 channels of which 0, 2 and 5 are kept, [5, 1, 2] becomes [2, 1].
    """
    if any(type(position) is not int for position in dense):
        return now
    rank = {position: at for at, position in enumerate(axis.template(widths).tolist())}
    counted = (position % len(axis.channel) for position in dense)
    return [rank[position] for position in counted if position in rank]


def _slice(axis: Axis, dense: slice, now: Any, widths: Widths) -> Any:
    """Make the slice of the positions that the template keeps; `now` is what stands there."""
    if dense.step not in (None, 1):  # what is left of every n-th position has no fixed step
        dense = slice(*(plain(part) for part in (dense.start, dense.stop, dense.step)))
        inside = torch.zeros(len(axis.channel), dtype=torch.bool, device="cpu")
        inside[dense] = True
        return inside[axis.template(widths)].nonzero().flatten().tolist()
    start = kept_before(axis, dense.start, now.start, widths)
    return slice(start, kept_before(axis, dense.stop, now.stop, widths), dense.step)


def _bound(families: list[Family]) -> list[Family]:
    """Leave out free labels that another family has joined along its dimension."""
    first = {family.dim: family for family in reversed(families)}
    first |= {family.dim: family for family in families if not family.free}
    return [f for f in families if not f.free or f is first[f.dim]]


def _repeated(context: Context, x: Tensor, out: Tensor) -> Iterator[Family]:
    """Make labels for the dimensions that repeat a single value, which may be cut anywhere."""
    for dim in range(out.dim()):
        own = dim - out.dim() + x.dim()
        if out.shape[dim] > 1 and (own < 0 or x.shape[own] == 1):
            yield Family(dim, context.fresh(out.shape[dim]), free=True)


def _blocks(context: Context, x: Tensor, out: Tensor) -> Iterator[Family]:
    """Make labels for the dimensions along which a few filters, or the like, are often repeated.

    So do the four of a wavelet, `filters.repeat(c, 1, 1, 1)`: whole blocks of them can go. Where
    there are more filters than blocks, they are channels, and the blocks have the same ones.
    """
    if not context.is_parametric(x):
        return
    for dim in range(out.dim() - x.dim(), out.dim()):
        size = x.shape[dim - out.dim() + x.dim()]
        often = out.shape[dim] // size if size else 0
        if size > 1 and context.choose(int(often > size), dim):
            labels = context.fresh(often).repeat_interleave(size)
            yield Family(dim, labels, free=True)


def _move(call: Call, labels: Tensor, x: Tensor) -> list[Tensor]:
    """Run the call's op on labels in place of `x`; a view that needs a copy becomes a reshape."""
    if call.op.overloadpacket in (aten.view, aten._unsafe_view, aten.reshape, aten._reshape_alias):
        return [labels.reshape(call.out.shape)]
    # pads are defined for floating point only; labels stay exact below 2**53
    data = labels.double() if call.op.overloadpacket in _PADS else labels
    positional = [data if value is x else value for value in call.positional]
    keywords = {name: data if value is x else value for name, value in call.keywords.items()}
    moved = call.op(*positional, **keywords)
    return [part.long() for part in (moved if isinstance(moved, (list, tuple)) else [moved])]


_PADS = frozenset(packet for packet in Movement.keys if "_pad" in str(packet))
_WIDENING = (aten.expand, aten.repeat)
