"""From labels to channels: solves the equalities and reads the channel dependency graph off them.

Components of equal labels become channels. Channels are interchangeable, and form a group, where
they stood in the same tensors as often, and with their positions in the same order: every place
where labels stood has a random 64-bit mark, and a channel's signature is the sum of the marks of
its places, each mixed with what stood there which time.
"""

import math
import operator
from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, fx

from fxprune.analysis.context import Pin, Product
from fxprune.analysis.equalities import Ints, components, copy_to_others
from fxprune.analysis.propagation import Labelled, Value
from fxprune.analysis.zeros import without_zeros
from fxprune.channels.graph import (
    FIXED,
    Axes,
    Axis,
    ChannelGraph,
    ChannelGroup,
    Factor,
    Gate,
    GroupedInput,
    Layout,
    Member,
    Pinned,
    Role,
    Term,
)
from fxprune.channels.records import KEY, Number, Record, Shape
from fxprune.rules.base import PINNED
from fxprune.tracing.module import TracedModule, tensors_of
from fxprune.user_lines import where

AxesByName = Mapping[str, Axes]


class Solution:
    """What one solution of the equalities says; `extra` are pins that trials have added."""

    def __init__(self, labelled: Labelled, module: TracedModule, extra: list[Pin]) -> None:
        self.labelled, self.module = labelled, module
        self.context = labelled.context
        parameters, buffers = tensors_of(module)
        self.parameters = tuple(parameters)
        self.shapes = {n: tuple(tensor.shape) for n, tensor in (parameters | buffers).items()}
        self.pins = [*self.context.pins, *extra]
        solved = labelled.components()
        self.number, self.component = solved.count, solved.of
        self.names = [(name, dim) for name, dims in labelled.axes.items() for dim in dims]
        self.starts = self.context.starts[: len(self.names)]  # their labels were made first
        self.sizes = [labels.numel() for labels in self.context.made[: len(self.names)]]
        self.lead = solved.lead[: len(self.names)]
        given = zip(self.context.made, self.lead.tolist(), strict=False)
        self.place = {id(labels): lead for labels, lead in given}
        self.channel_of = np.full(self.number, FIXED, dtype=np.int64)
        self.axes: dict[int, Axis | None] = {}
        self.known: dict[bytes, Axis] = {}
        self._number_channels()

    def graph(self) -> ChannelGraph:
        """Build the channel dependency graph."""
        axes = {
            name: dims
            for name, by_dim in self.labelled.axes.items()
            if (dims := {dim: axis for dim, v in by_dim.items() if (axis := self.axis(v))})
        }
        return ChannelGraph(
            groups=tuple(self._groups(axes)),
            pinned=tuple(self._pinned()),
            layout=self.layout,
            axes=axes,
            shapes=self.shapes,
            gates=tuple(self._gates(axes)),
            conv_inputs=self._inputs(self.context.conv_inputs),
            norm_inputs=self._inputs(self.context.norm_inputs),
            transposed_inputs=self._inputs(self.context.transposed_inputs),
            macs_terms=tuple(self._macs()),
            params_terms=tuple(
                Term(name, 1, self._factors(name, self.shapes[name], axes))
                for name in self.parameters
            ),
            mixing=tuple(dict.fromkeys(_place(node) for node in self.context.mixing)),
        )

    def with_lost_zeros(self, channels: ChannelGraph) -> ChannelGraph:
        """Add the nodes to `mixing` whose weight is not zero where its channel is removed."""
        parameters, buffers = tensors_of(self.module)
        tensors = parameters | buffers
        homes = {name for name, _ in self.module.origin.entries.values() if name is not None}
        lost = without_zeros(
            self.context,
            channels.groups,
            lambda labels: torch.from_numpy(self.channel_of[self._of(labels)]),
            tensors,
            frozenset(homes or tensors),
        )
        mixing = dict.fromkeys((*channels.mixing, *map(_place, lost)))
        return replace(channels, mixing=tuple(mixing))

    def write_records(self) -> None:
        """Give every node its Record, in place of what an earlier solution wrote."""
        for graph, values in zip(self.module.graphs, self.labelled.values, strict=True):
            for node in graph.nodes:
                old = node.meta.get(KEY)
                target = old.target if old else node.target
                args = old.args if old else fx.map_arg(node.args, _given)
                kwargs = old.kwargs if old else dict(fx.map_arg(node.kwargs, _given))
                result = self._numbers(node, self._shapes(values.get(node.name)))
                node.meta[KEY] = Record(result, target, args, kwargs)

    def axis(self, labels: Tensor) -> Axis | None:
        """Return the axis that labels stand for; None where all of it is fixed."""
        place = self.place.get(id(labels), id(labels))
        if place not in self.axes:
            channel = self.channel_of[self._of(labels)]
            key = channel.tobytes()
            if key not in self.known:
                self.known[key] = Axis(torch.from_numpy(channel), self.layout)
            axis = self.known[key]
            self.axes[place] = axis if axis.factor.per_channel else None
        return self.axes[place]

    def _value(self, node: fx.Node) -> Any:
        """Return what the dense run saw of a node."""
        found = (values.get(node.name) for values in self.labelled.values)
        return next((value for value in found if value is not None), None)

    def _of(self, labels: Tensor) -> Ints:
        """Return the component of each label."""
        found: Ints = self.component[labels.numpy()]
        return found

    def owner(self, labels: Tensor) -> tuple[str, int] | None:
        """Return the parameter and dimension to which the first label was given."""
        first = int(labels[0])
        place = bisect_right(self.starts, first) - 1
        inside = place >= 0 and first < self.starts[place] + self.sizes[place]
        return self.names[place] if inside else None

    def around(self, node: fx.Node | None, why: str) -> Pin:
        """Pin the channels at a node and at its inputs; all of them where it has none."""
        near = [] if node is None else [node, *node.all_input_nodes]
        for other in near:  # grows: a size leads to the tensor whose size it is
            if other is not node and not isinstance(self._value(other), Value):
                near += [source for source in other.all_input_nodes if source not in near]
        labels = [labels for other in near for labels in families(self._value(other))]
        if node is not None and node.op == "call_module":
            own = f"{node.target}."
            labels += [
                labels
                for name, dims in self.labelled.axes.items()
                if name.startswith(own)
                for labels in dims.values()
            ]
        free = [v for v in labels if (self.channel_of[self._of(v)] != FIXED).any()]
        if not free:
            free = [labels for dims in self.labelled.axes.values() for labels in dims.values()]
        return Pin(torch.cat(free), f"the code here does not follow narrow widths: {why}", node)

    def _number_channels(self) -> None:
        """Find which components are channels, and which of them are interchangeable."""
        held = np.zeros(self.number, dtype=bool)
        held[self.component[PINNED]] = True
        for pin in self.pins:
            held[self._of(pin.labels)] = True
        alive = np.bincount(self.component, minlength=self.number) > 1
        for labels, _ in self.context.roles:
            alive[self._of(labels)] = True
        # a label that met no other and has no role belongs to no layer; parameters' come first
        owned = self.component[: sum(self.sizes) + 1].max() + 1
        chosen = np.flatnonzero(alive[:owned] & ~held[:owned])
        marks = self._signatures()[chosen]
        _, leader, group = np.unique(marks, return_index=True, return_inverse=True)
        place = np.argsort(np.argsort(leader))  # groups in the order of their first channel
        order = np.argsort(place[group], kind="stable")
        self.channel_of[chosen[order]] = np.arange(len(chosen))
        self.layout = Layout(tuple(np.bincount(place[group]).tolist()) if len(chosen) else ())

    def _signatures(self) -> npt.NDArray[np.uint64]:
        """Compute what tells channels of different groups apart: uint64 [components]."""
        signatures = np.zeros(self.number, dtype=np.uint64)
        vectors, marks = self._sightings()
        labels, lengths = _joined(vectors), [len(vector) for vector in vectors]
        own = self.component[labels]
        with np.errstate(over="ignore"):
            mixed = _mixed(_occurrence(own, lengths), self._ranks()[labels])
            np.add.at(signatures, own, np.repeat(marks, lengths) * mixed)
        return signatures

    def _ranks(self) -> Ints:
        """Compute what tells a channel's labels apart: where they were made, and which one each is.

        A label of a parameter has its own, by the vector that it was made in. Of those of no
        parameter, all are one, such as those of a padding, but for what a concatenation repeats.
        """
        leads = [self.context.made[place].numpy() for place in np.unique(self.lead)]
        labels, lengths = _joined(leads), [len(lead) for lead in leads]
        ranks = np.zeros(self.context.next_label, dtype=np.int64)
        ranks[labels] = _occurrence(self.component[labels], lengths)
        copy_to_others(self.context, self.lead, ranks)
        owned = 1 + sum(self.sizes)
        ranks[1:owned] += np.repeat(np.array(self.starts, dtype=np.int64), self.sizes)
        ranks[owned:] = self.context.next_label
        for number, repeated in enumerate(self.context.repeated, 1):
            ranks[repeated.numpy()] += number
        return ranks

    def _sightings(self) -> tuple[list[Ints], npt.NDArray[np.uint64]]:
        """Return every vector of labels that was seen, with a random mark for where it was seen.

        Of parameters that are connected as a whole there is one, with the sum of their marks.
        """
        places = [labels for _, labels in self.context.sightings]
        places += self.context.made[: len(self.names)]
        marks = np.random.default_rng(0).integers(0, 2**63, len(places), np.uint64)
        keys = [self.place.get(id(labels), id(labels)) for labels in places]
        vectors = dict(zip(keys, places, strict=True))
        number = {known: place for place, known in enumerate(vectors)}
        sums = np.zeros(len(vectors), dtype=np.uint64)
        with np.errstate(over="ignore"):
            np.add.at(sums, [number[known] for known in keys], marks)
        return [labels.numpy() for labels in vectors.values()], sums

    def _groups(self, axes: AxesByName) -> Iterator[ChannelGroup]:
        roles = self._roles()
        members: list[list[Member]] = [[] for _ in self.layout.sizes]
        laid_out = {id(axis): axis for dims in axes.values() for axis in dims.values()}
        positions = {key: self._positions(axis) for key, axis in laid_out.items()}
        for name, dims in axes.items():
            for dim, axis in dims.items():
                role = roles.get((name, dim), Role.ALONG)
                for group, owned in positions[id(axis)]:
                    members[group].append(Member(name, dim, role, owned))
        macs = self._macs_by_group()
        for index, (size, own) in enumerate(zip(self.layout.sizes, members, strict=True)):
            lead = next((m for m in own if m.role.makes), own[0])
            name = lead.parameter.removesuffix(".weight").removesuffix(".bias")
            yield ChannelGroup(index, name, size, tuple(own), int(macs[index]))

    def _positions(self, axis: Axis) -> list[tuple[int, Tensor]]:
        """Return the groups along an axis, and the positions of each one's channels."""
        order = np.argsort(axis.channel.numpy(), kind="stable")
        end = axis.factor.fixed  # what is fixed comes first
        found = []
        for group, count in axis.factor.per_channel:
            begin, end = end, end + count * self.layout.sizes[group]
            found.append((group, torch.from_numpy(order[begin:end]).view(-1, count)))
        return found

    def _roles(self) -> dict[tuple[str, int], Role]:
        """Return the role of each parameter dimension, of those behind a layer's weight too."""
        computed = self.context.computed
        tied = components(self.context, computed).of if computed else None
        roles = np.zeros(self.context.next_label, dtype=np.int8)
        for labels, role in self.context.roles:
            own = labels.numpy()
            roles[own if tied is None else tied[own]] |= role
        starts = np.array(self.starts, dtype=np.int64)
        first = roles[starts if tied is None else tied[starts]].tolist()
        return {place: Role(role) for place, role in zip(self.names, first, strict=True) if role}

    def _gates(self, axes: AxesByName) -> Iterator[Gate]:
        nodes: dict[tuple[tuple[str, int], ...], list[str]] = {}  # a shared layer has several
        for node, vectors in self.context.gates.values():
            owners = dict.fromkeys(o for vector in vectors if (o := self.owner(vector)) is not None)
            gated = tuple((name, dim) for name, dim in owners if dim in axes.get(name, {}))
            if gated:
                nodes.setdefault(gated, []).append(node.name)
        covered: set[int] = set()
        for parameters, names in nodes.items():
            covered |= {g for n, d in parameters for g, _ in axes[n][d].factor.per_channel}
            yield Gate(parameters, tuple(dict.fromkeys(names)))
        for name in self.parameters:  # channels that no layer makes, such as raw parameters
            for dim, axis in axes.get(name, {}).items():
                if any(group not in covered for group, _ in axis.factor.per_channel):
                    yield Gate(((name, dim),))

    def _inputs(self, known: Mapping[str, tuple[Tensor | int, int]]) -> dict[str, GroupedInput]:
        return {
            name: GroupedInput(self._channels(source), groups)
            for name, (source, groups) in known.items()
        }

    def _channels(self, labels: Tensor | int) -> Axis | int:
        return labels if isinstance(labels, int) else self.axis(labels) or len(labels)

    def _macs(self) -> Iterator[Term]:
        for product in self.context.products:
            lengths = [length for length in product.factors if isinstance(length, int)]
            factors = [self._factor(v) for v in product.factors if not isinstance(v, int)]
            scale, rest = divmod(product.scale * math.prod(lengths), self.labelled.batch)
            if rest:  # the batch is part of a dimension that carries labels
                scale, factors = (
                    product.scale * math.prod(lengths),
                    [_share(factors[0], self.labelled.batch), *factors[1:]],
                )
            yield Term(product.node.name, scale, tuple(factors))

    def _macs_by_group(self) -> Ints:
        """Return the dense macs of the layers that make each group's channels."""
        is_channel = self.channel_of != FIXED
        groups = self.layout.groups.numpy()[self.channel_of[is_channel]]
        sizes = len(self.layout.sizes)
        total = np.bincount(groups, self.macs_made[is_channel], minlength=sizes)
        return np.rint(total / self.labelled.batch).astype(np.int64)

    @cached_property
    def macs_made(self) -> npt.NDArray[np.float64]:
        """The dense macs of the whole batch by the component whose channel they make."""
        products = [(p, p.made) for p in self.context.products if p.made is not None]
        own = self.component[_joined([made.numpy() for _, made in products])]
        lengths = np.array([len(made) for _, made in products], dtype=np.int64)
        shares = np.array([_dense(product) for product, _ in products]) / lengths
        made = np.bincount(own, np.repeat(shares, lengths), minlength=self.number)
        return made.astype(np.float64)

    def _factor(self, labels: Tensor) -> Factor:
        axis = self.axis(labels)
        return Factor(len(labels)) if axis is None else axis.factor

    def _factors(self, name: str, shape: tuple[int, ...], axes: AxesByName) -> tuple[Factor, ...]:
        dims = axes.get(name, {})
        return tuple(
            dims[dim].factor if dim in dims else Factor(size) for dim, size in enumerate(shape)
        )

    def _pinned(self) -> Iterator[Pinned]:
        told = np.zeros(self.number, dtype=bool)
        for pin in self.pins:
            told[self._of(pin.labels)] |= pin.structural
        for pin in self.pins:
            held = np.unique(self._of(pin.labels))
            fresh = held[~told[held]]
            told[held] = True
            if not len(fresh):
                continue
            parameters = tuple(self._holders(fresh))
            if not parameters:  # no channels, but the rows and columns of an image
                continue
            yield Pinned(
                reason=pin.reason,
                node=pin.node.name if pin.node is not None else "",
                where=where(pin.node) if pin.node is not None else "",
                channels=len(fresh),
                parameters=parameters,
                macs=round(self.macs_made[fresh].sum() / self.labelled.batch),
            )

    def _holders(self, components: Ints) -> list[str]:
        """Return the parameters and buffers that own slices of these components."""
        held = np.zeros(self.number, dtype=bool)
        held[components] = True
        if not self.names:
            return []
        ends = self.starts[-1] + self.sizes[-1]
        often = np.add.reduceat(held[self.component[:ends]], self.starts)
        return list(dict.fromkeys(self.names[i][0] for i in np.flatnonzero(often)))

    def _numbers(self, node: fx.Node, result: Any) -> Any:
        """Note what the numbers in a node's result come from."""
        if isinstance(result, Number):
            sources = [n for source in node.all_input_nodes for n in self._sources(node, source)]
            follows, free = (any(getattr(s, k) for s in sources) for k in ("follows", "free"))
            return Number(result.value, follows, free)
        if isinstance(result, tuple) and result and isinstance(result[0], Number):
            shape = node.all_input_nodes[0].meta[KEY].result if node.all_input_nodes else None
            if isinstance(shape, Shape) and len(shape.sizes) == len(result):
                return tuple(_size_of(shape, dim) for dim in range(len(result)))
            return tuple(self._numbers(node, part) for part in result)
        return result

    def _sources(self, node: fx.Node, source: fx.Node) -> list[Number]:
        """Return the numbers that a node computes its own from."""
        known = source.meta[KEY].result
        place = node.args[1] if len(node.args) > 1 else None
        if isinstance(known, Shape):
            if node.target == "size" and isinstance(place, int):
                return [_size_of(known, place)]
            return [_size_of(known, dim) for dim in range(len(known.sizes))]
        if isinstance(known, tuple) and node.target is operator.getitem and isinstance(place, int):
            known = known[place]
        return [
            part
            for part in (known if isinstance(known, tuple) else (known,))
            if isinstance(part, Number)
        ]

    def _shapes(self, value: Any) -> Any:
        if isinstance(value, Value):
            axes = {f.dim: axis for f in value.families if (axis := self.axis(f.labels))}
            return Shape(value.shape, axes)
        if isinstance(value, dict):
            return {key: self._shapes(part) for key, part in value.items()}
        if isinstance(value, tuple):
            return tuple(self._shapes(part) for part in value)
        return Number(value) if isinstance(value, (int, float)) else None


def _joined(vectors: Sequence[Ints]) -> Ints:
    return np.concatenate(vectors) if vectors else np.zeros(0, dtype=np.int64)


def _occurrence(lines: Ints, lengths: Sequence[int] | Ints) -> Ints:
    """Count how often each entry occurred before in its line, line after line: int64 [n]."""
    before = np.zeros(len(lines), dtype=np.int64)
    number = np.repeat(np.arange(len(lengths)), lengths)
    repeats = (lines[1:] <= lines[:-1]) & (number[1:] == number[:-1])  # none in a rising line
    doubtful = np.zeros(len(lengths), dtype=bool)
    doubtful[number[1:][repeats]] = True
    places = np.flatnonzero(doubtful[number])
    order = places[np.lexsort((lines[places], number[places]))]
    entries = number[order], lines[order]
    new = np.append(True, np.logical_or(*(entry[1:] != entry[:-1] for entry in entries)))
    starts = np.flatnonzero(new[: len(order)])
    before[order] = np.arange(len(order)) - np.repeat(
        starts, np.diff(np.append(starts, len(order)))
    )
    return before


def _mixed(occurrence: Ints, rank: Ints) -> npt.NDArray[np.uint64]:
    """Hash pairs (splitmix64): uint64 [n], odd."""
    mixed = (occurrence.astype(np.uint64) << np.uint64(32)) + rank.astype(np.uint64)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        mixed = (mixed ^ (mixed >> np.uint64(shift))) * np.uint64(factor)
    return (mixed ^ (mixed >> np.uint64(31))) | np.uint64(1)


def families(value: Any) -> Iterator[Tensor]:
    """Return all label vectors of a node's values."""
    if isinstance(value, Value):
        yield from (family.labels for family in value.families)
    elif isinstance(value, (tuple, dict)):
        for part in value.values() if isinstance(value, dict) else value:
            yield from families(part)


def _given(node: fx.Node) -> Any:
    """Return what a Record keeps of an argument that another node gives."""
    result = node.meta[KEY].result
    return result if isinstance(result, Number) and result.follows and not result.free else None


def _size_of(shape: Shape, dim: int) -> Number:
    dim %= len(shape.sizes)
    return Number(shape.sizes[dim], dim in shape.axes, dim not in shape.axes)


def _share(factor: Factor, batch: int) -> Factor:
    """Return the length of one example's part of a dimension that the batch is folded into."""
    counts = tuple((group, count // batch) for group, count in factor.per_channel)
    return Factor(factor.fixed // batch, counts)


def _dense(product: Product) -> int:
    lengths = (f if isinstance(f, int) else len(f) for f in product.factors)
    return product.scale * math.prod(lengths)


def _place(node: Any) -> str:
    """Name a node, and the user's line or else the module that it runs."""
    line = where(node) or (f"module {node.target}" if node.op == "call_module" else "")
    return f"{node.name}   {line}".strip()
