"""The optimisers whose state is exchanged with the channels, and the order in which it lies.

They are held weakly. A state may come from elsewhere, in the order of another selection: from a
file, a copy, or another optimiser. It is brought into that of the residents before it is used.
"""

import functools
import weakref
from collections.abc import Callable, Container, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle
from torch.utils.weak import TensorWeakRef

from fxprune.bank.bank import Bank
from fxprune.bank.exchange import Home, Item, Selection, taken
from fxprune.channels.graph import Widths
from fxprune.gated import optimizer_state
from fxprune.gated.optimizers import inside
from fxprune.gated.slot_order import KEY, entry_of, order_of, with_order


@dataclass(eq=False)
class _Tracked:
    """An optimiser whose state is exchanged with the channels.

    Attributes:
        optimizer: held weakly.
        attached: the optimiser given to `attach`; it may wrap this one.
        stepped: whether it has stepped since it was attached, and no state was loaded since.
        ordered: whether its state is known to be in the order of the current selection.
        warned: whether the user was warned of state that does not follow the channels.
        looked: whether tensors were looked for that it keeps outside of its state.
        order: the selection in whose order its state lies if that does not say so itself; None
            for the current one.
        arriving: the selection into whose order its state is being brought, and what is left to
            do for that; None in between.
        handles: of the hooks by which saving and loading are noticed.
        entries: those of its saved states that have its very tensors, and these; see
            `TrackedOptimizers.entry`.
    """

    optimizer: weakref.ref[Optimizer]
    attached: weakref.ref[Optimizer]
    stepped: bool = False
    ordered: bool = False
    warned: bool = False
    looked: bool = False
    order: Selection | None = None
    arriving: tuple[Selection, list[Callable[[], None]]] | None = None
    handles: list[RemovableHandle] = field(default_factory=list)
    entries: list[tuple[TensorWeakRef, list[TensorWeakRef]]] = field(default_factory=list)

    def arrive(self) -> None:
        """Bring its state into the order that was planned; it can be interrupted anywhere."""
        if self.arriving is not None:
            at, steps = self.arriving
            for step in steps:
                step()
            self.order, self.arriving = at, None


class TrackedOptimizers:
    """The optimisers that train the residents of a network, with those that they wrap."""

    def __init__(self, homes: Mapping[str, Home], bank: Bank) -> None:
        """Begin without one.

        Args:
            homes: of the residents, by name; looked at anew each time.
            bank: where the channels of their state rest.
        """
        self._homes, self._bank = homes, bank
        self._tracked: list[_Tracked] = []

    def tensors(self) -> Iterator[Tensor]:
        """Yield all tensors of the optimisers' state."""
        for _, optimizer in self._living():
            for _, state in optimizer_state.states_in(optimizer):
                yield from (value for value in state.values() if isinstance(value, Tensor))

    def states(self, widths: Widths, ordered: bool = False) -> Iterator[Item]:
        """Yield the optimisers' state tensors that have their parameter's shape.

        Args:
            widths: of the selection in whose order they lie.
            ordered: leave out optimisers whose state may lie in another order.
        """
        return (item for _, item in self.with_states(widths, ordered))

    def with_states(
        self, widths: Widths, ordered: bool = False
    ) -> Iterator[tuple[dict[str, Any], Item]]:
        """Yield what `states` does, each with the state of the parameter that holds it."""
        seen: set[int] = set()  # a wrapper may have the very state of the one that it wraps
        for tracked, optimizer in self._living():
            if ordered and not self._is_ordered(tracked, optimizer):
                continue
            for name, home in self._homes.items():
                state = optimizer.state.get(home.tensor())
                if state and id(state) not in seen:
                    seen.add(id(state))
                    for item in self._items(name, optimizer, state, widths):
                        yield state, item

    def _items(
        self, name: str, optimizer: Optimizer, state: dict[str, Any], widths: Widths
    ) -> Iterator[Item]:
        tensor, tensors = self._homes[name].tensor(), self._alike(name, state, widths)
        new = tensors.keys() - self._bank.states.get(name, {}).keys()
        beginnings = optimizer_state.beginnings(optimizer, tensor) if new else {}
        for key, resident in tensors.items():
            dense = self._bank.state(name, key, resident)
            if key in new:
                begins = beginnings.get(key, 0.0)
                if begins == "parameter":
                    dense.copy_(self._bank.dense[name])
                else:
                    dense.fill_(begins)
            yield Item(name, key, resident, dense, _setter(state, key))

    def _alike(self, name: str, state: dict[str, Any], widths: Widths) -> dict[str, Tensor]:
        """Return what in a state has the shape of its parameter at these widths, and moves."""
        shape = self._bank.shape(name, widths)
        alike = ((k, v) for k, v in state.items() if optimizer_state.moves(v, shape))
        # a state may be the parameter's: SAM's `p.data = state["old_p"]`
        own = self._homes[name].tensor().data_ptr()
        return {key: value for key, value in alike if value.data_ptr() != own}

    def begin(self, attached: Container[object], at: Selection, forgets: bool) -> None:
        """Prepare a step; delete what rests of state that is gone.

        Before an optimiser's first step that is an earlier optimiser's, unless this optimiser's own
        state was loaded; later, what the user has deleted, as fastai does when it freezes layers.

        Args:
            attached: all attached optimisers.
            at: the selection of the residents.
            forgets: whether to delete it; not before a step that makes a state to load into.

        Raises:
            GateError: a state that was loaded has the shapes of no selection that is known.
        """
        for tracked, optimizer in self._living():
            if not tracked.stepped and tracked.attached() in attached:
                for name, home in self._homes.items():
                    optimizer_state.refuse_misfit(
                        optimizer, name, home.tensor(), self._bank.shape(name, at.widths)
                    )
                tracked.stepped = tracked.ordered = True
        if forgets:
            self._forget_gone()

    def _forget_gone(self) -> None:
        """Delete what rests of the state that no optimiser has of the channels that execute."""
        held: dict[int, set[str]] = {}
        for _, optimizer in self._living():
            for parameter, state in optimizer_state.states_in(optimizer):
                keys = (key for key, value in state.items() if isinstance(value, Tensor))
                held.setdefault(id(parameter), set()).update(keys)
        for name, states in self._bank.states.items():
            kept = held.get(id(self._homes[name].tensor()), ())
            for key in [key for key in states if key not in kept]:
                del states[key]

    def put_in_order(self, at: Selection) -> None:
        """Bring states that were saved at another selection into the order of the one at hand.

        Args:
            at: the selection of the residents.
        """
        for tracked, optimizer in self._living():
            if self._is_ordered(tracked, optimizer):
                continue
            states = {
                name: optimizer.state.get(home.tensor()) for name, home in self._homes.items()
            }
            found = {name: state for name, state in states.items() if state}
            tracked.arrive()  # if that was interrupted
            saved = order_of(found.values()) or self._dense_order(found, at) or tracked.order
            if saved is None:
                continue
            if not saved.fits(self._bank.channels.layout):
                optimizer_state.refuse_of_another(optimizer)
            saved = saved.to(at.channels.device)
            steps: list[Callable[[], None]] = []
            if torch.equal(saved.channels, at.channels):
                # what was loaded may be loaded again, and must not be what trains
                for name, state in found.items():
                    for key, value in self._alike(name, state, saved.widths).items():
                        steps.append(functools.partial(state.__setitem__, key, value.clone()))
            else:
                moving: list[Item] = []
                for name, state in found.items():
                    moving += self._items(name, optimizer, state, saved.widths)
                moved = taken(moving, self._bank, saved, at)
                steps += (functools.partial(install, tensor) for install, tensor in moved)
            steps += (functools.partial(state.pop, KEY, None) for state in found.values())
            tracked.arriving = at, steps
            tracked.arrive()
            tracked.order, tracked.ordered = None, True

    def _dense_order(
        self, states: Mapping[str, Mapping[str, Any]], at: Selection
    ) -> Selection | None:
        """Return the selection of all channels, if states are the dense network's by their shape.

        Args:
            states: by the name of the parameter.
            at: the selection of the residents.
        """
        for name, state in states.items():
            dense = self._bank.dense[name].shape
            is_wide = dense != self._bank.shape(name, at.widths)
            if is_wide and any(isinstance(v, Tensor) and v.shape == dense for v in state.values()):
                layout = self._bank.channels.layout
                return Selection(torch.arange(layout.total, device="cpu"), layout.sizes)
        return None

    def track(
        self,
        optimizer: Optimizer,
        attached: Container[object],
        saving: Callable[[], Selection | None],
        chooses: Callable[[], bool],
    ) -> None:
        """Exchange the state of this optimiser, and of those that it wraps, from now on.

        Of the optimisers tracked before, only attached ones stay.

        Args:
            optimizer: the optimiser.
            attached: all attached optimisers, this one among them.
            saving: called before its state is saved; brings states in order and returns the
                selection at hand, or None where the network is gone.
            chooses: tells whether the network is narrow and not settled.
        """
        inner = inside(optimizer)
        kept = []
        for tracked, one in self._living():
            outer = tracked.attached()
            if outer is optimizer or one in (optimizer, *inner) or outer not in attached:
                for handle in tracked.handles:
                    handle.remove()
            else:
                kept.append(tracked)
        for one in (optimizer, *inner):
            tracked = _Tracked(weakref.ref(one), weakref.ref(optimizer))
            if hasattr(one, "_optimizer_load_state_dict_post_hooks"):  # not all call super()
                tracked.handles = [
                    one.register_load_state_dict_post_hook(self._loaded(tracked, saving, chooses)),
                    one.register_state_dict_post_hook(self._saved(saving)),
                ]
            kept.append(tracked)
        self._tracked = kept

    def entry(self, optimizer: Optimizer, at: Selection) -> Tensor:
        """Return the entry of an optimiser's saved state that says of which channels it is.

        A state that is kept without a copy changes with the channels; the entry does too.
        """
        entry = entry_of(at)
        for tracked, one in self._living():
            if one is optimizer:
                living = [each for each in tracked.entries if each[0]() is not None]
                own = [TensorWeakRef(tensor) for tensor in self._moments(optimizer)]
                tracked.entries = [*living, (TensorWeakRef(entry), own)]
        return entry

    def _moments(self, optimizer: Optimizer) -> Iterator[Tensor]:
        """Yield the state tensors that have the shape of their gated parameter."""
        for parameter in self._parameters():
            for value in (optimizer.state.get(parameter) or {}).values():
                if optimizer_state.moves(value, parameter.shape):
                    yield value

    def correct_entries(self, at: Selection | None) -> None:
        """Follow an exchange in the entries of saved states; None if it made other tensors.

        A state whose tensors an optimiser has replaced since by new ones stays as it was; one with
        both kinds is of no selection.
        """
        for tracked, optimizer in self._living():
            kept = []  # in place of the others only at the end: it may be interrupted
            if at is not None and any(entry() is not None for entry, _ in tracked.entries):
                now, moved = entry_of(at), {id(tensor) for tensor in self._moments(optimizer)}
                for entry, tensors in tracked.entries:
                    follow = [id(tensor()) in moved for tensor in tensors]
                    if (content := entry()) is not None and any(follow):
                        content.copy_(now if all(follow) else torch.zeros_like(now))
                        kept.append((entry, tensors))
            tracked.entries = kept

    def is_tracked(self, optimizer: Optimizer) -> bool:
        """Tell whether the state of an optimiser is exchanged with the channels."""
        return any(one is optimizer for _, one in self._living())

    def renew_buckets(self) -> None:
        """Let ZeroRedundancyOptimizer make its buckets anew, of which the parameters were parts."""
        for _, optimizer in self._living():
            build: Callable[[], None] | None = getattr(optimizer, "_build_param_buckets", None)
            if build is not None:
                build()

    def reset_unmovable_state(
        self, widths: Widths, new: Widths, narrow: Callable[[], list[Tensor]]
    ) -> None:
        """Warn of state that does not follow the channels, and delete it at new widths.

        Args:
            widths: of the selection at hand.
            new: of the one that comes.
            narrow: returns the parameters that are smaller than the dense network's.
        """
        for tracked, optimizer in self._living():
            if tracked.stepped and not tracked.looked:
                tracked.looked = True
                for key in optimizer_state.kept_apart(optimizer, narrow()):
                    optimizer_state.warn_of_stray(optimizer, key)
            if not optimizer.state or (tracked.warned and widths == new):
                continue
            names = {home.tensor(): name for name, home in self._homes.items()}
            strays: dict[Tensor, tuple[str, ...]] = {}
            for parameter, state in optimizer_state.states_in(optimizer):
                name = names.get(parameter)
                shape = None if name is None else self._bank.shape(name, widths)
                if keys := tuple(optimizer_state.strays(state, shape, parameter.numel())):
                    strays[parameter] = keys
            if not tracked.warned:
                for key in dict.fromkeys(key for keys in strays.values() for key in keys):
                    optimizer_state.warn_of_stray(optimizer, key)
            tracked.warned = True
            if widths != new:
                for parameter in strays:
                    del optimizer.state[parameter]

    def _loaded(
        self,
        tracked: _Tracked,
        saving: Callable[[], Selection | None],
        chooses: Callable[[], bool],
    ) -> Callable[[Optimizer], None]:
        """Return what is called when an optimiser's state was loaded."""

        def loaded(_: Optimizer) -> None:
            for other, optimizer in self._living():
                # one that wraps another may have loaded into that, past its hooks
                is_inside = other.attached() is tracked.attached()
                if other is tracked or (is_inside and self._says_order(optimizer)):
                    # which has any order
                    is_empty = not any(True for _ in optimizer_state.states_in(optimizer))
                    other.stepped, other.ordered = False, is_empty
                    other.order, other.arriving, other.entries = None, None, []
            saving()  # puts it in order; a hook before a step may have loaded it for that step
            for other, optimizer in self._living():
                if other is tracked and not other.ordered and chooses():
                    optimizer_state.warn_without_order(optimizer, self._moments(optimizer))

        return loaded

    def _saved(
        self, saving: Callable[[], Selection | None]
    ) -> Callable[[Optimizer, dict[str, Any]], dict[str, Any]]:
        """Return what is called when an optimiser's state is saved."""

        def saved(optimizer: Optimizer, state: dict[str, Any]) -> dict[str, Any]:
            at = saving()
            if at is None or not state.get("state"):
                return state
            own = {id(tensor) for tensor in self._parameters()}
            held = (p for group in optimizer.param_groups for p in group["params"])
            numbers = (number for number, p in enumerate(held) if id(p) in own)
            return with_order(state, numbers, self.entry(optimizer, at))

        return saved

    def _is_ordered(self, tracked: _Tracked, optimizer: Optimizer) -> bool:
        return tracked.ordered and not self._says_order(optimizer)

    def _says_order(self, optimizer: Optimizer) -> bool:
        """Tell whether a state says of which channels it is: it came from elsewhere."""
        return any(KEY in state for _, state in optimizer_state.states_in(optimizer)) and any(
            KEY in (optimizer.state.get(tensor) or ()) for tensor in self._parameters()
        )

    def _living(self) -> Iterator[tuple[_Tracked, Optimizer]]:
        for tracked in self._tracked:
            optimizer = tracked.optimizer()
            if optimizer is not None:
                yield tracked, optimizer

    def _parameters(self) -> Iterator[Tensor]:
        return (home.tensor() for home in self._homes.values())


def _setter(state: dict[str, Any], key: str) -> Callable[[Tensor], None]:
    def install(tensor: Tensor) -> None:
        state[key] = tensor

    return install
