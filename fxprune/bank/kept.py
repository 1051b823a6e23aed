"""Kept views: the tensors of another selection, kept between forwards that make no graph.

A view gathers its tensors for each forward, because autograd may keep them. Where nothing does,
the tensors of the last forward stay, and only the cells that execute are copied again, from the
resident's same places. All others rest, and are read again once the bank was written to.
"""

import math
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from fxprune.bank.bank import Bank, Positions
from fxprune.bank.exchange import Selection
from fxprune.bank.packed import MemoryLayout, Pack, in_cells
from fxprune.channels.graph import Widths


class KeptView:
    """The tensors of a selection that keeps the residents' places, for one state of the bank.

    Attributes:
        tensors: by name; each call brings them up to date.
    """

    def __init__(self, bank: Bank, residents: Selection, shown: Selection) -> None:
        """Gather the tensors.

        Args:
            bank: where channels rest.
            residents: the selection of the residents.
            shown: the selection to show; see `Selection.stays_in`.
        """
        self._bases = [*{id(base): base for base in map(_base, bank.dense.values())}.values()]
        self._versions = [base._version for base in self._bases]
        self._shown_at: list[int] = []
        self.tensors: dict[str, Tensor] = {}
        self._tiny: list[tuple[list[str], Tensor, Tensor]] = []
        self._others: list[_Cells] = []
        slots = bank.slots(shown.widths, shown.channels.device)
        lines = [slots.line(each.channels) for each in (residents, shown)]
        parameters = {term.name for term in bank.channels.params_terms}
        groups: dict[Pack, dict[bool, list[str]]] = {}  # a norm writes to buffers
        for name, pack in bank.packs.items():
            groups.setdefault(pack, {}).setdefault(name in parameters, []).append(name)
        for pack, kinds in groups.items():
            tables = pack.tables(shown.widths, slots.spans, shown.channels.device)
            indices = [tables.index(line) for line in lines]
            for names in kinds.values():
                names.sort(key=lambda name: not _is_tiny(bank.dense[name]))
                before, after = (pack.part(index, tables, names) for index in indices)
                flat = bank.flat(pack, None, bank.dense[names[0]])
                self._lay(bank, names, shown.widths, flat, before, after)
        positions = [slots.positions(line) for line in lines]
        for name in bank.dense.keys() - bank.packs.keys():
            layout = bank.layouts[name]
            before, after = (_cells(layout, bank.of(name, each)) for each in positions)
            dense = layout.inside_out(bank.dense[name]).contiguous()
            self._lay(bank, [name], shown.widths, dense, before, after)

    def _lay(
        self,
        bank: Bank,
        names: Sequence[str],
        widths: Widths,
        dense: Tensor,
        before: Tensor,
        after: Tensor,
    ) -> None:
        """Gather tensors whose dense cells lie one behind the other, tiny ones first.

        Args:
            bank: where channels rest.
            names: of the tensors.
            widths: of the selections.
            dense: their cells in the bank.
            before: int64, the dense cell in each of their residents' cells.
            after: likewise, of those to show.
        """
        layouts = [bank.layouts[name] for name in names]
        lengths = [layout.lengths(widths) for layout in layouts]
        counts = [math.prod(each) for each in lengths]
        flat, same = _taken(dense.view(-1, layouts[0].cell), after), before == after
        tiny = [name for name in names if _is_tiny(bank.dense[name])]
        if tiny:
            end = sum(counts[: len(tiny)])
            self._tiny.append((tiny, flat[:end].flatten(), same[:end]))
        parts = zip(flat.split_with_sizes(counts), same.split_with_sizes(counts), strict=True)
        for name, layout, length, (kept, mask) in zip(names, layouts, lengths, parts, strict=True):
            lying = kept.view(*length, *(layout.shape[dim] for dim in layout.order[layout.lead :]))
            back = [layout.order.index(dim) for dim in range(lying.dim())]
            self.tensors[name] = lying.permute(back)
            if name not in tiny:
                self._others.append(_Cells(name, layout, lying, mask))

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
        for names, kept, mask in self._tiny:
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
        lying, kept = self._layout.inside_out(resident), self._lying
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


def _taken(dense: Tensor, index: Tensor) -> Tensor:
    """Return some rows of dense cells: [cells, cell]."""
    cell = dense.shape[1]
    if cell == 1 or dense.device.type != "cpu":
        return in_cells(dense, cell).index_select(0, index).view(-1, cell)
    taken = dense.new_empty(len(index), cell)
    np.take(_items(dense, cell), index.numpy(), out=_items(taken, cell), mode="clip")
    return taken


def _cells(layout: MemoryLayout, positions: Positions) -> Tensor:
    """Number the dense cells of a compact tensor, in order: int64 [cells]."""
    device = next(iter(positions.values())).device
    cells = torch.zeros(1, dtype=torch.int64, device=device)
    for dim, stride in zip(layout.order, layout.strides()):  # the leading dimensions
        line = positions.get(dim, torch.arange(layout.shape[dim], device=device))
        cells = (cells[:, None] + stride * line).flatten()
    return cells


def _is_tiny(dense: Tensor) -> bool:
    return dense.dim() == 1


def _base(tensor: Tensor) -> Tensor:
    return tensor if tensor._base is None else tensor._base
