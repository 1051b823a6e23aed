"""The bank: full-size storage in which channels rest while they do not execute.

A gated parameter lives twice. Its *resident* is compact and is what the optimiser and the step
see; its *bank* has the dense shape. Slices of channels that execute are up to date in the
resident, all others in the bank. Buffers (running statistics) and the optimiser's per-element
state (momentum, Adam's moments) are banked in the same way, so that a channel comes back with
its own.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from fxprune.groups import FIXED, Axis, ChannelGraph, Widths, template_slots


class Slots:
    """Where each position of an axis lies for a selection, at fixed widths.

    Attributes:
        slot: int64 [length], the slot that fills each position of the compact axis; K, one past
            the last, where the position is fixed.
    """

    def __init__(self, axis: Axis, widths: Widths, device: torch.device) -> None:
        layout, template = axis.layout, axis.template(widths)
        channel = axis.channel[template]
        times = torch.zeros(len(layout.sizes) + 1, dtype=torch.int64)  # the last stands for FIXED
        for group, count in axis.factor.per_channel:
            times[group] = count
        step = times[torch.where(channel == FIXED, FIXED, layout.groups[channel])]
        # Sorted by channel, the positions of a group's channels follow each other, `step` for each
        # channel; so the rank of a slot's position is linear in the channel that fills it.
        order = torch.argsort(axis.channel, stable=True)
        rank = torch.empty_like(order)
        rank[order] = torch.arange(len(order))
        slot = template_slots(layout, widths)[channel]
        self.slot, self._order, self._step = slot.to(device), order.to(device), step.to(device)
        self._base = (rank[template] - step * channel).to(device)
        self._source = slot.clamp(max=max(sum(widths) - 1, 0)).to(device)  # fixed: any, step is 0

    def positions(self, selection: Tensor) -> Tensor:
        """The dense positions that the compact axis holds, in order.

        Args:
            selection: int64 [K].

        Returns:
            int64 [length].
        """
        return self._order[self._base + self._step * selection[self._source]]


Places = Mapping[int, Tensor]
"""For each gated dimension of a tensor, the dense positions that its compact form holds."""


def grid(places: Places, shape: torch.Size) -> tuple[Tensor, ...]:
    """An index that takes the outer product of the given positions, for tensors of `shape`."""
    last = max(places)
    device = places[last].device
    lines = [
        places[dim] if dim in places else torch.arange(shape[dim], device=device)
        for dim in range(last + 1)
    ]
    return torch.meshgrid(*lines, indexing="ij") if last else (lines[0],)


def take(dense: Tensor, places: Places) -> Tensor:
    """The compact form of a dense tensor, as a tensor of its own."""
    if len(places) == 1:
        ((dim, positions),) = places.items()
        return dense.index_select(dim, positions)
    return dense[grid(places, dense.shape)] if places else dense.clone()


def put(dense: Tensor, places: Places, compact: Tensor) -> None:
    """Writes a compact tensor to its places in the dense one, in place."""
    if len(places) == 1:
        ((dim, positions),) = places.items()
        dense.index_copy_(dim, positions, compact)
    else:
        dense[grid(places, dense.shape)] = compact


@dataclass(frozen=True, eq=False)
class Move:
    """A change of selection at equal widths, for tensors with the same gated dimensions.

    `old` and `new` are the places before and after; `changed` holds, for each dimension where
    they differ, the slots that do: int64 [m].
    """

    old: Places
    new: Places
    changed: Places

    def __call__(self, resident: Tensor, dense: Tensor) -> None:
        """Stores the slices that leave and loads those that enter, both in place.

        Whole slices travel. What a slice meets along the other dimensions is complete on either
        side, since a channel rests as a whole.
        """
        for dim, slots in self.changed.items():
            leaving = {**self.old, dim: self.old[dim][slots]}
            put(dense, leaving, resident.index_select(dim, slots))
        for dim, slots in self.changed.items():
            entering = {**self.new, dim: self.new[dim][slots]}
            resident.index_copy_(dim, slots, take(dense, entering))


class Bank:
    """The dense tensors by name, and the optimiser's dense state by name and key.

    Attributes:
        dense: the bank of each gated parameter and buffer.
        states: for each gated parameter, the bank of each of its optimiser's state tensors.
    """

    def __init__(self, channels: ChannelGraph, dense: Mapping[str, Tensor]) -> None:
        self.channels = channels
        self.dense = dict(dense)
        self.states: dict[str, dict[str, Tensor]] = {}
        self._slots: dict[int, Slots] = {}
        self._widths: Widths = ()

    def slots(self, axis: Axis, widths: Widths, device: torch.device) -> Slots:
        """The slots of an axis at the given widths; kept until the widths change."""
        if widths != self._widths:
            self._slots, self._widths = {}, widths
        known = self._slots.get(id(axis))
        if known is None or known.slot.device != device:
            known = self._slots[id(axis)] = Slots(axis, widths, device)
        return known

    def places(self, selection: Tensor, widths: Widths) -> dict[int, Tensor]:
        """The dense positions of every axis, by the axis's id, for a selection."""
        axes = {id(axis): axis for dims in self.channels.axes.values() for axis in dims.values()}
        return {
            key: self.slots(axis, widths, selection.device).positions(selection)
            for key, axis in axes.items()
        }

    def of(self, name: str, places: Mapping[int, Tensor]) -> dict[int, Tensor]:
        """The places of one tensor's dimensions."""
        return {dim: places[id(axis)] for dim, axis in self.channels.axes[name].items()}

    def state(self, name: str, key: str, like: Tensor) -> Tensor:
        """The bank of an optimiser state tensor; zeros where the optimiser has not made it yet."""
        states = self.states.setdefault(name, {})
        if key not in states:
            states[key] = like.new_zeros(self.dense[name].shape)
        return states[key]

    def apply(self, function: Callable[[Tensor], Tensor]) -> None:
        """Applies what `nn.Module.to` and its kind apply to a module's tensors."""
        self.dense = {name: function(tensor) for name, tensor in self.dense.items()}
        self.states = {
            name: {key: function(tensor) for key, tensor in states.items()}
            for name, states in self.states.items()
        }

    @property
    def bytes(self) -> int:
        """The size of all banked tensors in bytes."""
        tensors = [*self.dense.values(), *(t for s in self.states.values() for t in s.values())]
        return sum(tensor.numel() * tensor.element_size() for tensor in tensors)
