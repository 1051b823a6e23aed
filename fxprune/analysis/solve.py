"""From labels to channels: solves the equalities, and finds which channels are interchangeable.

Components of equal labels become channels. Channels are interchangeable, and form a group, where
they occur in the same tensors as often, and with their positions in the same order. Each vector of
labels that was seen has a random 64-bit mark. A channel's signature is a sum over the labels that
it has: the mark of the label's vector times h(n, rank), where h is a hash, n counts how often the
channel stood before in that vector, and the rank says where the label was made (see `_ranks`).

    vector, mark    labels               components (a, b, c)   signatures
    weight, m1      1 2 3                a b c                  a, b: m1 h(0, 1) + m2 h(0, 4)
    bias,   m2      4 5                  a b                    c:    m1 h(0, 1)

So a and b form one group, and c, which the bias lacks, another.
"""

from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, fx

from fxprune.analysis.context import Pin
from fxprune.analysis.equalities import Ints, copy_to_others
from fxprune.analysis.labelled import Labelled, Value
from fxprune.channels.graph import (
    FIXED,
    Axis,
    Layout,
)
from fxprune.rules.base import PINNED
from fxprune.tracing.module import TracedModule, own_name, tensors_of


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
        self.lead_of = {id(labels): lead for labels, lead in given}
        self.channel_of = np.full(self.number, FIXED, dtype=np.int64)
        self.axes: dict[int, Axis | None] = {}
        self.known: dict[bytes, Axis] = {}
        self._number_channels()

    def axis(self, labels: Tensor) -> Axis | None:
        """Return the axis that labels stand for; None where all of it is fixed."""
        key = self.lead_of.get(id(labels), id(labels))
        if key not in self.axes:
            channel = self.channel_of[self.components_of(labels)]
            content = channel.tobytes()
            if content not in self.known:
                self.known[content] = Axis(torch.from_numpy(channel), self.layout)
            axis = self.known[content]
            self.axes[key] = axis if axis.factor.per_channel else None
        return self.axes[key]

    def _value(self, node: fx.Node) -> Any:
        """Return what the dense run saw of a node."""
        found = (values.get(node.name) for values in self.labelled.values)
        return next((value for value in found if value is not None), None)

    def components_of(self, labels: Tensor) -> Ints:
        """Return the component of each label."""
        found: Ints = self.component[labels.numpy()]
        return found

    def can_go(self, labels: Tensor) -> bool:
        """Tell whether some of the channels can be removed."""
        return bool((self.channel_of[self.components_of(labels)] != FIXED).any())

    def owner(self, labels: Tensor) -> tuple[str, int] | None:
        """Return the parameter and dimension to which the first label was given."""
        first = int(labels[0])
        number = bisect_right(self.starts, first) - 1
        inside = number >= 0 and first < self.starts[number] + self.sizes[number]
        return self.names[number] if inside else None

    def around(
        self,
        node: fx.Node | None,
        why: str,
        met: Sequence[Tensor],
        culprits: Callable[[Sequence[int] | None], Sequence[int]],
    ) -> Pin:
        """Pin the channels at a node and at its inputs; all of them where it has none.

        At a module that keeps its code only groups of `met` are pinned, those of them without
        which the compact network is right; or where these are none, such groups of all.

        Args:
            node: where a compact network is wrong.
            why: what is wrong, for the user.
            met: labels that met there, those of the compact network too.
            culprits: finds, among some groups or all, those without which the compact network is
                right.
        """
        reason = f"the code here does not follow narrow widths: {why}"
        if node is not None and node.op == "call_module":
            found = self._labels_of(culprits(self._groups(met) or None))
            if len(found):
                return Pin(found, reason, node)
        near = [] if node is None else [node, *node.all_input_nodes]
        for other in near:  # grows: a size leads to the tensor whose size it is
            if other is not node and not isinstance(self._value(other), Value):
                near += [source for source in other.all_input_nodes if source not in near]
        labels = [labels for other in near for labels in families(self._value(other))]
        if node is not None and node.op == "call_module":
            own = own_name(f"{node.target}.")
            labels += [
                labels
                for name, dims in self.labelled.axes.items()
                if name.startswith(own)
                for labels in dims.values()
            ]
        free = [v for v in labels if self.can_go(v)]
        if not free:
            free = [labels for dims in self.labelled.axes.values() for labels in dims.values()]
        return Pin(torch.cat(free), reason, node)

    def _groups(self, met: Sequence[Tensor]) -> list[int]:
        """List the groups whose channels are among some labels."""
        labels = joined([vector.numpy() for vector in met])
        channels = self.channel_of[self.component[labels[labels < len(self.component)]]]
        groups = self.layout.groups.numpy()[channels[channels != FIXED]]
        return [int(group) for group in np.unique(groups)]

    def _labels_of(self, groups: Ints | Sequence[int]) -> Tensor:
        """Return the labels of all channels of some groups."""
        held = np.zeros(len(self.layout.sizes) + 1, dtype=bool)  # the last stands for no group
        held[np.asarray(groups, dtype=np.int64)] = True
        of_channel = np.append(self.layout.groups.numpy(), len(self.layout.sizes))
        assert FIXED == -1
        return torch.from_numpy(np.flatnonzero(held[of_channel[self.channel_of[self.component]]]))

    def _number_channels(self) -> None:
        """Find which components are channels, and which of them are interchangeable."""
        held = np.zeros(self.number, dtype=bool)
        held[self.component[PINNED]] = True
        for pin in self.pins:
            held[self.components_of(pin.labels)] = True
        alive = np.bincount(self.component, minlength=self.number) > 1
        for labels, _ in self.context.roles:
            alive[self.components_of(labels)] = True
        # a label that met no other and has no role belongs to no layer; parameters' come first
        owned = self.component[: sum(self.sizes) + 1].max() + 1
        chosen = np.flatnonzero(alive[:owned] & ~held[:owned])
        marks = self._signatures()[chosen]
        _, leader, group = np.unique(marks, return_index=True, return_inverse=True)
        rank = np.argsort(np.argsort(leader))  # groups in the order of their first channel
        order = np.argsort(rank[group], kind="stable")
        self.channel_of[chosen[order]] = np.arange(len(chosen))
        self.layout = Layout(tuple(np.bincount(rank[group]).tolist()) if len(chosen) else ())

    def _signatures(self) -> npt.NDArray[np.uint64]:
        """Compute what tells channels of different groups apart: uint64 [components]."""
        signatures = np.zeros(self.number, dtype=np.uint64)
        vectors, marks = self._sightings()
        labels, lengths = joined(vectors), [len(vector) for vector in vectors]
        own = self.component[labels]
        with np.errstate(over="ignore"):
            mixed = _mixed(_occurrence(own, lengths), self._ranks()[labels])
            np.add.at(signatures, own, np.repeat(marks, lengths) * mixed)
        return signatures

    def _ranks(self) -> Ints:
        """Compute the rank of each label: int64 [labels].

        That of a parameter's label is the first label of its vector, plus the number of times that
        its channel stood before in the vector. All labels of no parameter, such as those of a
        padding, have one rank, to which a concatenation's repetition adds its number.
        """
        leads = [self.context.made[lead].numpy() for lead in np.unique(self.lead)]
        labels, lengths = joined(leads), [len(lead) for lead in leads]
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
        seen = [labels for _, labels in self.context.sightings]
        seen += self.context.made[: len(self.names)]
        marks = np.random.default_rng(0).integers(0, 2**63, len(seen), np.uint64)
        keys = [self.lead_of.get(id(labels), id(labels)) for labels in seen]
        vectors = dict(zip(keys, seen, strict=True))
        number = {key: index for index, key in enumerate(vectors)}
        sums = np.zeros(len(vectors), dtype=np.uint64)
        with np.errstate(over="ignore"):
            np.add.at(sums, [number[known] for known in keys], marks)
        return [labels.numpy() for labels in vectors.values()], sums


def joined(vectors: Sequence[Ints]) -> Ints:
    """Join vectors, of which there may be none."""
    return np.concatenate(vectors) if vectors else np.zeros(0, dtype=np.int64)


def _occurrence(lines: Ints, lengths: Sequence[int] | Ints) -> Ints:
    """Count how often each entry occurred before in its line, line after line: int64 [n]."""
    before = np.zeros(len(lines), dtype=np.int64)
    number = np.repeat(np.arange(len(lengths)), lengths)
    repeats = (lines[1:] <= lines[:-1]) & (number[1:] == number[:-1])  # none in a rising line
    doubtful = np.zeros(len(lengths), dtype=bool)
    doubtful[number[1:][repeats]] = True
    often = np.flatnonzero(doubtful[number])
    order = often[np.lexsort((lines[often], number[often]))]
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
