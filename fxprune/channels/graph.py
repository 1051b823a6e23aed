"""The result of the analysis: channels, the groups that they form, and what is pinned.

All channels of all groups are numbered 0..N-1, group after group, so that a choice over the
whole network is one flat tensor:

* a *selection* is an int64 tensor [K] of channel numbers, group after group, in slot order;
* *widths* are the numbers of chosen channels, one per group.

The channels of a group are interchangeable: they occur in the same parameters and pass through
the same tensors, as often. So the shapes and literals of a compact network depend on its widths
alone. They are worked out for the *template*, which keeps the first channels of each group, and
any other selection puts its channels into the template's slots.
"""

from __future__ import annotations

import enum
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from itertools import accumulate
from typing import Any

import networkx as nx
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fxprune.channels import display

Widths = tuple[int, ...]
"""How many channels of each group execute."""
FIXED = -1
"""Stands where a position belongs to no channel: it is pinned, and stays."""


class Role(enum.IntEnum):
    """What a parameter's dimension is to the channels that run along it."""

    ALONG = 0
    """One element a channel, neither made nor consumed here (batch norm, depthwise kernels)."""
    OUT = 1
    """The parameter's slices make the channels."""
    IN = 2
    """The parameter's slices consume the channels; a removed channel's slice is zero here."""
    BOTH = 3
    """They do both, each in another use of the parameter (tied weights)."""

    @property
    def makes(self) -> bool:
        """Whether the parameter's slices make the channels in some use."""
        return bool(self & Role.OUT)

    @property
    def consumes(self) -> bool:
        """Whether the parameter's slices consume the channels in some use."""
        return bool(self & Role.IN)


@dataclass(frozen=True)
class Layout:
    """The flat numbering: group g owns the channels offsets[g] .. offsets[g] + sizes[g] - 1."""

    sizes: tuple[int, ...]

    @cached_property
    def offsets(self) -> tuple[int, ...]:
        """The first channel of each group."""
        return tuple(accumulate((0, *self.sizes[:-1]))) if self.sizes else ()

    @property
    def total(self) -> int:
        """N, the number of channels of all groups."""
        return sum(self.sizes)

    @cached_property
    def groups(self) -> Tensor:
        """The group of each channel: int64 [N], on the CPU."""
        sizes = torch.tensor(self.sizes, dtype=torch.int64, device="cpu")
        return torch.repeat_interleave(torch.arange(len(self.sizes), device="cpu"), sizes)

    def group_of(self, device: torch.device | str = "cpu") -> Tensor:
        """Return the group of each channel: int64 [N]."""
        return self.groups.to(device)


@dataclass(frozen=True)
class Factor:
    """A length that depends on the widths: fixed + sum of count * widths[group]."""

    fixed: int
    per_channel: tuple[tuple[int, int], ...] = ()

    def at(self, widths: Widths) -> int:
        """Compute the length at these widths."""
        return self.fixed + sum(count * widths[group] for group, count in self.per_channel)


@dataclass(frozen=True)
class Term:
    """One node's macs, or one parameter's elements: scale times the product of its factors."""

    name: str
    scale: int
    factors: tuple[Factor, ...]

    def at(self, widths: Widths) -> int:
        """Count the macs, or the elements, at these widths."""
        return self.scale * math.prod(factor.at(widths) for factor in self.factors)


@lru_cache(maxsize=8)
def template_slots(layout: Layout, widths: Widths) -> Tensor:
    """Return each channel's slot in the template, which keeps the first channels of each group.

    Returns:
        int64 [N + 1], -1 for channels that are not kept. The last entry stands for FIXED: it is
        K, one past the last slot.
    """
    slots, begin = torch.full((layout.total + 1,), -1, device="cpu"), 0
    for offset, width in zip(layout.offsets, widths, strict=True):
        slots[offset : offset + width] = torch.arange(begin, begin + width, device="cpu")
        begin += width
    slots[FIXED] = begin
    return slots


@dataclass(frozen=True, eq=False)
class Axis:
    """One dimension of a tensor: which channel each of its positions belongs to.

    Dimensions that are laid out alike share one Axis object.

    Attributes:
        channel: int64 [size], a channel's number or FIXED.
        layout: the numbering of the channels.
    """

    channel: Tensor
    layout: Layout

    def __deepcopy__(self, memo: dict[int, object]) -> Axis:
        return self  # nothing in it changes

    @cached_property
    def factor(self) -> Factor:
        """The dimension's length as a function of the widths."""
        channel = self.channel.numpy()
        owned = channel[channel != FIXED]
        counts = np.bincount(self.layout.groups.numpy()[owned])
        per_channel = tuple(
            (group, int(counts[group]) // self.layout.sizes[group])
            for group in np.flatnonzero(counts).tolist()
        )
        return Factor(len(self.channel) - len(owned), per_channel)

    @cached_property
    def order(self) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """The positions sorted by channel, and the rank of each in that order: int64 [size]."""
        order = self.channel.numpy().argsort(kind="stable")
        rank = np.empty_like(order)
        rank[order] = np.arange(len(order))
        return order, rank

    def length(self, widths: Widths) -> int:
        """Compute the dimension's length at these widths."""
        return self.factor.at(widths)

    def blocks(self, count: int, widths: Widths) -> int:
        """Count how many of `count` blocks are left: a layer's groups, along its input channels.

        Either blocks are removed whole, or each of them loses the same positions.
        """
        table = self.channel.view(count, -1)
        whole = bool((table == table[:, :1]).all())
        return count * self.length(widths) // len(self.channel) if whole else count

    def template(self, widths: Widths) -> Tensor:
        """Return the positions that the template keeps, in order: int64 [length]."""
        return (template_slots(self.layout, widths)[self.channel] >= 0).nonzero().flatten()


Axes = Mapping[int, Axis]
"""The axes of a tensor, by the dimensions that belong to channels."""


@dataclass(frozen=True)
class Member:
    """A slice that a group's channels own: `positions` of dimension `dim` of a parameter.

    `positions` is int64 [channels, positions per channel].
    """

    parameter: str
    dim: int
    role: Role
    positions: Tensor = field(repr=False, compare=False)

    def __str__(self) -> str:
        often = self.positions.shape[1]
        times = f" x{often}" if often > 1 else ""
        return f"{self.parameter}[{self.dim}] {self.role.name.lower()}{times}"


@dataclass(frozen=True)
class ChannelGroup:
    """Channels with the same members; a policy picks k of its `size`.

    `macs` are the dense multiply-accumulates, for one example, of the layers that make them.
    """

    index: int
    name: str
    size: int
    members: tuple[Member, ...]
    macs: int

    @property
    def producers(self) -> tuple[Member, ...]:
        """The members whose parameters make the channels."""
        return tuple(member for member in self.members if member.role.makes)

    @property
    def consumers(self) -> tuple[Member, ...]:
        """The members whose parameters consume the channels."""
        return tuple(member for member in self.members if member.role.consumes)


@dataclass(frozen=True)
class Pinned:
    """Channels that may not be removed.

    Attributes:
        reason: why, in words.
        node: the name of the node where it was found.
        where: the user's line, as `file:line   code`.
        channels: how many.
        parameters: whose slices they own.
        macs: dense multiply-accumulates, for one example, of the layers that make them.
    """

    reason: str
    node: str
    where: str
    channels: int
    parameters: tuple[str, ...]
    macs: int


@dataclass(frozen=True)
class Gate:
    """Where a channel's saliency is read: the parameters that make it, the last norm's if any.

    Attributes:
        parameters: (name, dim) of each; p * dL/dp, summed over the other dims and over the
            parameters, is the sum over the batch of activation times gradient there.
        nodes: the names of the nodes whose outputs are the gate point; none where no layer makes
            the channels, several where the layer is shared.
    """

    parameters: tuple[tuple[str, int], ...]
    nodes: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class GroupedInput:
    """The input channels and groups of a convolution or group norm, which its weight does not show.

    Attributes:
        channels: the input channels, or their number where it is fixed.
        groups: the number of groups in the dense network.
    """

    channels: Axis | int
    groups: int

    def length(self, widths: Widths) -> int:
        """Count the input channels at these widths."""
        known = self.channels
        return known.length(widths) if isinstance(known, Axis) else known

    def blocks(self, widths: Widths) -> int:
        """Count the groups at these widths."""
        known = self.channels
        return known.blocks(self.groups, widths) if isinstance(known, Axis) else self.groups


@dataclass(frozen=True, eq=False, repr=False)
class ChannelGraph:
    """The channel dependency graph of one network.

    Attributes:
        groups: the channel groups, in the order of their first producer.
        pinned: what may not be removed, and why.
        layout: the flat numbering of the groups' channels.
        axes: for each parameter and buffer, its dimensions that belong to groups.
        shapes: the dense shape of each parameter and buffer.
        gates: where saliencies are read.
        conv_inputs: for each convolution, by its weight's name, the input; the weight may be a
            parameter or what a parametrization computes.
        transposed_inputs: likewise for transposed convolutions; a tied weight may be in both.
        norm_inputs: for each group norm, by its path, the input.
        macs_terms: multiply-accumulates of one example, a term a node.
        params_terms: elements, a term a parameter.
        mixing: nodes that mix statistics across channels (`node   where`), so that a removed
            channel changes the others.
    """

    groups: tuple[ChannelGroup, ...]
    pinned: tuple[Pinned, ...]
    layout: Layout
    axes: Mapping[str, Mapping[int, Axis]]
    shapes: Mapping[str, tuple[int, ...]]
    gates: tuple[Gate, ...]
    conv_inputs: Mapping[str, GroupedInput]
    transposed_inputs: Mapping[str, GroupedInput]
    norm_inputs: Mapping[str, GroupedInput]
    macs_terms: tuple[Term, ...]
    params_terms: tuple[Term, ...]
    mixing: tuple[str, ...]

    def __deepcopy__(self, memo: dict[int, object]) -> ChannelGraph:
        return self  # nothing in it changes

    @cached_property
    def makers(self) -> tuple[Gate, ...]:
        """Each parameter whose slices make channels, as a gate of its own."""
        parameters = {term.name for term in self.params_terms}  # the others are buffers
        made = {
            (member.parameter, member.dim): None
            for group in self.groups
            for member in group.producers or group.members
            if member.parameter in parameters
        }
        return tuple(Gate((owner,)) for owner in made)

    def to_networkx(self) -> nx.MultiDiGraph[str]:
        """Build a networkx graph: groups and parameters as nodes, producer -> group -> consumer.

        Group nodes are called `group 0`, `group 1`, …, with their name as `label`; parameters have
        their names. An edge has the attributes `dim` and `role`.
        """
        graph: nx.MultiDiGraph[str] = nx.MultiDiGraph()
        for group in self.groups:
            node = f"group {group.index}"
            graph.add_node(node, kind="group", size=group.size, label=group.name, macs=group.macs)
            for member in group.members:
                graph.add_node(member.parameter, kind="parameter")
                kind = {"dim": member.dim, "role": member.role.name.lower()}
                if member.role.makes:
                    graph.add_edge(member.parameter, node, **kind)
                if member.role.consumes or not member.role.makes:
                    graph.add_edge(node, member.parameter, **kind)
        return graph

    def _picture(self) -> display.Picture:
        groups = [
            display.GroupRow(
                group.name,
                group.size,
                group.macs,
                layers_of(member.parameter for member in group.producers),
                layers_of(member.parameter for member in group.consumers),
            )
            for group in self.groups
        ]
        pins = [display.PinRow(pin.channels, pin.macs, pin.reason) for pin in self.pinned]
        return display.Picture(groups, pins)

    def to_dot(self) -> str:
        """Write the graph in Graphviz's language: layers, and the groups between them."""
        return display.as_dot(self._picture())

    def plot(self) -> Any:
        """Draw the graph with Matplotlib, as a `matplotlib.figure.Figure`."""
        return display.plot(self._picture())

    def __repr__(self) -> str:
        return display.as_text(self._picture())

    def _repr_html_(self) -> str:
        return display.as_html(self._picture())

    def __str__(self) -> str:
        lines = [f"{len(self.groups)} channel groups, {self.layout.total} channels"]
        for group in self.groups:
            lines.append(f"group {group.index}  {group.name}  {group.size} channels")
            lines += [f"    {member}" for member in group.members]
        for pinned in self.pinned:
            lines.append(f"pinned  {pinned.channels} channels  {pinned.reason}  ({pinned.node})")
            if pinned.where:
                lines.append(f"    at {pinned.where}")
        return "\n".join(lines)


def layer_of(parameter: str) -> str:
    """Name the layer that holds a parameter; a parameter of the network itself, by its own name."""
    return parameter.rpartition(".")[0] or parameter


def layers_of(parameters: Iterable[str]) -> list[str]:
    """Name the layers that hold some parameters: `conv` for `conv.weight`, once each."""
    return list(dict.fromkeys(map(layer_of, parameters)))
