"""Residents: the compact tensors that execute, and their exchange with the bank."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fxprune.bank import Bank, Move, Places, put, take
from fxprune.groups import ChannelGraph, Widths
from fxprune.resize import compact_shape


@dataclass(frozen=True, eq=False)
class Chosen:
    """A selection, int64 [K], group after group in slot order, and the widths it has."""

    channels: Tensor
    widths: Widths


@dataclass(frozen=True, eq=False)
class Item:
    """A compact tensor, its bank, and how to put another in its place."""

    name: str
    resident: Tensor
    dense: Tensor
    install: Callable[[Tensor], None]


@dataclass(frozen=True, eq=False)
class Home:
    """The places where modules hold one parameter or buffer; several where it is shared."""

    places: tuple[tuple[nn.Module, str], ...]

    def tensor(self) -> Tensor:
        """The tensor that lives here."""
        module, name = self.places[0]
        tensor = getattr(module, name)
        assert isinstance(tensor, Tensor)
        return tensor

    def install(self, data: Tensor) -> None:
        """Gives the tensor other data, of any shape; the tensor object stays the same."""
        tensor = self.tensor()
        if tensor.shape != data.shape:
            # While an old graph lives (a loop that keeps its last loss), autograd goes on with the
            # old shape; it forgets it only when the dtype changes.
            other = torch.float32 if tensor.dtype == torch.float64 else torch.float64
            tensor.data = data.new_empty(0, dtype=other)
        tensor.data = data
        tensor.grad = None


def homes(module: nn.Module, channels: ChannelGraph) -> dict[str, Home]:
    """Where each gated parameter and buffer lives, by name."""
    names: dict[int, str] = {}
    places: dict[str, list[tuple[nn.Module, str]]] = {}
    for path, child in module.named_modules():
        for own in (child._parameters, child._buffers):
            for key, tensor in own.items():
                if tensor is None:
                    continue
                name = names.setdefault(id(tensor), f"{path}.{key}" if path else key)
                places.setdefault(name, []).append((child, key))
    return {name: Home(tuple(places[name])) for name in channels.axes}


def parameters(of: dict[str, Home], bank: Bank) -> Iterator[Item]:
    """The gated parameters and buffers."""
    for name, home in of.items():
        yield Item(name, home.tensor(), bank.dense[name], home.install)


def states(
    of: dict[str, Home], bank: Bank, optimizer: torch.optim.Optimizer, widths: Widths
) -> Iterator[Item]:
    """The optimiser's state tensors that have an element for each element of their parameter.

    `widths` are those for which the state was last exchanged.
    """
    for name, home in of.items():
        state = optimizer.state.get(home.tensor(), {})
        shape = compact_shape(name, bank.channels, widths)
        for key, tensor in list(state.items()):
            if isinstance(tensor, Tensor) and tuple(tensor.shape) == shape:
                yield Item(name, tensor, bank.state(name, key, tensor), _setter(state, key))


@torch.no_grad()
def store(items: Iterator[Item], bank: Bank, at: Chosen) -> None:
    """Writes residents to the bank; they stay as they are."""
    places = bank.places(at.channels, at.widths)
    for item in items:
        put(item.dense, bank.of(item.name, places), item.resident.detach())


@torch.no_grad()
def exchange(items: Iterator[Item], bank: Bank, old: Chosen, new: Chosen) -> None:
    """Moves residents from one selection to another; at equal widths only the slots that differ."""
    if new is old:
        return
    before = bank.places(old.channels, old.widths)
    if new.widths == old.widths:
        _swap(items, bank, before, bank.places(new.channels, new.widths))
        return
    moving = list(items)
    for item in moving:
        put(item.dense, bank.of(item.name, before), item.resident.detach())
    after = bank.places(new.channels, new.widths)
    for item in moving:
        item.install(take(item.dense, bank.of(item.name, after)))


def _swap(items: Iterator[Item], bank: Bank, before: Places, after: Places) -> None:
    changed = {
        key: slots
        for key, line in after.items()
        if len(slots := (line != before[key]).nonzero().flatten())
    }
    for item in items:
        axes = bank.channels.axes[item.name]
        moving = {dim: changed[id(axis)] for dim, axis in axes.items() if id(axis) in changed}
        if moving:
            old, new = bank.of(item.name, before), bank.of(item.name, after)
            Move(old, new, moving)(item.resident.detach(), item.dense)


def _setter(state: dict[str, Any], key: str) -> Callable[[Tensor], None]:
    def install(tensor: Tensor) -> None:
        state[key] = tensor

    return install
