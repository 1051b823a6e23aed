"""Builds the channel dependency graph from a solution: groups, gates, costs, pins."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, fx

from fxprune.analysis.context import Product
from fxprune.analysis.equalities import Ints, components
from fxprune.analysis.solve import Solution, joined
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
    Member,
    Pinned,
    Role,
    Term,
)
from fxprune.channels.records import KEY, Number
from fxprune.tracing.module import tensors_of
from fxprune.user_lines import where

AxesByName = Mapping[str, Axes]


class Description:
    """Builds the channel graph of a solution."""

    def __init__(self, solved: Solution) -> None:
        self.solved = solved

    def graph(self) -> ChannelGraph:
        """Build the channel dependency graph."""
        axes = {
            name: dims
            for name, by_dim in self.solved.labelled.axes.items()
            if (dims := {dim: axis for dim, v in by_dim.items() if (axis := self.solved.axis(v))})
        }
        return ChannelGraph(
            groups=tuple(self._groups(axes)),
            pinned=tuple(self._pinned()),
            layout=self.solved.layout,
            axes=axes,
            shapes=self.solved.shapes,
            gates=tuple(self._gates(axes)),
            conv_inputs=self._inputs(self.solved.context.conv_inputs),
            norm_inputs=self._inputs(self.solved.context.norm_inputs),
            transposed_inputs=self._inputs(self.solved.context.transposed_inputs),
            macs_terms=tuple(self._macs()),
            params_terms=tuple(
                Term(name, 1, self._factors(name, self.solved.shapes[name], axes))
                for name in self.solved.parameters
            ),
            mixing=tuple(dict.fromkeys(self._mixing())),
        )

    def _mixing(self) -> Iterator[str]:
        """Name the nodes that mix channels of which some can be removed."""
        for node, labels in self.solved.context.mixing:
            if labels is None or self.solved.can_go(labels):
                yield _named(node)

    def with_found_mixing(self, channels: ChannelGraph) -> ChannelGraph:
        """Add to `mixing` what only the whole analysis shows.

        These are nodes whose weight is not zero where its channel is removed, and those whose
        code computes with the number of channels.
        """
        parameters, buffers = tensors_of(self.solved.module)
        tensors = parameters | buffers
        homes = {name for name, _ in self.solved.module.origin.entries.values() if name is not None}
        lost = without_zeros(
            self.solved.context,
            channels.groups,
            lambda labels: torch.from_numpy(
                self.solved.channel_of[self.solved.components_of(labels)]
            ),
            tensors,
            frozenset(homes or tensors),
        )
        found = map(_named, (*lost, *self.solved.context.counted, *self._counting()))
        mixing = dict.fromkeys((*channels.mixing, *found))
        return replace(channels, mixing=tuple(mixing))

    def _counting(self) -> Iterator[fx.Node]:
        """Yield what computes with a width and a size that varies, as in `x / (c * h * w)`.

        Such a number has no dense value that could stand for it.
        """
        computing = {
            site[1]
            for site, given in self.solved.context.numbers.items()
            if given and "full" not in str(site[2])  # whose sizes come in other ways
        }
        for graph in self.solved.module.all_graphs:
            for node in graph.nodes:
                given = [source.meta[KEY].result for source in node.all_input_nodes]
                several = [x for x in given if isinstance(x, Number) and x.follows and x.free]
                if several and node.name in computing:
                    yield node

    def _groups(self, axes: AxesByName) -> Iterator[ChannelGroup]:
        roles = self._roles()
        members: list[list[Member]] = [[] for _ in self.solved.layout.sizes]
        laid_out = {id(axis): axis for dims in axes.values() for axis in dims.values()}
        positions = {key: self._positions(axis) for key, axis in laid_out.items()}
        for name, dims in axes.items():
            for dim, axis in dims.items():
                role = roles.get((name, dim), Role.ALONG)
                for group, owned in positions[id(axis)]:
                    members[group].append(Member(name, dim, role, owned))
        macs = self._macs_by_group()
        for index, (size, own) in enumerate(zip(self.solved.layout.sizes, members, strict=True)):
            lead = next((m for m in own if m.role.makes), own[0])
            name = lead.parameter.removesuffix(".weight").removesuffix(".bias")
            yield ChannelGroup(index, name, size, tuple(own), int(macs[index]))

    def _positions(self, axis: Axis) -> list[tuple[int, Tensor]]:
        """Return the groups along an axis, and the positions of each one's channels."""
        order = np.argsort(axis.channel.numpy(), kind="stable")
        end = axis.factor.fixed  # what is fixed comes first
        found = []
        for group, count in axis.factor.per_channel:
            begin, end = end, end + count * self.solved.layout.sizes[group]
            found.append((group, torch.from_numpy(order[begin:end]).view(-1, count)))
        return found

    def _roles(self) -> dict[tuple[str, int], Role]:
        """Return the role of each parameter dimension, of those behind a layer's weight too."""
        computed = self.solved.context.computed
        tied = components(self.solved.context, computed).of if computed else None
        roles = np.zeros(self.solved.context.next_label, dtype=np.int8)
        for labels, role in self.solved.context.roles:
            own = labels.numpy()
            roles[own if tied is None else tied[own]] |= role
        starts = np.array(self.solved.starts, dtype=np.int64)
        first = roles[starts if tied is None else tied[starts]].tolist()
        return {
            owner: Role(role) for owner, role in zip(self.solved.names, first, strict=True) if role
        }

    def _gates(self, axes: AxesByName) -> Iterator[Gate]:
        nodes: dict[tuple[tuple[str, int], ...], list[str]] = {}  # a shared layer has several
        for node, vectors in self.solved.context.gates.values():
            owners = dict.fromkeys(
                o for vector in vectors if (o := self.solved.owner(vector)) is not None
            )
            gated = tuple((name, dim) for name, dim in owners if dim in axes.get(name, {}))
            if gated:
                nodes.setdefault(gated, []).append(node.name)
        covered: set[int] = set()
        for parameters, names in nodes.items():
            covered |= {g for n, d in parameters for g, _ in axes[n][d].factor.per_channel}
            yield Gate(parameters, tuple(dict.fromkeys(names)))
        for name in self.solved.parameters:  # channels that no layer makes, such as raw parameters
            for dim, axis in axes.get(name, {}).items():
                if any(group not in covered for group, _ in axis.factor.per_channel):
                    yield Gate(((name, dim),))

    def _inputs(self, known: Mapping[str, tuple[Tensor | int, int]]) -> dict[str, GroupedInput]:
        return {
            name: GroupedInput(self._channels(source), groups)
            for name, (source, groups) in known.items()
        }

    def _channels(self, labels: Tensor | int) -> Axis | int:
        return labels if isinstance(labels, int) else self.solved.axis(labels) or len(labels)

    def _macs(self) -> Iterator[Term]:
        for product in self.solved.context.products:
            lengths = [length for length in product.factors if isinstance(length, int)]
            factors = [self._factor(v) for v in product.factors if not isinstance(v, int)]
            scale, rest = divmod(product.scale * math.prod(lengths), self._examples)
            if rest:  # the batch is part of a dimension that carries labels
                scale = product.scale * math.prod(lengths)
                factors = [_share(factors[0], self._examples), *factors[1:]]
            yield Term(product.node.name, scale, tuple(factors))

    @cached_property
    def _examples(self) -> int:
        """The length of the batch; 1 where the first input's first dimension is no batch.

        A list of images [C, H, W] makes products that C does not divide.
        """
        batch = self.solved.labelled.batch

        def divides(product: Product) -> bool:
            lengths = [length for length in product.factors if isinstance(length, int)]
            if math.prod(lengths) % batch == 0:
                return True
            labelled = [self._factor(v) for v in product.factors if not isinstance(v, int)]
            counts = [count for _, count in labelled[0].per_channel] if labelled else [1]
            return all(count % batch == 0 for count in (*counts, *(f.fixed for f in labelled[:1])))

        return batch if all(map(divides, self.solved.context.products)) else 1

    def _macs_by_group(self) -> Ints:
        """Return the dense macs of the layers that make each group's channels."""
        is_channel = self.solved.channel_of != FIXED
        groups = self.solved.layout.groups.numpy()[self.solved.channel_of[is_channel]]
        sizes = len(self.solved.layout.sizes)
        total = np.bincount(groups, self.macs_made[is_channel], minlength=sizes)
        return np.rint(total / self._examples).astype(np.int64)

    @cached_property
    def macs_made(self) -> npt.NDArray[np.float64]:
        """The dense macs of the whole batch by the component whose channel they make."""
        products = [(p, p.made) for p in self.solved.context.products if p.made is not None]
        own = self.solved.component[joined([made.numpy() for _, made in products])]
        lengths = np.array([len(made) for _, made in products], dtype=np.int64)
        shares = np.array([_dense(product) for product, _ in products]) / lengths
        made = np.bincount(own, np.repeat(shares, lengths), minlength=self.solved.number)
        return made.astype(np.float64)

    def _factor(self, labels: Tensor) -> Factor:
        axis = self.solved.axis(labels)
        return Factor(len(labels)) if axis is None else axis.factor

    def _factors(self, name: str, shape: tuple[int, ...], axes: AxesByName) -> tuple[Factor, ...]:
        dims = axes.get(name, {})
        return tuple(
            dims[dim].factor if dim in dims else Factor(size) for dim, size in enumerate(shape)
        )

    def _pinned(self) -> Iterator[Pinned]:
        shown = np.zeros(self.solved.number, dtype=bool)
        for pin in self.solved.pins:
            shown[self.solved.components_of(pin.labels)] |= pin.structural
        for pin in self.solved.pins:
            held = np.unique(self.solved.components_of(pin.labels))
            fresh = held[~shown[held]]
            shown[held] = True
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
                macs=round(self.macs_made[fresh].sum() / self._examples),
            )

    def _holders(self, components: Ints) -> list[str]:
        """Return the parameters and buffers that own slices of these components."""
        held = np.zeros(self.solved.number, dtype=bool)
        held[components] = True
        if not self.solved.names:
            return []
        ends = self.solved.starts[-1] + self.solved.sizes[-1]
        often = np.add.reduceat(held[self.solved.component[:ends]], self.solved.starts)
        return list(dict.fromkeys(self.solved.names[i][0] for i in np.flatnonzero(often)))


def _share(factor: Factor, batch: int) -> Factor:
    """Return the length of one example's part of a dimension that the batch is folded into."""
    counts = tuple((group, count // batch) for group, count in factor.per_channel)
    return Factor(factor.fixed // batch, counts)


def _dense(product: Product) -> int:
    lengths = (f if isinstance(f, int) else len(f) for f in product.factors)
    return product.scale * math.prod(lengths)


def _named(node: Any) -> str:
    """Name a node, and the user's line or else the module that it runs."""
    line = where(node) or (f"module {node.target}" if node.op == "call_module" else "")
    return f"{node.name}   {line}".strip()
