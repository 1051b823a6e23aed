"""Views: the compact tensors of another selection, gathered for one forward; nothing is exchanged.

An element of a view comes from the resident if all its channels execute, and from the bank if one
of them rests. Autograd sees the former come from the resident, so that a backward through a view
gives the resident its gradient.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from fxprune.bank.bank import LARGE, Bank, Positions
from fxprune.bank.exchange import Selection
from fxprune.bank.packed import MemoryLayout, Pack, in_cells
from fxprune.channels.records import compact_shape

Shape = tuple[int, ...]


class View:
    """The compact tensors of one selection, gathered from the residents of another and the bank.

    A view computes its indices once, for a bank and two selections; when one of the three changes,
    another view is needed. Values are read at each call.
    """

    def __init__(self, bank: Bank, residents: Selection, shown: Selection) -> None:
        """Compute where each element comes from.

        Args:
            bank: where channels rest.
            residents: the selection of the residents.
            shown: the selection to show.
        """
        device = shown.channels.device
        slots = [bank.slots(each.widths, device) for each in (residents, shown)]
        lines = [s.line(each.channels) for s, each in zip(slots, (residents, shown))]
        shapes = {n: compact_shape(n, bank.channels, shown.widths) for n in bank.dense}
        small = [
            name
            for pack in dict.fromkeys(bank.packs.values())
            for name in pack.names
            if bank.dense[name].numel() < LARGE
        ]
        parameters = {term.name for term in bank.channels.params_terms}
        groups: dict[tuple[Pack, bool], list[str]] = {}  # a norm writes to buffers
        for name in small:
            groups.setdefault((bank.packs[name], name in parameters), []).append(name)
        same, stay = residents.widths == shown.widths, residents.stays_in(shown)
        self._parts: list[_Cells | _Lines] = []
        for (pack, _), names in groups.items():
            index = []
            for each, line, own in zip((residents, shown), lines, slots):
                tables = pack.tables(each.widths, own.spans, device)
                index.append(pack.part(tables.index(line), tables, names))
            flat = bank.flat(pack, None, bank.dense[names[0]])
            layouts = [pack.layouts[name] for name in names]
            self._parts.append(
                _Cells.of(names, layouts, shapes, flat, *index, same=same, stay=stay)
            )
        positions = [s.positions(line) for s, line in zip(slots, lines)]
        for name in bank.dense.keys() - {*small}:
            before, after = (bank.of(name, each) for each in positions)
            self._parts.append(_Lines.of(name, bank.dense[name], before, after))

    def __call__(self, residents: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Gather the tensors by name, each in memory of its own.

        Args:
            residents: the compact tensors by name, of the selection that was given for them.
        """
        pairs = (pair for part in self._parts for pair in part.gather(residents))
        return {n: t if residents[n].requires_grad else t.detach() for n, t in pairs}


class _Cells(NamedTuple):
    """Tensors of a pack: the residents' cells are taken over, then some are replaced.

    At equal widths, for example: the residents hold the dense cells 4 1 7, and 4 2 7 are to be
    shown. Cell 1 is replaced, and two zeros are added, since torch.compile compiles anew for a
    length of 0 or 1: changed is 1 0 0, resting 2 4 4, executes no yes yes, source 0 0 0.

    Attributes:
        names: of the tensors.
        cell: numbers in a cell.
        orders: for channels_last tensors, the dimensions from the outermost to the innermost.
        views: for each tensor its number of cells, its shape in the order of memory, and the
            permutation from that back to its dimensions (None if it lies in order).
        flat: the pack's storage, [dense cells, cell].
        order: int32 [cells], the resident cell that is taken over for each cell shown; None at
            equal widths, where it is the cell of the same number.
        changed: int64 [changed], the cells shown that are replaced then.
        resting: int64 [changed], the dense cell that is shown there.
        source: int64 [changed], the resident cell that holds it, if its channels execute.
        executes: bool [changed, 1] ([changed] for cells of one number), whether they do.
    """

    names: Sequence[str]
    cell: int
    orders: Mapping[str, Shape]
    views: Sequence[tuple[int, Shape, list[int] | None]]
    flat: Tensor
    order: Tensor | None
    changed: Tensor
    resting: Tensor
    source: Tensor
    executes: Tensor

    @classmethod
    def of(
        cls,
        names: Sequence[str],
        layouts: Sequence[MemoryLayout],
        shapes: Mapping[str, Shape],
        flat: Tensor,
        before: Tensor,
        after: Tensor,
        *,
        same: bool,
        stay: bool,
    ) -> "_Cells":
        """Compute the indices from the dense cells that the residents hold and those to show.

        Args:
            names: of the tensors.
            layouts: theirs, in memory.
            shapes: the shapes shown, by name.
            flat: the pack's storage.
            before: int64, the dense cell in each resident cell.
            after: int64, the dense cell in each cell shown.
            same: whether the widths are equal, so that both have as many cells.
            stay: whether no channel that is in both has another slot; see `Selection.stays_in`.
        """
        if stay:
            changed = (before != after).nonzero().flatten()
            changed = torch.cat([changed, changed.new_zeros(2)])
            resting = after[changed]
            own = torch.where(known := before[changed] == resting, changed, 0)
        else:
            source = before.new_zeros(len(flat))
            executes = torch.zeros(len(flat), dtype=torch.bool, device=flat.device)
            source[before] = torch.arange(len(before), device=flat.device)
            executes[before] = True
            changed = (before != after if same else ~executes[after]).nonzero().flatten()
            changed = torch.cat([changed, changed.new_zeros(2)])
            resting = after[changed]
            known, own = executes[resting], source[resting]
        known = known if layouts[0].cell == 1 else known.unsqueeze(1)
        plan = (changed, resting, own, known)
        for index in plan:  # else torch.compile would compile for each number of them
            torch._dynamo.maybe_mark_dynamic(index, 0)
        cell, orders, views = layouts[0].cell, {}, []
        for name, layout in zip(names, layouts, strict=True):
            lying, back = tuple(shapes[name][dim] for dim in layout.order), None
            if layout.order != tuple(range(len(lying))):
                orders[name] = layout.order
                back = [layout.order.index(dim) for dim in range(len(lying))]
            views.append((math.prod(lying) // cell, lying, back))
        order = None if same else source[after].int()
        return cls(names, cell, orders, views, in_cells(flat, cell), order, *plan)

    def gather(self, residents: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
        """Yield each tensor with its name."""
        lying = [residents[name] for name in self.names]
        if self.orders:
            pairs = zip(self.names, lying)
            lying = [t.permute(self.orders[n]) if n in self.orders else t for n, t in pairs]
        own = torch.cat([in_cells(tensor.contiguous(), self.cell) for tensor in lying])
        rests = self.flat.index_select(0, self.resting)
        part = torch.where(self.executes, own.index_select(0, self.source), rests)
        shown = own if self.order is None else own.index_select(0, self.order)
        del own
        shown.index_copy_(0, self.changed, part)
        parts = shown.split_with_sizes([count for count, _, _ in self.views])
        for name, (_, shape, back), part in zip(self.names, self.views, parts):
            yield name, part.view(shape) if back is None else part.view(shape).permute(back)


class _Lines(NamedTuple):
    """A tensor whose positions are looked up along each of its dimensions.

    Attributes:
        name: of the tensor.
        dense: its bank.
        resting: for each gated dimension, int64 [length], the dense position of each one shown.
        source: likewise, the resident position that has it, if it executes.
        executes: for each gated dimension, bool [length], whether it executes.
        changed: for each gated dimension, int64 [changed], the positions at which the resident has
            another channel; None where most of them do, or widths differ.
    """

    name: str
    dense: Tensor
    resting: Positions
    source: Positions
    executes: Positions
    changed: Positions | None

    @classmethod
    def of(cls, name: str, dense: Tensor, before: Positions, after: Positions) -> "_Lines":
        """Compute the plan from the dense positions that the resident holds, and those to show."""
        source, executes, changed = {}, {}, {}
        moving = 0.0
        for dim, shown in after.items():
            size, held = dense.shape[dim], before[dim]
            rank = held.new_zeros(size)
            rank[held] = torch.arange(len(held), device=held.device)
            known = torch.zeros(size, dtype=torch.bool, device=held.device)
            known[held] = True
            source[dim], executes[dim] = rank[shown], known[shown]
            if len(held) == len(shown):
                changed[dim] = (held != shown).nonzero().flatten()
                moving += len(changed[dim]) / max(len(shown), 1)
            else:
                moving = 1.0
        return cls(name, dense, after, source, executes, changed if moving < 1 else None)

    def gather(self, residents: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
        """Yield the tensor with its name: a copy of the resident, some positions replaced."""
        own = residents[self.name]
        # the number of changed positions would make torch.compile compile again and again
        if not self.resting:
            yield self.name, own.clone()
        elif self.changed is None or torch.compiler.is_compiling():
            yield self.name, self._gathered(own, self.resting, self.source, self.executes)
        else:
            shown = own.clone()
            for dim, line in self.changed.items():
                if len(line) > 0:
                    resting, source, executes = (
                        {**each, dim: each[dim][line]}
                        for each in (self.resting, self.source, self.executes)
                    )
                    part = self._gathered(own, resting, source, executes, first=dim)
                    shown.index_copy_(dim, line, part)
            yield self.name, shown

    def _gathered(
        self,
        own: Tensor,
        resting: Positions,
        source: Positions,
        executes: Positions,
        first: int | None = None,
    ) -> Tensor:
        """Gather every element, along the first of the dimensions before the others."""
        rests, mask = self.dense, None
        for dim in sorted(resting, key=lambda dim: dim != first):
            own = own.index_select(dim, source[dim])
            rests = rests.index_select(dim, resting[dim])
            lying = [1] * own.dim()
            lying[dim] = -1
            line = executes[dim].view(lying)
            mask = line if mask is None else mask & line
        assert mask is not None
        return torch.where(mask, own, rests)
