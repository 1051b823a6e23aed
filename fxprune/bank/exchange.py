"""The exchange of channels between the bank and the tensors that execute (the residents).

Parameters, buffers and the optimisers' states are exchanged alike: each is an `Item`.
"""

import functools
from collections.abc import Callable, Iterable, Iterator, MutableMapping
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from fxprune.bank.bank import Bank, put, take
from fxprune.bank.packed import Pack
from fxprune.bank.sparse import SparseSwap
from fxprune.channels.graph import ChannelGraph, Layout, Widths
from fxprune.errors import GateError
from fxprune.tracing.module import modules_of, own_name


@dataclass(frozen=True, eq=False)
class Selection:
    """A selection, int64 [K], group after group in slot order, and the widths it has."""

    channels: Tensor
    widths: Widths

    def to(self, device: torch.device) -> "Selection":
        """Return the selection on a device."""
        return Selection(self.channels.to(device), self.widths)

    def fits(self, layout: Layout) -> bool:
        """Tell whether it has as many channels of each group as its widths say."""
        if len(self.widths) != len(layout.sizes) or len(self.channels) != sum(self.widths):
            return False
        asked = torch.arange(len(layout.sizes), device="cpu").repeat_interleave(
            torch.tensor(self.widths, device="cpu")
        )
        channels = self.channels.cpu()
        known = bool(((channels >= 0) & (channels < layout.total)).all())
        return known and torch.equal(layout.group_of()[channels], asked)

    def stays_in(self, other: "Selection") -> bool:
        """Tell whether the widths are the same, and so are the slots of each channel of both."""
        if self.widths != other.widths:
            return False
        moved = self.channels != other.channels
        return not bool(torch.isin(other.channels[moved], self.channels).any())


class Item(NamedTuple):
    """A compact tensor, its bank, and where to put another in its place.

    `key` is that of an optimiser state; None for the parameter or buffer itself.
    """

    name: str
    key: str | None
    resident: Tensor
    dense: Tensor
    install: Callable[[Tensor], None]


@dataclass(frozen=True, eq=False)
class Home:
    """The dict of a module that holds a gated tensor; one of several if the tensor is shared."""

    table: MutableMapping[str, Tensor | None]
    key: str

    def tensor(self) -> Tensor:
        """Return the tensor.

        Raises:
            GateError: it is gone.
        """
        tensor = self.table.get(self.key)
        if tensor is None:
            raise GateError(
                f"the gated tensor {self.key!r} was taken out of its module",
                why="its channels can no longer be exchanged",
                do="prune masks and parametrizations are put on, or removed, before "
                "fxprune.instrument",
            )
        return tensor

    def install(self, data: Tensor) -> None:
        """Give the tensor other data, of any shape; the tensor object stays the same."""
        tensor = self.tensor()
        tensor.data = data
        tensor.grad = None

    def renew(self) -> None:
        """Make autograd use the tensor's new shape.

        While an old graph is alive (a loop that keeps its last loss, the reducer of
        DistributedDataParallel), autograd keeps the shape of that graph: a parameter of [16, 3]
        whose data are now [8, 3] fails with "expected gradient of shape [16, 3]". It forgets the
        shape only when the dtype changes, so the tensor gets another dtype for a moment.
        """
        tensor = self.tensor()
        other = torch.float32 if tensor.dtype == torch.float64 else torch.float64
        data = tensor.data
        tensor.data = data.new_empty(0, dtype=other)
        tensor.data = data


def homes(module: nn.Module, channels: ChannelGraph) -> dict[str, Home]:
    """Find the module's dict that holds each gated parameter and buffer, by name."""
    found: dict[str, Home] = {}
    names: dict[int, str] = {}
    for path, child in modules_of(module).items():
        for own in (child.__dict__["_parameters"], child.__dict__["_buffers"]):
            for key, tensor in own.items():
                if tensor is not None:
                    name = names.setdefault(id(tensor), own_name(f"{path}.{key}" if path else key))
                    found.setdefault(name, Home(own, key))
    return {name: found[name] for name in channels.axes if name in found}


def held_by(children: Iterable[nn.Module]) -> list[tuple[object, ...]]:
    """Return what modules hold under which names, to compare: by id, which is cheaper than a walk.

    The ids are those of children that are compared while they live, and of tensors.
    """
    kinds = ("_modules", "_parameters", "_buffers")
    held = (vars(child)[kind] for child in children for kind in kinds)
    return [(*each, *map(id, each.values())) for each in held]


@torch.no_grad()
def store(items: Iterable[Item], bank: Bank, at: Selection) -> None:
    """Copy residents into the bank."""
    positions = bank.positions(at.channels, at.widths)
    for item in items:
        put(item.dense, bank.of(item.name, positions), item.resident)


Step = Callable[[], None]
"""A part of an exchange. If it was interrupted, it can be called again."""


def steps(items: Iterable[Item], bank: Bank, old: Selection, new: Selection) -> list[Step]:
    """Plan how residents move from one selection to another, in place where widths are equal.

    Args:
        items: the residents, of the old selection.
        bank: where the others rest.
        old: the selection that they are of.
        new: the selection that they will be of.

    Returns:
        The steps, to be called in this order. Each may be repeated until the next one was called.
    """
    if new is old:
        return []
    if new.widths == old.widths:
        return list(_swaps(items, bank, old, new))
    moving = list(items)
    before = bank.positions(old.channels, old.widths)
    after = bank.positions(new.channels, new.widths)

    def leave() -> None:
        for item in moving:
            put(item.dense, bank.of(item.name, before), item.resident)

    def enter(item: Item) -> None:
        item.install(take(item.dense, bank.of(item.name, after)))

    return [leave, *(functools.partial(enter, item) for item in moving)]


@torch.no_grad()
def taken(
    items: Iterable[Item], bank: Bank, old: Selection, new: Selection
) -> list[tuple[Callable[[Tensor], None], Tensor]]:
    """Gather the tensors of another selection, each with the function that installs it."""
    moving = list(items)
    store(moving, bank, old)
    positions = bank.positions(new.channels, new.widths)
    return [(item.install, take(item.dense, bank.of(item.name, positions))) for item in moving]


def _swaps(items: Iterable[Item], bank: Bank, old: Selection, new: Selection) -> Iterator[Step]:
    """Plan swaps: packs as a whole; of other, large tensors only the cells that change."""
    widths, device = new.widths, new.channels.device
    if device.type == "cpu" and torch.equal(old.channels, new.channels):
        return
    slots = bank.slots(widths, device)
    before, after = slots.line(old.channels), slots.line(new.channels)
    packed: dict[tuple[Pack, str | None, torch.dtype], dict[str, Tensor]] = {}
    large: dict[str, list[tuple[Tensor, Tensor]]] = {}
    for name, key, resident, dense, _ in items:
        pack = bank.packs.get(name)
        if pack is None:
            large.setdefault(name, []).append((resident, dense))
        else:
            packed.setdefault((pack, key, resident.dtype), {})[name] = resident
    if large:
        swap = SparseSwap(slots.positions(before), slots.positions(after))
        for name, pairs in large.items():
            yield from swap.exchanges(bank.layouts[name], pairs)
    indices: dict[Pack, tuple[Tensor, Tensor]] = {}
    for (pack, key, _), members in packed.items():
        tensors = {name: members[name] for name in pack.names if name in members}
        tables = pack.tables(widths, slots.spans, device)
        if pack not in indices:
            indices[pack] = tables.index(before), tables.index(after)
        leaving, entering = (pack.part(index, tables, [*tensors]) for index in indices[pack])
        flat = bank.flat(pack, key, next(iter(tensors.values())))
        yield _PackSwap(pack, tensors, flat, leaving, entering)


class _PackSwap:
    """The exchange of a pack; it may be called again after it was interrupted."""

    def __init__(
        self, pack: Pack, tensors: dict[str, Tensor], flat: Tensor, before: Tensor, after: Tensor
    ) -> None:
        self._pack, self._tensors, self._flat = pack, tensors, flat
        self._before, self._after = before, after
        self._leaving: Tensor | None = None

    def __call__(self) -> None:
        if self._leaving is None:
            self._leaving = self._pack.staged(self._tensors)
        leaving = self._leaving
        self._pack.swap(self._tensors, self._flat, self._before, self._after, leaving)
