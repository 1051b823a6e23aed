"""Data movement: the op itself, run on the labels, says where each index goes.

Each family is laid out over the tensor's whole shape (with stride 0 where it does not vary), the
op moves it like data, and the result is read back. Where a view has split a labelled dimension
in two, the rows of the split are coupled, so that what is kept stays a rectangle.
"""

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from fxprune.rules.base import PINNED, Call, Context, Family, Place, Rule

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
            moved = _move(call, spread(family.labels, family.dim, tuple(x.shape)), x)
            for slot, labels in enumerate(moved):
                found = read_back(context, labels, (family.dim, slot))
                if found is not None:
                    carried[slot].append(Family(found.dim, found.labels, family.free))
        if call.op.overloadpacket in _WIDENING:
            carried[0] += _repeated(context, x, results[0])
        for result, families in zip(results, carried, strict=True):
            context.carry(result, _bound(families))


class Concatenate(Rule):
    """cat: along its dimension the labels follow each other; along others they meet."""

    keys = (aten.cat,)

    def __call__(self, context: Context, call: Call) -> None:
        out, tensors = call.out, [t for t in call["tensors"] if t.dim() == call.out.dim()]
        dim = call.args.get("dim", 0) % out.dim()
        parts = [context.along(tensor, dim) for tensor in tensors]
        families = []
        if any(part is not None for part in parts):
            families.append(Family(dim, self._joined(context, tensors, parts, dim)))
        for other in range(out.dim()):
            if other != dim:
                families += context.overlay(
                    [(tensor, other) for tensor in tensors],
                    other,
                    "it is concatenated with a tensor of fixed size",
                )
        context.carry(out, families)

    def _joined(
        self, context: Context, tensors: list[Tensor], parts: list[Tensor | None], dim: int
    ) -> Tensor:
        found = []
        for tensor, part in zip(tensors, parts, strict=True):
            labels = context.fresh(tensor.shape[dim]) if part is None else part
            if part is None:
                context.pin(labels, "they are concatenated from a tensor of fixed size")
            found.append(labels)
        joined = torch.cat(found)
        if len(np.unique(joined.numpy())) == len(joined):
            return joined
        for place, labels in enumerate(found[1:], 1):  # what is repeated can be told apart later
            if torch.isin(labels, torch.cat(found[:place])).any():
                found[place] = context.fresh(len(labels))
                context.repeated.append(found[place])
                context.meet(labels, found[place])
        return torch.cat(found)


class Stack(Rule):
    """stack: every dimension meets; the new one has a fixed size."""

    keys = (aten.stack,)

    def __call__(self, context: Context, call: Call) -> None:
        out, tensors = call.out, call["tensors"]
        new = call["dim"] % out.dim()
        families: list[Family] = []
        for dim in range(out.dim() - 1):
            families += context.overlay(
                [(tensor, dim) for tensor in tensors],
                dim if dim < new else dim + 1,
                "it is stacked with a tensor of fixed size",
            )
        context.carry(out, families)


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


class Patches(Rule):
    """im2col and back: a channel is as many as a window has places, one after the other."""

    keys = (aten.im2col, aten.col2im)

    def __call__(self, context: Context, call: Call) -> None:
        x, out = call["self"], call.out
        own = max(x.dim(), out.dim()) - 3
        often = max(out.shape[own] // x.shape[own], 1)
        carried = []
        for family in context.of(x):
            if family.dim > own:
                context.pin(family.labels, "windows slide along this dimension")
            elif family.dim == own:  # back, the places of a window are summed up
                labels = context.couple_within_rows(family.labels, out.shape[own] // often)
                carried.append(Family(own, labels.repeat_interleave(often)))
            else:
                carried.append(family)
        context.carry(out, carried)


class Gather(Rule):
    """index_select by labelled places: what is taken goes along with the place it is taken from."""

    keys = (aten.index_select,)

    def __call__(self, context: Context, call: Call) -> None:
        x, index = call["self"], call["index"]
        dim = call["dim"] % x.dim()
        if context.along(x, dim) is not None:
            context.pin_all([x, index], "its channels are chosen by their numbers")
            return
        kept = [family for family in context.of(x) if family.dim != dim]
        context.carry(call.out, [*kept, *(f.at(dim) for f in context.of(index))])


class Scatter(Rule):
    """index_copy by labelled places: what is put meets its places; the result has them all."""

    keys = (aten.index_copy,)

    def __call__(self, context: Context, call: Call) -> None:
        x, index, source = call["self"], call["index"], call["source"]
        dim = call["dim"] % x.dim()
        fixed = context.along(x, dim)
        if fixed is not None:
            context.pin(fixed, "its channels are chosen by their numbers")
        if (labels := context.along(source, dim)) is not None:
            context.meet(labels, context.along(index, 0), "it is put to places of fixed number")
            context.mixes()
        carried: list[Family] = []
        for other in range(x.dim()):
            if other != dim:
                reason = "it is put into a tensor of fixed size"
                carried += context.overlay([(x, other), (source, other)], other, reason)
        context.carry(call.out, carried)


class New(Rule):
    """A tensor of given sizes, which has no more than its dtype from the other."""

    keys = (aten.new_empty, aten.new_full, aten.new_ones, aten.new_zeros)

    def __call__(self, context: Context, call: Call) -> None:
        context.carry(call.out, ())


class ConstantPad(Rule):
    """Padding with a constant: the new indices may go with the channels that they meet."""

    keys = (aten.constant_pad_nd,)

    def __call__(self, context: Context, call: Call) -> None:
        x, pad = call["self"], call["pad"]
        families = []
        for family in context.of(x):
            place = 2 * (x.dim() - 1 - family.dim)
            left, right = pad[place : place + 2] if place < len(pad) else (0, 0)
            if left < 0 or right < 0:
                context.pin(family.labels, "padding by a negative amount cuts channels off")
                continue
            labels = family.labels
            if left or right:
                labels = torch.cat([context.fresh(left), labels, context.fresh(right)])
            families.append(Family(family.dim, labels))
        context.carry(call.out, families)


class Identity(Rule):
    """The same elements at the same places."""

    keys = (
        aten.clone,
        aten._to_copy,
        aten.contiguous,
        aten.as_strided_,
        aten.dropout,
        aten.native_dropout,
        aten.zeros_like,
        aten.ones_like,
        aten.empty_like,
        aten.full_like,
        aten.rand_like,
        aten.randn_like,
        aten.fill_,
        aten.zero_,
        aten.bernoulli,
        aten.bernoulli_,
    )

    def __call__(self, context: Context, call: Call) -> None:
        x = call.tensors()[0]
        for result in call.results():
            if result.shape != x.shape:
                context.pin_all([x], "it is restrided to another shape")
                context.carry(result, ())
            else:
                context.carry(result, context.of(x))


def spread(labels: Tensor, dim: int, shape: tuple[int, ...]) -> Tensor:
    """Lays labels [size of dim] out over `shape`, with stride 0 along the other dimensions."""
    lone = [1] * len(shape)
    lone[dim] = -1
    return labels.view(lone).expand(shape)


def read_back(context: Context, moved: Tensor, which: Place) -> Family | None:
    """The family of a tensor of labels; couples it to one dimension where it varies along more.

    Args:
        context: what is told of the coupling.
        moved: labels in the place of the tensor's elements.
        which: what tells it from the others that the call moves.
    """
    varying, thin = [], moved
    for dim, size in enumerate(moved.shape):
        if _varies(thin, dim):
            varying.append(dim)
        elif size > 1:
            thin = thin.narrow(dim, 0, 1)  # so that there is less to compare from now on
    if len(varying) > 1 or context.has_chosen(*which):
        return _coupled(context, moved, varying, which)
    if not varying:
        lone = moved.flatten()[:1]
        if lone.numel() and int(lone) != PINNED:
            context.pin(lone, "a single channel fills the whole dimension")
        return None
    return Family(varying[0], thin.reshape(-1))


def _coupled(context: Context, moved: Tensor, varying: list[int], which: Place) -> Family | None:
    """Keeps the dimension along which most labels differ; indices that share it are one channel."""
    lines = {dim: _first_line(moved, dim) for dim in varying}
    most = max(varying, key=lambda dim: (len(torch.unique(lines[dim])), dim), default=0)
    kept = context.choose(most, *which)
    for dim in range(moved.dim()):
        if dim != kept and dim not in varying:
            moved = moved.narrow(dim, 0, 1)
    rows = moved.movedim(kept, -1).reshape(-1, moved.shape[kept])
    context.meet(rows[1:].reshape(-1), rows[:1].expand(len(rows) - 1, -1).reshape(-1))
    return Family(kept, rows[0]) if moved.shape[kept] > 1 else None


def _bound(families: list[Family]) -> list[Family]:
    """Leaves out free labels that another family has joined along its dimension."""
    first = {family.dim: family for family in reversed(families)}
    first |= {family.dim: family for family in families if not family.free}
    return [f for f in families if not f.free or f is first[f.dim]]


def _repeated(context: Context, x: Tensor, out: Tensor) -> Iterator[Family]:
    """Labels for the dimensions that repeat a single value, which may be cut anywhere."""
    for dim in range(out.dim()):
        own = dim - out.dim() + x.dim()
        if out.shape[dim] > 1 and (own < 0 or x.shape[own] == 1):
            yield Family(dim, context.fresh(out.shape[dim]), free=True)


def _first_line(moved: Tensor, dim: int) -> Tensor:
    for other in range(moved.dim()):
        if other != dim:
            moved = moved.narrow(other, 0, 1)
    return moved.reshape(-1)


def _varies(moved: Tensor, dim: int) -> bool:
    size = moved.shape[dim]
    if size <= 1 or moved.stride(dim) == 0:
        return False
    if not torch.equal(moved.select(dim, 0), moved.select(dim, 1)):  # as a rule it is seen here
        return True
    return not torch.equal(moved.narrow(dim, 1, size - 1), moved.narrow(dim, 0, size - 1))


def _move(call: Call, labels: Tensor, x: Tensor) -> list[Tensor]:
    """Runs the call's op on labels in place of `x`; a view that needs a copy becomes a reshape."""
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
