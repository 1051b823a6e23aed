"""Views: the compact tensors of another selection, gathered for one forward; nothing is exchanged.

An element of a view comes from the resident if all its channels execute, and from the bank if one
of them rests. Autograd sees the former come from the resident, so that a backward through a view
gives the resident its gradient.
"""

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
    """The tensors of one selection, as the residents of another and the bank have them.

    It is made for a bank and two selections, and has to be made anew when one of the three changes.
    Values are read when it is called.
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
        small = [n for n in bank.packs if bank.dense[n].numel() < LARGE]
        parameters = {term.name for term in bank.channels.params_terms}
        groups: dict[tuple[Pack, bool], list[str]] = {}  # a norm writes to buffers
        for name in small:
            groups.setdefault((bank.packs[name], name in parameters), []).append(name)
        self._parts: list[_Cells | _Lines] = []
        for (pack, _), names in groups.items():
            index = []
            for each, line, own in zip((residents, shown), lines, slots):
                tables = pack.tables(each.widths, own.spans, device)
                index.append(pack.part(tables.index(line), tables, names))
            flat = bank.flat(pack, None, bank.dense[names[0]])
            layouts = [pack.layouts[name] for name in names]
            self._parts.append(_Cells.of(names, layouts, shapes, flat, *index))
        positions = [s.positions(line) for s, line in zip(slots, lines)]
        for name in bank.dense.keys() - {*small}:
            before, after = (bank.of(name, each) for each in positions)
            self._parts.append(_Lines.of(name, bank.dense[name], before, after))

    def __call__(self, residents: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Gather the tensors by name, each one of its own.

        Args:
            residents: the compact tensors by name, of the selection that was given for them.
        """
        pairs = (pair for part in self._parts for pair in part.gather(residents))
        return {n: t if residents[n].requires_grad else t.detach() for n, t in pairs}


class _Cells(NamedTuple):
    """Tensors of a pack, whose cells are looked up one by one.

    Attributes:
        names: of the tensors.
        layouts: how each lies in memory.
        shapes: of the shown tensors, dimensions from the outermost to the innermost.
        flat: the pack's storage.
        resting: int64 [cells], the dense cell of each cell shown.
        source: int64 [cells], the resident cell that has it, if it executes.
        executes: bool [cells, 1], or [cells] for cells of one number.
    """

    names: Sequence[str]
    layouts: Sequence[MemoryLayout]
    shapes: Sequence[Shape]
    flat: Tensor
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
    ) -> "_Cells":
        """Compute the plan from the dense cells that the residents hold, and those to show."""
        source = before.new_zeros(len(flat))
        executes = torch.zeros(len(flat), dtype=torch.bool, device=flat.device)
        source[before] = torch.arange(len(before), device=flat.device)
        executes[before] = True
        shown = executes[after] if layouts[0].cell == 1 else executes[after].unsqueeze(1)
        lying = [tuple(shapes[n][d] for d in s.order) for n, s in zip(names, layouts, strict=True)]
        cells = in_cells(flat, layouts[0].cell)
        return cls(names, layouts, lying, cells, after, source[after], shown)

    def gather(self, residents: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
        """Return each tensor with its name."""
        cell = self.layouts[0].cell
        lying = [s.inside_out(residents[n]) for n, s in zip(self.names, self.layouts)]
        own = torch.cat([in_cells(tensor.contiguous(), cell) for tensor in lying])
        rests = self.flat.index_select(0, self.resting)
        shown = torch.where(self.executes, own.index_select(0, self.source), rests)
        sizes = [torch.Size(shape).numel() // cell for shape in self.shapes]
        for name, layout, shape, part in zip(
            self.names, self.layouts, self.shapes, shown.split_with_sizes(sizes)
        ):
            back = [layout.order.index(dim) for dim in range(len(shape))]
            yield name, part.view(shape).permute(back)


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
        """Return the tensor with its name: a copy of the resident, but for what changed."""
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
