"""Kept views: the tensors of another selection, kept between forwards that make no graph.

A view gathers its tensors for each forward, because autograd may keep them. Where nothing does,
the tensors of the last forward stay, and only the cells that execute are copied again, from the
resident's same places. All others rest, and are read again once the bank was written to.
"""

import functools
import math
import operator
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from fxprune.bank.bank import Bank, Positions
from fxprune.bank.exchange import Selection
from fxprune.bank.packed import MemoryLayout, in_cells


class KeptView:
    """The tensors of a selection that keeps the residents' places, for one state of the bank.

    Attributes:
        tensors: by name; they are whole after a call, which brings them up to date.
    """

    def __init__(self, bank: Bank, residents: Selection, shown: Selection) -> None:
        """Gather what rests.

        Args:
            bank: where channels rest.
            residents: the selection of the residents.
            shown: the selection to show; see `Selection.stays_in`.
        """
        self._bases = [*{id(base): base for base in map(_base, bank.dense.values())}.values()]
        self._versions = [base._version for base in self._bases]
        self._shown_at: list[int] = []
        self.tensors: dict[str, Tensor] = {}
        self._vectors: list[tuple[Sequence[str], Tensor, Tensor]] = []
        self._others: list[_Cells] = []
        device = shown.channels.device
        slots = bank.slots(shown.widths, device)
        lines = [slots.line(each.channels) for each in (residents, shown)]
        parameters = {term.name for term in bank.channels.params_terms}
        for pack in dict.fromkeys(bank.packs.values()):
            tables = pack.tables(shown.widths, slots.spans, device)
            index, same = tables.index(lines[1]), tables.same(*lines)
            flat = bank.flat(pack, None, bank.dense[pack.names[0]])
            for is_parameter in (True, False):  # a norm writes to buffers
                names = [name for name in pack.names if (name in parameters) is is_parameter]
                if names:
                    after, mask = (pack.part(each, tables, names) for each in (index, same))
                    lengths = [tables.lengths[number] for number in pack.numbers(names)]
                    self._lay(bank, names, lengths, _resting(flat, after, mask), mask)
        held, wanted = (slots.positions(line) for line in lines)
        equal = {axis: line == wanted[axis] for axis, line in held.items()}
        for name in bank.dense.keys() - bank.packs.keys():
            layout = bank.layouts[name]
            length = layout.lengths(shown.widths)
            entries = _lines(
                layout, bank.of(name, wanted), functools.partial(torch.arange, device=device)
            )
            index = _outer(operator.add, map(operator.mul, entries, layout.strides()))
            same = _outer(operator.and_, _lines(layout, bank.of(name, equal), _all(device)))
            dense = layout.to_memory_order(bank.dense[name]).contiguous()
            cells = _resting(dense.view(-1, layout.cell), index, same)
            self._lay(bank, [name], [length], cells, same)

    def _lay(
        self,
        bank: Bank,
        names: Sequence[str],
        lengths: Sequence[Sequence[int]],
        cells: Tensor,
        same: Tensor,
    ) -> None:
        """Take tensors whose cells lie one behind the other, vectors first.

        Args:
            bank: where channels rest.
            names: of the tensors.
            lengths: for each of them, those of its leading dimensions.
            cells: [cells, cell], of all.
            same: bool [cells], whether the resident has the same one in this place.
        """
        counts = [math.prod(each) for each in lengths]
        vectors = sum(bank.dense[name].dim() == 1 for name in names)
        parts = cells.split_with_sizes(counts)
        if vectors:
            end = sum(counts[:vectors])
            line = cells[:end].view(-1)
            self._vectors.append((names[:vectors], line, same[:end]))
            self.tensors.update(zip(names, line.split_with_sizes(counts[:vectors]), strict=False))
        masks = same.split_with_sizes(counts)
        for number in range(vectors, len(names)):
            layout = bank.layouts[names[number]]
            lying = layout.view_cells(parts[number], lengths[number])
            self.tensors[names[number]] = layout.from_memory_order(lying)
            self._others.append(_Cells(names[number], layout, lying, masks[number]))

    @property
    def is_current(self) -> bool:
        """Whether the bank is as it was when this was made."""
        return [base._version for base in self._bases] == self._versions

    @property
    def were_written(self) -> bool:
        """Whether a forward has written to the tensors since the last call."""
        return [tensor._version for tensor in self.tensors.values()] != self._shown_at

    def __call__(self, residents: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the tensors by name, the same objects each time, with the residents' new values.

        Args:
            residents: the compact tensors by name, of the selection that was given for them.
        """
        for names, kept, mask in self._vectors:
            own = torch.cat([residents[name] for name in names])
            torch.where(mask, own, kept, out=kept)
        for cells in self._others:
            cells.copy(residents[cells.name])
        self._shown_at = [tensor._version for tensor in self.tensors.values()]
        return self.tensors


class _Cells:
    """A tensor whose executing cells are copied; on a CPU by numpy, runs of them at once."""

    def __init__(self, name: str, layout: MemoryLayout, lying: Tensor, same: Tensor) -> None:
        """Take a tensor with its dimensions in the order of memory, and a bool for each cell."""
        self.name, self._layout, self._lying, self._same = name, layout, lying, same
        inner = [1] * (lying.dim() - layout.lead)
        self._mask = same.view(*lying.shape[: layout.lead], *inner)
        self._shown = None
        if layout.cell > 1 and lying.device.type == "cpu":
            self._shown = _items(lying, layout.cell)

    def copy(self, resident: Tensor) -> None:
        """Copy the cells that execute."""
        lying, kept = self._layout.to_memory_order(resident), self._lying
        if self._shown is not None and lying.is_contiguous() and lying.dtype == kept.dtype:
            own = _items(lying.detach(), self._layout.cell)
            np.copyto(self._shown, own, where=self._same.numpy())
        else:
            torch.where(self._mask, lying, kept, out=kept)


_Items = np.ndarray[tuple[int, ...], np.dtype[np.void]]


def _items(tensor: Tensor, cell: int) -> _Items:
    """View the cells of a contiguous tensor on the CPU as one numpy item each: [cells]."""
    found: _Items = tensor.view(-1, cell).view(torch.uint8).numpy()
    return found.view(f"V{cell * tensor.element_size()}")[:, 0]


def _resting(dense: Tensor, index: Tensor, same: Tensor) -> Tensor:
    """Return some rows of dense cells, [cells, cell]; those that execute may hold anything."""
    cell = dense.shape[1]
    if cell == 1 or dense.device.type != "cpu":
        return in_cells(dense, cell).index_select(0, index).view(-1, cell)
    cells = dense.new_empty(len(index), cell)
    own, rows, resting = _items(cells, cell), index.numpy(), np.flatnonzero(~same.numpy())
    if len(resting) < len(own) // 2:  # of most, one by one is slower than all in a row
        own[resting] = _items(dense, cell)[rows[resting]]
    else:
        np.take(_items(dense, cell), rows, out=own, mode="clip")
    return cells


def _lines(
    layout: MemoryLayout, positions: Positions, whole: Callable[[int], Tensor]
) -> Iterator[Tensor]:
    """Yield what is given for each leading dimension, and `whole` of its length for others."""
    for dim in layout.order[: layout.lead]:
        yield positions[dim] if dim in positions else whole(layout.shape[dim])


def _all(device: torch.device) -> Callable[[int], Tensor]:
    return functools.partial(torch.ones, dtype=torch.bool, device=device)


def _outer(combine: Callable[[Tensor, Tensor], Tensor], lines: Iterable[Tensor]) -> Tensor:
    """Combine every element of a line with every one of the next: one dimension."""
    return functools.reduce(lambda all_, line: combine(all_.unsqueeze(1), line).flatten(), lines)


def _base(tensor: Tensor) -> Tensor:
    return tensor if tensor._base is None else tensor._base
