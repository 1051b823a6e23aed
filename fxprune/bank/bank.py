"""The bank: full-size storage in which channels rest while they do not execute.

A gated parameter lives twice. Its *resident* is compact and is what the optimiser and the step
see; its *bank* has the dense shape. Slices of channels that execute are up to date in the
resident, all others in the bank. Buffers (running statistics) and the optimiser's per-element
state (momentum, Adam's moments) are banked in the same way, so that a channel comes back with
its own.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fxprune.bank.packed import MemoryLayout, Pack
from fxprune.channels.graph import FIXED, Axis, ChannelGraph, Widths, template_slots
from fxprune.channels.records import compact_shape

LARGE = 1 << 16
"""On a CPU a tensor with this many elements is no part of a pack: copying all of it costs more than
finding the cells that change."""


class Slots:
    """Where each position of each axis lies for a selection, at fixed widths.

    Attributes:
        spans: by the id of an axis, where it begins in the line of all axes, and its length.
    """

    def __init__(self, axes: Iterable[Axis], widths: Widths, device: torch.device) -> None:
        slots, orders, steps, bases = [], [], [], []
        self.spans: dict[int, tuple[int, int]] = {}
        begin = dense = 0
        for axis in axes:
            slot, order, step, base = _slots(axis, widths)
            self.spans[id(axis)] = (begin, len(slot))
            slots.append(slot)
            orders.append(order)
            steps.append(step)
            bases.append(base + dense)
            begin += len(slot)
            dense += len(order)
        self._slot = torch.cat(slots)
        self._order, self._step = torch.cat(orders).to(device), torch.cat(steps).to(device)
        self._base = torch.cat(bases).to(device)
        source = self._slot.clamp(max=max(sum(widths) - 1, 0))  # fixed: any, the step is 0
        self._source = source.to(device)

    def slot(self, axis: Axis) -> Tensor:
        """Return the slot of each position of a compact axis, K if fixed: int64 [length], CPU."""
        begin, length = self.spans[id(axis)]
        return self._slot[begin : begin + length]

    def line(self, selection: Tensor) -> Tensor:
        """Return the dense positions that the compact axes hold, one axis behind the other: int64.

        Args:
            selection: int64 [K].
        """
        filled = selection.index_select(0, self._source)
        return self._order.index_select(0, filled.mul_(self._step).add_(self._base))

    def positions(self, line: Tensor) -> dict[int, Tensor]:
        """Cut the line into axes, by the axis's id."""
        lengths = [length for _, length in self.spans.values()]
        return dict(zip(self.spans, line.split_with_sizes(lengths)))


def _slots(axis: Axis, widths: Widths) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Compute four int64 tensors that give the dense position of each compact position i.

    It is order[base[i] + step[i] * selection[slot[i]]]. For example, a linear layer behind a
    flattening has 4 channels at 2 positions each: channel 0 at 0 and 1, channel 1 at 2 and 3, and
    so on. With 2 channels kept, slot is 0 0 1 1, order 0 … 7, step 2 2 2 2 and base 0 1 0 1; the
    selection (3, 1) gives the dense positions 6 7 2 3.
    """
    layout = axis.layout
    slot = template_slots(layout, widths).numpy()[axis.channel.numpy()]
    template = np.flatnonzero(slot >= 0)
    channel = axis.channel.numpy()[template]
    times = np.zeros(len(layout.sizes) + 1, dtype=np.int64)  # the last stands for FIXED
    for group, count in axis.factor.per_channel:
        times[group] = count
    step = times[np.where(channel == FIXED, FIXED, layout.groups.numpy()[channel])]
    # Sorted by channel, the positions of a group's channels follow each other, `step` for each
    # channel; so the rank of a slot's position is linear in the channel that fills it.
    order, rank = axis.order
    slots, orders, steps, bases = map(
        torch.from_numpy, (slot[template], order, step, rank[template] - step * channel)
    )
    return slots, orders, steps, bases


Positions = Mapping[int, Tensor]
"""For each gated dimension of a tensor, the dense positions that its compact form holds."""


def grid(positions: Positions, shape: torch.Size) -> tuple[Tensor, ...]:
    """Make an index of the outer product of the given positions, for tensors of `shape`."""
    last = max(positions)
    device = positions[last].device
    lines = [
        positions[dim] if dim in positions else torch.arange(shape[dim], device=device)
        for dim in range(last + 1)
    ]
    return torch.meshgrid(*lines, indexing="ij") if last else (lines[0],)


def take(dense: Tensor, positions: Positions) -> Tensor:
    """Return the compact form of a dense tensor, as a tensor of its own, in its memory format."""
    if len(positions) == 1:
        ((dim, line),) = positions.items()
        compact = dense.index_select(dim, line)
    else:
        compact = dense[grid(positions, dense.shape)] if positions else dense.clone()
    if dense.dim() == 4 and not dense.is_contiguous() and dense.stride(1) == 1:
        return compact.contiguous(memory_format=torch.channels_last)
    return compact


def put(dense: Tensor, positions: Positions, compact: Tensor) -> None:
    """Write a compact tensor into the dense one, at its positions, in place."""
    if len(positions) == 1:
        ((dim, line),) = positions.items()
        dense.index_copy_(dim, line, compact)
    else:
        dense[grid(positions, dense.shape)] = compact


class Bank:
    """The dense tensors by name, and the optimiser's dense state by name and key.

    Attributes:
        dense: the bank of each gated parameter and buffer; those of a pack are views of it.
        states: for each gated parameter, the bank of each of its optimiser's state tensors.
        layouts: how each of them lies in memory.
        packs: the pack of each tensor that has one, by name.
    """

    def __init__(self, channels: ChannelGraph, dense: Mapping[str, Tensor]) -> None:
        """Copy the dense tensors, which are given by name."""
        self.channels = channels
        self._fitted: dict[tuple[Widths, torch.device], Slots] = {}
        self._shapes: tuple[Widths, dict[str, tuple[int, ...]]] = ((), {})
        self._lay(dense, {})
        for name in dense.keys() - self.packs.keys():
            self.dense[name] = dense[name].clone()

    def slots(self, widths: Widths, device: torch.device) -> Slots:
        """Return the slots of all axes at the given widths; kept for the last two asked for."""
        known = self._fitted.get((widths, device))
        if known is None:
            each = (axis for dims in self.channels.axes.values() for axis in dims.values())
            axes = {id(axis): axis for axis in each}
            known = Slots(axes.values(), widths, device)
            last = [*self._fitted.items()][-1:]  # evaluation may have widths of its own
            self._fitted = {**dict(last), (widths, device): known}
        return known

    def shape(self, name: str, widths: Widths) -> tuple[int, ...]:
        """Return the compact shape of a tensor; kept until the widths change."""
        if self._shapes[0] != widths:
            each = self.channels.axes
            self._shapes = (widths, {n: compact_shape(n, self.channels, widths) for n in each})
        return self._shapes[1][name]

    def positions(self, selection: Tensor, widths: Widths) -> dict[int, Tensor]:
        """Return the dense positions of every axis, by the axis's id, for a selection."""
        slots = self.slots(widths, selection.device)
        return slots.positions(slots.line(selection))

    def of(self, name: str, positions: Mapping[int, Tensor]) -> dict[int, Tensor]:
        """Return the positions of one tensor's dimensions."""
        return {dim: positions[id(axis)] for dim, axis in self.channels.axes[name].items()}

    def state(self, name: str, key: str, like: Tensor) -> Tensor:
        """Return the bank of an optimiser state tensor; a new one holds zeros."""
        states = self.states.setdefault(name, {})
        old = states.get(key)
        if old is not None and old.dtype != like.dtype:  # the optimiser's was cast
            del states[key]
            self.state(name, key, like).copy_(old)
        if key not in states:
            pack = self.packs.get(name)
            if pack is None:
                states[key] = torch.zeros_like(self.dense[name], dtype=like.dtype)
            else:
                states[key] = pack.view(self.flat(pack, key, like), name)
        return states[key]

    def forget_states(self) -> None:
        """Delete the banks of the optimiser's state; `state` makes new ones."""
        self.states.clear()
        for key in [key for key in self._flats if key[1] is not None]:
            del self._flats[key]

    def flat(self, pack: Pack, key: str | None, like: Tensor) -> Tensor:
        """Return a pack's storage: of the tensors themselves for the key None, else of a state."""
        known = (id(pack), key, like.dtype)
        if known not in self._flats:
            self._flats[known] = pack.flat(like, states=key is not None)
        return self._flats[known]

    def apply(self, function: Callable[[Tensor], Tensor]) -> None:
        """Apply the function of `nn.Module._apply` (as `to` calls it) to all banked tensors.

        Optimiser states only change their device; the optimiser sets their dtype.
        """
        dense = {name: function(tensor) for name, tensor in self.dense.items()}
        states = {
            name: {key: tensor.to(dense[name].device) for key, tensor in states.items()}
            for name, states in self.states.items()
        }
        self._lay(dense, states)

    def __deepcopy__(self, memo: dict[int, Any]) -> "Bank":
        clone = Bank(self.channels, self.dense)
        for name, states in self.states.items():
            for key, tensor in states.items():
                clone.state(name, key, tensor).copy_(tensor)
        return clone

    @property
    def bytes(self) -> int:
        """The size of all banked tensors in bytes."""
        tensors = [*self.dense.values(), *(t for s in self.states.values() for t in s.values())]
        return sum(tensor.numel() * tensor.element_size() for tensor in tensors)

    def _lay(self, dense: Mapping[str, Tensor], states: Mapping[str, Mapping[str, Tensor]]) -> None:
        """Store tensors and states, small ones and all on a GPU in packs."""
        self.dense, self.states = dict(dense), dict[str, dict[str, Tensor]]()
        self.packs: dict[str, Pack] = {}
        self._flats: dict[tuple[int, str | None, torch.dtype], Tensor] = {}
        self.layouts = {
            name: MemoryLayout.of(t, self.channels.axes[name]) for name, t in dense.items()
        }
        parameters = {term.name for term in self.channels.params_terms}
        alike: dict[tuple[int, torch.dtype], dict[str, MemoryLayout]] = {}
        # A pack has parameters before buffers, and vectors before others: views take them together.
        for name in sorted(dense, key=lambda name: (name not in parameters, dense[name].dim() > 1)):
            layout, tensor = self.layouts[name], dense[name]
            if layout.lead and (tensor.device.type != "cpu" or tensor.numel() < LARGE):
                alike.setdefault((layout.cell, tensor.dtype), {})[name] = layout
        for members in alike.values():
            pack = Pack(members, sum(name in parameters for name in members))
            for name in members:
                own = pack.view(self.flat(pack, None, dense[name]), name)
                self.dense[name] = own.copy_(dense[name])
                self.packs[name] = pack
        for name, kept in states.items():
            for key, tensor in kept.items():
                self.state(name, key, tensor).copy_(tensor)
