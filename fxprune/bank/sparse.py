"""Swaps of large tensors: only the cells of the channels that change are exchanged.

This is for the CPU, where an exchange costs its bytes and finding the slots that changed is free;
a GPU would have to wait for that answer (`fxprune.bank.packed` is for GPUs).
"""

import math
from collections.abc import Callable, Iterable, Mapping
from functools import reduce
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fxprune.bank.packed import MemoryLayout, in_cells

Line = npt.NDArray[np.int64]


class Part(NamedTuple):
    """Some cells that change, int64 each.

    Attributes:
        compact: their numbers in the compact tensor; those of whole rows where `rows`.
        leaving: the dense cells that they are stored to.
        entering: the dense cells that are loaded instead.
        rows: whether they are whole slices along the outermost dimension, which lie together.
    """

    compact: Tensor
    leaving: Tensor
    entering: Tensor
    rows: bool


class AxisChange(NamedTuple):
    """The change of one axis; slots are those of its compact positions.

    Attributes:
        before: the dense position in each slot.
        after: the one that replaces it.
        changed: the slots in which the two differ.
        kept: the slots in which they do not.
    """

    before: Line
    after: Line
    changed: Line
    kept: Line

    @classmethod
    def of(cls, before: Line, after: Line) -> "AxisChange":
        """Compute the change from the dense positions in all slots."""
        change = before != after
        return cls(before, after, np.flatnonzero(change), np.flatnonzero(~change))


class SparseSwap:
    """One change of selection at equal widths; tensors of the same layout share its tables."""

    def __init__(self, before: Mapping[int, Tensor], after: Mapping[int, Tensor]) -> None:
        """Compare the dense positions of every axis, by its id, `before` and `after`."""
        self._before, self._after = before, after
        self._changes: dict[int, AxisChange] = {}
        self._known: dict[object, list[Part]] = {}

    def exchanges(
        self, layout: MemoryLayout, pairs: Iterable[tuple[Tensor, Tensor]]
    ) -> list[Callable[[], None]]:
        """Plan to store the cells that leave and to load those that enter, both in place.

        A channel rests as a whole, so each cell that enters is complete in the bank.

        Args:
            layout: of the tensors in memory.
            pairs: compact tensors, each with its bank.

        Returns:
            A function for each pair, which can be called again if it was interrupted.
        """
        key = (
            layout.shape,
            layout.order,
            tuple((dim, id(axis)) for dim, axis in layout.axes.items()),
        )
        parts = self._known.get(key)
        if parts is None:
            parts = self._known[key] = self._parts(layout)
        return [_Exchange(layout, parts, *pair) for pair in pairs] if parts else []

    def _parts(self, layout: MemoryLayout) -> list[Part]:
        changes = [self._change(layout, dim) for dim in layout.order[: layout.lead]]
        lengths = [len(change.before) for change in changes]
        strides = [math.prod(lengths[depth + 1 :]) for depth in range(layout.lead)]
        parts = []
        for depth, change in enumerate(changes):
            if not len(change.changed):
                continue
            # What changes along this dimension, without what also does along an earlier one.
            takes = [earlier.kept for earlier in changes[:depth]]
            takes += [change.changed, *(np.arange(length) for length in lengths[depth + 1 :])]
            lines = [change.before[take] for change, take in zip(changes, takes)]
            leaving = _grid(lines, layout.strides())
            lines = [change.after[take] for change, take in zip(changes, takes)]
            entering = _grid(lines, layout.strides())
            compact = change.changed if depth == 0 else _grid(takes, strides)
            compact_cells, stored, loaded = map(torch.from_numpy, (compact, leaving, entering))
            parts.append(Part(compact_cells, stored, loaded, rows=depth == 0))
        return parts

    def _change(self, layout: MemoryLayout, dim: int) -> AxisChange:
        axis = layout.axes.get(dim)
        if axis is None:
            line = np.arange(layout.shape[dim])
            return AxisChange.of(line, line)
        if id(axis) not in self._changes:
            before, after = self._before[id(axis)], self._after[id(axis)]
            self._changes[id(axis)] = AxisChange.of(before.numpy(), after.numpy())
        return self._changes[id(axis)]


class _Exchange:
    """The exchange of one tensor's cells; it may be called again after it was interrupted."""

    def __init__(
        self, layout: MemoryLayout, parts: list[Part], resident: Tensor, dense: Tensor
    ) -> None:
        self._layout, self._parts, self._resident, self._dense = layout, parts, resident, dense
        self._leaving: list[Tensor] | None = None

    def __call__(self) -> None:
        lying, cell = self._layout.to_memory_order(self._resident), self._layout.cell
        own = lying.contiguous()
        cells, rows = in_cells(own, cell), own.view(len(own), -1)
        bank = in_cells(self._layout.to_memory_order(self._dense), cell)
        views = [rows if part.rows else cells for part in self._parts]
        pairs = list(zip(self._parts, views, strict=True))  # no cell is in two of them
        if self._leaving is None:
            self._leaving = [view.index_select(0, part.compact) for part, view in pairs]
        for part, leaving in zip(self._parts, self._leaving, strict=True):
            bank.index_copy_(0, part.leaving, in_cells(leaving, cell))
        for part, view in pairs:
            entering = bank.index_select(0, part.entering)
            view.index_copy_(0, part.compact, entering.view(-1, *view.shape[1:]))
        if own is not lying:
            lying.copy_(own)


def _grid(lines: list[Line], strides: list[int]) -> Line:
    """Add one multiple of a stride from each line, in all combinations, in grid order."""
    multiples = (line * stride for line, stride in zip(lines, strides))
    return reduce(lambda total, line: np.add.outer(total, line).ravel(), multiples)
