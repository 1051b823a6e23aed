"""Packs: many banked tensors in one flat storage, so that a few kernels exchange them all.

A tensor is seen as rows of *cells*: a cell is what lies behind the last dimension that belongs to
channels, 9 numbers of a 3x3 kernel, one of a bias. Tensors with cells of one size and dtype share a
pack. Where each compact cell lies in the flat storage is a sum of one number per dimension, which
depends on the selection, looked up in tables that depend on the widths alone: no loop over tensors
or channels, fixed shapes, and no wait for the device.
"""

import functools
import math
import operator
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise

import torch
from torch import Tensor

from fxprune.channels.graph import Axes, Widths

Spans = Mapping[int, tuple[int, int]]
"""By the id of an axis, where its positions begin in the line of all axes, and their number."""


@dataclass(frozen=True, eq=False)
class MemoryLayout:
    """How one tensor lies in memory, dense and compact alike.

    Attributes:
        shape: its dense shape.
        axes: its dimensions that belong to groups.
        order: its dimensions from the outermost to the innermost; channels_last has C last.
        lead: how many dimensions, in that order, are outside the cells.
        cell: the size of a cell.
    """

    shape: tuple[int, ...]
    axes: Axes
    order: tuple[int, ...]
    lead: int
    cell: int

    @classmethod
    def of(cls, dense: Tensor, axes: Axes) -> "MemoryLayout":
        """Return the layout of a tensor; it keeps its memory format."""
        order = tuple(range(dense.dim()))
        if dense.dim() > 3 and not dense.is_contiguous() and dense.stride(1) == 1:
            order = (0, *order[2:], 1)
        lead = max((order.index(dim) + 1 for dim in axes), default=0)
        cell = math.prod(dense.shape[dim] for dim in order[lead:])
        return cls(tuple(dense.shape), dict(axes), order, lead, cell)

    @property
    def cells(self) -> int:
        """The number of its dense cells."""
        return math.prod(self.shape[dim] for dim in self.order[: self.lead])

    def strides(self) -> list[int]:
        """Count the dense cells that a step along each leading dimension moves."""
        sizes = [self.shape[dim] for dim in self.order[: self.lead]]
        return [math.prod(sizes[level + 1 :]) for level in range(self.lead)]

    def lengths(self, widths: Widths) -> list[int]:
        """Return the compact lengths of the leading dimensions."""
        return [
            self.axes[dim].length(widths) if dim in self.axes else self.shape[dim]
            for dim in self.order[: self.lead]
        ]

    def view_cells(self, cells: Tensor, lengths: Sequence[int]) -> Tensor:
        """View compact cells, of some lengths, with the dimensions in the order of memory."""
        return cells.view(*lengths, *(self.shape[dim] for dim in self.order[self.lead :]))

    def to_memory_order(self, tensor: Tensor) -> Tensor:
        """Return a view of the tensor with its dimensions in the order of memory."""
        return tensor if self.order[-1] == len(self.order) - 1 else tensor.permute(self.order)

    def from_memory_order(self, lying: Tensor) -> Tensor:
        """Return a view of a tensor whose dimensions are in the order of memory, in its own."""
        if self.order[-1] == len(self.order) - 1:
            return lying
        return lying.permute([self.order.index(dim) for dim in range(len(self.order))])

    def shaped(self, rows: Tensor) -> Tensor:
        """Return rows of dense cells, [cells, cell], as a view of the dense shape."""
        return self.from_memory_order(rows.view([self.shape[dim] for dim in self.order]))


class Tables:
    """Where the compact cells of some tensors lie among their dense cells, at fixed widths.

    The tensors' dense cells follow each other, and so do the compact ones. Each compact cell's
    dense number is a sum of entries, one for each leading dimension:

        weight [4, 3], cells of 1: cell (i, j) is 3 * i + j
        selection: rows 1 and 3, columns 0 and 2    entries: 0 | 3, 9 | 0, 2
        compact cells, by row and column            first level 1 1 2 2, second level 3 4 3 4
        their dense numbers                         3 + 0, 3 + 2, 9 + 0, 9 + 2 = 3, 5, 9, 11

    Entry 0 is 0: it stands for the levels that a tensor of fewer dimensions lacks.

    Attributes:
        lengths: for each tensor, those of its leading dimensions.
        ends: for each tensor, one past its last compact cell.
    """

    def __init__(
        self, layouts: Sequence[MemoryLayout], widths: Widths, spans: Spans, device: torch.device
    ) -> None:
        begins = accumulate((layout.cells for layout in layouts), initial=0)
        nothing = torch.zeros(1, dtype=torch.int64, device="cpu")
        # An entry for each position of each leading dimension; the first stands for no dimension.
        source, times, plus = [nothing], [nothing], [nothing]
        depth = max(layout.lead for layout in layouts)
        levels: list[list[Tensor]] = [[] for _ in range(depth)]
        self.lengths = [layout.lengths(widths) for layout in layouts]
        entries, ends = 1, []
        for layout, begin, lengths in zip(layouts, begins, self.lengths):
            for level, (length, stride) in enumerate(zip(lengths, layout.strides())):
                line = torch.arange(length, device="cpu")
                axis = layout.axes.get(layout.order[level])
                base = torch.full_like(line, begin if level == 0 else 0)
                source.append(0 * line if axis is None else line + spans[id(axis)][0])
                times.append(torch.full_like(line, 0 if axis is None else stride))
                plus.append(base + stride * line if axis is None else base)
                own = [1] * len(lengths)
                own[level] = length
                levels[level].append((line + entries).int().view(own).expand(lengths).flatten())
                entries += length
            count = math.prod(lengths)
            for level in range(len(lengths), depth):
                levels[level].append(torch.zeros(count, dtype=torch.int32, device="cpu"))
            ends.append(count)
        self.ends = tuple(accumulate(ends))
        self._source = torch.cat(source).to(device)
        self._times, self._plus = torch.cat(times).to(device), torch.cat(plus).to(device)
        self._levels = [torch.cat(level).to(device) for level in levels]

    def index(self, line: Tensor) -> Tensor:
        """Return the dense cell of each compact cell: int64.

        Args:
            line: the dense positions of all axes, one behind the other: int64.
        """
        return self._looked_up(self._entries(line), operator.iadd)

    def same(self, line: Tensor, other: Tensor) -> Tensor:
        """Tell which compact cells have the same dense cell for two lines: bool."""
        return self._looked_up(self._entries(line) == self._entries(other), operator.iand)

    def _entries(self, line: Tensor) -> Tensor:
        return line.index_select(0, self._source).mul_(self._times).add_(self._plus)

    def _looked_up(self, entries: Tensor, combine: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
        """Combine the entries of each compact cell."""
        return functools.reduce(combine, (entries.index_select(0, each) for each in self._levels))


class Pack:
    """Tensors whose cells have one size and dtype.

    Attributes:
        layouts: the tensors by name; parameters first, then buffers.
        cell: the size of a cell.
    """

    def __init__(self, layouts: Mapping[str, MemoryLayout], parameters: int) -> None:
        """Lay tensors out; the first `parameters` of them are parameters."""
        self.layouts = dict(layouts)
        self.names = tuple(layouts)
        self.cell = next(iter(layouts.values())).cell
        ends = list(accumulate((layout.cells for layout in layouts.values()), initial=0))
        self._spans = dict(zip(layouts, pairwise(ends)))
        self._numbers = {name: number for number, name in enumerate(layouts)}
        self._total, self._stateful = ends[-1], ends[parameters]
        self._tables: tuple[object, Tables] | None = None

    def flat(self, like: Tensor, states: bool = False) -> Tensor:
        """Make a storage for all tensors, or zeros for a state of all parameters: [cells, cell]."""
        if states:
            return like.new_zeros(self._stateful, self.cell)
        return like.new_empty(self._total, self.cell)

    def view(self, flat: Tensor, name: str) -> Tensor:
        """Return one tensor of a storage, in its dense shape."""
        begin, end = self._spans[name]
        return self.layouts[name].shaped(flat[begin:end])

    def tables(self, widths: Widths, spans: Spans, device: torch.device) -> Tables:
        """Return the tables at these widths; kept until the widths change."""
        key = (widths, device)
        if self._tables is None or self._tables[0] != key:
            made = Tables(list(self.layouts.values()), widths, spans, device)
            self._tables = (key, made)
        return self._tables[1]

    def numbers(self, names: Iterable[str]) -> list[int]:
        """Return the number of each of some tensors, by which tables have their facts."""
        return [self._numbers[name] for name in names]

    def part(self, index: Tensor, tables: Tables, names: Sequence[str]) -> Tensor:
        """Return the index of some of the tensors, in the order of `names`."""
        numbers, ends = self.numbers(names), (0, *tables.ends)
        if all(after == before + 1 for before, after in pairwise(numbers)):
            return index[ends[numbers[0]] : ends[numbers[-1] + 1]]
        return torch.cat([index[ends[number] : ends[number + 1]] for number in numbers])

    def staged(self, tensors: Mapping[str, Tensor]) -> Tensor:
        """Copy the cells of some compact tensors, one tensor after the other."""
        lying = (self.layouts[name].to_memory_order(tensor) for name, tensor in tensors.items())
        return torch.cat([in_cells(tensor.contiguous(), self.cell) for tensor in lying])

    def swap(
        self,
        tensors: Mapping[str, Tensor],
        flat: Tensor,
        before: Tensor,
        after: Tensor,
        leaving: Tensor,
    ) -> None:
        """Store compact tensors in the flat storage and load others, in place.

        If it was interrupted, it can be called again with the same arguments.

        Args:
            tensors: the compact tensors by name.
            flat: the storage.
            before: int64, the dense cell of each of their cells, in order.
            after: likewise, of those to be loaded.
            leaving: what `staged` returned of the tensors.
        """
        lying = [self.layouts[name].to_memory_order(tensor) for name, tensor in tensors.items()]
        cells = [in_cells(tensor.contiguous(), self.cell) for tensor in lying]
        dense = in_cells(flat, self.cell)
        dense.index_copy_(0, before, leaving)
        entering = dense.index_select(0, after)
        parts = entering.split_with_sizes([len(each) for each in cells])
        if all(tensor.is_contiguous() for tensor in lying):  # then the cells are views
            torch._foreach_copy_(cells, list(parts))
        else:
            torch._foreach_copy_(lying, [part.view(t.shape) for part, t in zip(parts, lying)])


def in_cells(tensor: Tensor, cell: int) -> Tensor:
    """View a contiguous tensor as its cells: [cells, cell], or [cells] if a cell is one number.

    PyTorch indexes [n] twice as fast as [n, 1].
    """
    return tensor.view(-1) if cell == 1 else tensor.view(-1, cell)
