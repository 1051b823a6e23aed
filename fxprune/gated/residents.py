"""The resident tensors of a network and its bank, with the optimisers whose state goes along."""

import weakref
from collections.abc import Iterator, Mapping

from torch import Tensor, nn

from fxprune.bank.bank import Bank, Slots, take
from fxprune.bank.exchange import Home, Item, Selection, held_by, homes, store
from fxprune.channels.graph import ChannelGraph
from fxprune.errors import GateError
from fxprune.gated.gradients import Gradients
from fxprune.gated.saliency import Meter
from fxprune.gated.tracked import TrackedOptimizers
from fxprune.tracing.module import modules_of, own_name


class Residents:
    """The gated tensors of a network: those that execute, with their bank.

    Attributes:
        bank: where channels rest.
        optimizers: those whose state is exchanged with the tensors.
        gradients: of the gated parameters, checked before each step.
        structure: what all modules of the network hold; another object once one is replaced.
    """

    def __init__(
        self, network: nn.Module, channels: ChannelGraph, bank: Bank | None = None
    ) -> None:
        """Find the gated tensors of a network.

        Args:
            network: a dense network, for which a bank is made, or one with a bank.
            channels: its channel graph.
            bank: the bank, if there is one.
        """
        self._network = weakref.ref(network)
        self._children: list[nn.Module] = []
        self._ids: set[int] = set()  # of the children
        self.structure: list[tuple[object, ...]] = []
        self._homes: dict[str, Home] = {}
        self._homes.update(self._found(network, channels))
        self._tied = _tied(network, self._homes)
        if bank is None:
            bank = Bank(channels, {name: t.detach() for name, t in self.tensors().items()})
        self.bank = bank
        self._meter: tuple[Slots, Meter] | None = None
        self.optimizers = TrackedOptimizers(self._homes, bank)
        self.gradients = Gradients(self._homes)

    def tensors(self) -> dict[str, Tensor]:
        """Return the residents by name: parameters and buffers that belong to channels."""
        return {name: home.tensor() for name, home in self._homes.items()}

    def meter(self, at: Selection) -> Meter:
        """Return the meter of a selection's saliencies, which is kept until the widths change."""
        slots = self.bank.slots(at.widths, device := at.channels.device)
        if self._meter is None or self._meter[0] is not slots:
            meter = Meter(self.bank.channels, slots.slot, len(at.channels), device)
            self._meter = (slots, meter)
        return self._meter[1]

    def parameters(self) -> Iterator[Item]:
        """Yield the residents as items of an exchange.

        Raises:
            GateError: one has another dtype than what rests: a layer alone was cast.
        """
        for name, home in self._homes.items():
            tensor, dense = home.tensor(), self.bank.dense[name]
            if tensor.dtype != dense.dtype:
                raise _replaced(name, f"it is of {tensor.dtype}, and was of {dense.dtype}")
            yield Item(name, None, tensor.detach(), dense, home.install)

    def narrow(self) -> list[Tensor]:
        """Return the parameters that are smaller than the dense network's."""
        pairs = ((t, self.bank.dense[name]) for name, t in self.tensors().items())
        return [t for t, dense in pairs if isinstance(t, nn.Parameter) and t.shape != dense.shape]

    def moving(self) -> Iterator[Tensor]:
        """Yield the bank's tensors and the optimisers' state, which follow the channels."""
        yield from self.bank.dense.values()
        for states in self.bank.states.values():
            yield from states.values()
        yield from self.optimizers.tensors()

    def store(self, at: Selection) -> Mapping[str, Tensor]:
        """Write the residents of a selection into the bank; return the bank's tensors by name."""
        store(self.parameters(), self.bank, at)
        return self.bank.dense

    def load(self, at: Selection) -> None:
        """Fill the residents from the bank, whatever was in them."""
        positions = self.bank.positions(at.channels, at.widths)
        for name, home in self._homes.items():
            home.install(take(self.bank.dense[name], self.bank.of(name, positions)))
        self.optimizers.renew_buckets()

    def part_from(self, source: "Residents") -> None:
        """Give tensors that are another network's too a place of their own, before that swaps them.

        Some averages take a network's very buffers (`mean.data = buffer.data`, as ignite's do).
        Exchanged in both networks, they would be of other channels in both.
        """
        theirs = {t.data_ptr(): t for t in source.tensors().values() if t.numel()}
        for home in self._homes.values():
            tensor = home.tensor()
            other = theirs.get(tensor.data_ptr())
            if other is tensor:
                own = tensor.detach().clone()
                is_parameter = isinstance(tensor, nn.Parameter)
                home.table[home.key] = (
                    nn.Parameter(own, tensor.requires_grad) if is_parameter else own
                )
            elif other is not None:
                tensor.data = tensor.data.clone()

    def renew(self) -> None:
        """Make autograd forget the shapes that residents had (see `Home.renew`)."""
        for home in self._homes.values():
            home.renew()
        self.optimizers.renew_buckets()

    def holds(self, module: nn.Module) -> bool:
        """Tell whether a module is the network, or was a part of it when that was last walked."""
        return module is self._network() or id(module) in self._ids

    def refind(self, at: Selection) -> None:
        """Find the residents again, after layers of the network may have been replaced.

        Raises:
            GateError: one has another shape or dtype than what the bank holds of it, or two that
                were one are two now.
        """
        network = self._network()
        assert network is not None
        found = self._found(network, self.bank.channels)
        for name, dense in self.bank.dense.items():
            here = found[name].tensor() if name in found else None
            shape, dtype = self.bank.shape(name, at.widths), dense.dtype
            if here is None:
                raise gone(network, name)
            if tuple(here.shape) != shape or here.dtype != dtype:
                is_now = f"it is {tuple(here.shape)} of {here.dtype}"
                raise _replaced(name, f"{is_now}, and was {shape} of {dtype}")
        if found is not self._homes:
            _refuse_parted(self._tied, _tied(network, found))
        self._homes.update(found)

    def _found(self, network: nn.Module, channels: ChannelGraph) -> Mapping[str, Home]:
        """Return where the residents are; they are looked for if a module was replaced."""
        if not self.structure or held_by((network, *self._children)) != self.structure:
            children = [*modules_of(network).values()]
            self.structure = held_by(children)
            self._children = [child for child in children if child is not network]
            self._ids = {id(child) for child in self._children}
            return homes(network, channels)
        return self._homes


def _tied(network: nn.Module, homes: Mapping[str, Home]) -> dict[str, list[str]]:
    """Return all names of the residents that stand in several places, by the first of them."""
    first = {id(home.tensor()): name for name, home in homes.items()}
    names: dict[str, list[str]] = {}
    for path, child in modules_of(network).items():
        for own in (child.__dict__["_parameters"], child.__dict__["_buffers"]):
            for key, tensor in own.items():
                if id(tensor) in first:
                    name = own_name(f"{path}.{key}" if path else key)
                    names.setdefault(first[id(tensor)], []).append(name)
    return {name: each for name, each in names.items() if len(each) > 1}


def _refuse_parted(before: Mapping[str, list[str]], now: Mapping[str, list[str]]) -> None:
    """Refuse tensors that were one, and of which one place has another by now.

    Raises:
        GateError: there is one.
    """
    for name, places in before.items():
        parted = next((place for place in places if place not in now.get(name, [name])), None)
        if parted is not None:
            raise GateError(
                f"the gated tensors {name} and {parted} were one, and are two now",
                why="their channels are exchanged as one; those of one of them would stay behind",
                do="give both places one parameter again; load without assign=True, which gives "
                "each place its own",
            )


def gone(network: nn.Module, name: str) -> GateError:
    """Make the error for a tensor that stood in the network when it was made, and does not now."""
    path, _, _ = name.rpartition(".")
    holder = modules_of(network).get(path)
    is_now = "" if holder is None else f": {path!r} is of class {type(holder).__name__}"
    return _replaced(name, f"it is gone{is_now}")


def _replaced(name: str, why: str) -> GateError:
    return GateError(
        f"the gated tensor {name} was replaced by another",
        why=why,
        do="change layers before fxprune.instrument, and dtypes of the whole network; to change a "
        "trained one, put the layer back, load gated.dense_state_dict() into the model, change "
        "that, and instrument it",
    )
