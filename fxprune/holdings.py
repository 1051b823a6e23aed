"""Holdings: a network's residents, its bank, and the optimiser's state, which change places.

The optimiser is held weakly. Its state lies in the order of the selection for which it was last
exchanged, whose widths are asked for here: not always that of the parameters, since evaluation
leaves it alone.
"""

import weakref
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from fxprune import moments
from fxprune.bank import Bank, Slots, take
from fxprune.groups import ChannelGraph, Widths
from fxprune.residents import Chosen, Item, homes, store
from fxprune.saliency import Meter


class Holdings:
    """What a gated network holds.

    Attributes:
        bank: where channels rest.
    """

    def __init__(
        self, network: nn.Module, channels: ChannelGraph, bank: Bank | None = None
    ) -> None:
        """Finds the gated tensors of a network.

        Args:
            network: a dense one, which gets a bank, or one with a bank.
            channels: its channel graph.
            bank: the bank, if there is one.
        """
        self._homes = homes(network, channels)
        if bank is None:
            bank = Bank(channels, {name: t.detach() for name, t in self.tensors().items()})
        self.bank = bank
        self._meter: tuple[Slots, Meter] | None = None
        self._optimizer: weakref.ref[torch.optim.Optimizer] | None = None
        self._told = False  # of state that does not follow

    def tensors(self) -> dict[str, Tensor]:
        """The residents by name: parameters and buffers that belong to channels."""
        return {name: home.tensor() for name, home in self._homes.items()}

    def meter(self, at: Chosen) -> Meter:
        """Measures the residents of a selection; kept until the widths change."""
        slots = self.bank.slots(at.widths, device := at.channels.device)
        if self._meter is None or self._meter[0] is not slots:
            meter = Meter(self.bank.channels, slots.slot, len(at.channels), device)
            self._meter = (slots, meter)
        return self._meter[1]

    def parameters(self) -> Iterator[Item]:
        """The residents as items of an exchange."""
        for name, home in self._homes.items():
            yield Item(name, None, home.tensor().detach(), self.bank.dense[name], home.install)

    def states(self, widths: Widths) -> Iterator[Item]:
        """The optimiser's tensors that have an element for each of their parameter's.

        None if there is no optimiser, or no step was taken.
        """
        optimizer = self._tracked()
        if optimizer is None:
            return
        for name, home in self._homes.items():
            state = optimizer.state.get(home.tensor())
            if not state:
                continue
            shape = self.bank.shape(name, widths)
            tensors = {k: v for k, v in state.items() if isinstance(v, Tensor) and v.shape == shape}
            new = tensors.keys() - self.bank.states.get(name, {}).keys()
            beginnings = moments.beginnings(optimizer, home.tensor()) if new else {}
            for key, tensor in tensors.items():
                dense = self.bank.state(name, key, tensor)
                if key in new:
                    dense.fill_(beginnings.get(key, 0.0))
                yield Item(name, key, tensor, dense, _setter(state, key))

    def store(self, at: Chosen) -> Mapping[str, Tensor]:
        """Brings the bank up to date with the residents of a selection; returns it, by name."""
        store(self.parameters(), self.bank, at)
        return self.bank.dense

    def load(self, at: Chosen) -> None:
        """Fills the residents from the bank, whatever was in them."""
        places = self.bank.places(at.channels, at.widths)
        for name, home in self._homes.items():
            home.install(take(self.bank.dense[name], self.bank.of(name, places)))

    def renew(self) -> None:
        """Makes autograd take up the residents' shapes."""
        for home in self._homes.values():
            home.renew()

    def track(self, optimizer: torch.optim.Optimizer) -> None:
        """From now on it is this optimiser's state that travels."""
        self._optimizer, self._told = weakref.ref(optimizer), False

    def drop_strays(self, widths: Widths, new: Widths) -> None:
        """Tells of state that cannot follow; at new widths the optimiser has to begin it anew."""
        optimizer = self._tracked()
        if optimizer is None or not optimizer.state or (self._told and widths == new):
            return
        strays = {}
        for name, home in self._homes.items():
            state = optimizer.state.get(home.tensor(), {})
            if keys := tuple(moments.strays(state, self.bank.shape(name, widths))):
                strays[home.tensor()] = keys
        if not self._told:
            for key in dict.fromkeys(key for keys in strays.values() for key in keys):
                moments.warn_of_stray(optimizer, key)
        self._told = True
        if widths != new:
            for parameter in strays:
                del optimizer.state[parameter]

    def _tracked(self) -> torch.optim.Optimizer | None:
        return None if self._optimizer is None else self._optimizer()


def _setter(state: dict[str, Any], key: str) -> Callable[[Tensor], None]:
    def install(tensor: Tensor) -> None:
        state[key] = tensor

    return install
