"""The optimiser whose state follows the channels, beside the parameters that it belongs to."""

import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from fxprune import moments
from fxprune.bank import Bank
from fxprune.groups import Widths
from fxprune.residents import Home, Item

Homes = Mapping[str, Home]


class Tracked:
    """A network's optimiser, held weakly; none at first.

    `widths` are, wherever they are asked for, those for which the state was last exchanged.
    """

    def __init__(self) -> None:
        self._reference: weakref.ref[torch.optim.Optimizer] | None = None
        self._told = False  # of state that does not follow

    def track(self, optimizer: torch.optim.Optimizer) -> None:
        """From now on it is this one."""
        self._reference = weakref.ref(optimizer)

    def items(self, homes: Homes, bank: Bank, widths: Widths) -> Iterable[Item]:
        """The state tensors that have an element for each element of their gated parameter."""
        optimizer = self._optimizer()
        return () if optimizer is None else _items(optimizer, homes, bank, widths)

    def drop_strays(self, homes: Homes, bank: Bank, widths: Widths, new: Widths) -> None:
        """Tells of state that cannot follow; at new widths the optimiser has to begin it anew."""
        optimizer = self._optimizer()
        if optimizer is None or not optimizer.state or (self._told and widths == new):
            return
        strays = _strays(optimizer, homes, bank, widths)
        if not self._told:
            for key in dict.fromkeys(key for keys in strays.values() for key in keys):
                moments.warn_of_stray(optimizer, key)
        self._told = True
        if widths != new:
            for parameter in strays:
                del optimizer.state[parameter]

    def _optimizer(self) -> torch.optim.Optimizer | None:
        return None if self._reference is None else self._reference()


def _items(
    optimizer: torch.optim.Optimizer, homes: Homes, bank: Bank, widths: Widths
) -> Iterator[Item]:
    for name, home in homes.items():
        state = optimizer.state.get(home.tensor())
        if not state:
            continue
        shape = bank.shape(name, widths)
        for key, tensor in list(state.items()):
            if isinstance(tensor, Tensor) and tensor.shape == shape:
                begun = key in bank.states.get(name, {})
                dense = bank.state(name, key, tensor)
                if not begun:
                    dense.fill_(moments.beginnings(optimizer, home.tensor()).get(key, 0.0))
                yield Item(name, key, tensor, dense, _setter(state, key))


def _strays(
    optimizer: torch.optim.Optimizer, homes: Homes, bank: Bank, widths: Widths
) -> dict[Tensor, tuple[str, ...]]:
    """The parameters some of whose state cannot follow the channels, and its keys."""
    found = {}
    for name, home in homes.items():
        state = optimizer.state.get(home.tensor(), {})
        keys = tuple(moments.strays(state, bank.shape(name, widths)))
        if keys:
            found[home.tensor()] = keys
    return found


def _setter(state: dict[str, Any], key: str) -> Callable[[Tensor], None]:
    def install(tensor: Tensor) -> None:
        state[key] = tensor

    return install
