"""Averages: copies of a gated network that execute the selections of another, slot for slot."""

import threading
import weakref
from collections.abc import Iterator
from typing import Any, Self

import torch
from torch import Tensor, nn

from fxprune.bank.exchange import Selection
from fxprune.channels.graph import ChannelGraph
from fxprune.errors import GateError, described
from fxprune.gated.bare_averages import BareAverages, is_close
from fxprune.gated.evaluation import Evaluation
from fxprune.gated.executing import Executing, lasting, whole
from fxprune.gated.links import Link
from fxprune.gated.mixtures import is_mixed, warn_of_mixture
from fxprune.gated.residents import Residents
from fxprune.gated.selector import Settings
from fxprune.gated.written_back import is_written, probed, warn_of_written
from fxprune.tracing.module import TracedModule

_LIVING: "weakref.WeakSet[Averaging]" = weakref.WeakSet()
"""All gated networks of the process."""


def living() -> list["Averaging"]:
    """Return all gated networks of the process."""
    return [*_LIVING]


def no_average(network: object) -> GateError:
    """Make the error for what is no gated network, where an average or its source is needed."""
    return GateError(
        f"cannot average {described(network)}",
        why="only a gated network has selections that can be followed",
        do="give what fxprune.instrument returned, and a copy of it",
    )


class Averaging(Executing):
    """A network whose deep copies may hold averages of its parameters.

    Attributes:
        copied_from: the network of which this is a deep copy.
    """

    def __init__(
        self,
        dense: TracedModule,
        channels: ChannelGraph,
        settings: Settings,
        example_inputs: tuple[Tensor, ...],
    ) -> None:
        """Take `dense` over, as `Executing` does."""
        self._followers: weakref.WeakSet[Averaging] = weakref.WeakSet()
        self._leader: weakref.ref[Averaging] | None = None
        self._leader_selection: Selection | None = None  # the leader's, taken up last
        self._loaded_at: Selection | None = None  # the leader's selection when a state was loaded
        self.copied_from: weakref.ref[Averaging] | None = None
        self._copies: weakref.WeakSet[Averaging] = weakref.WeakSet()
        self._link: Link | None = None
        self._goes_alone = False
        self._sums: Tensor | None = None  # after the last step; see `written_back`
        self._warned_of_written = False
        super().__init__(dense, channels, settings, example_inputs)
        _LIVING.add(self)

    _NOT_COPIED = (
        *("_residents", "_wrappers", "_followers", "_leader", "_evaluation", "_leader_selection"),
        *("_copies", "_link", "_pending", "_bare_averages", "_lock", "_sums"),
        *TracedModule._NOT_COPIED,
    )

    def follow(self, leader: "Averaging") -> None:
        """Follow the selection of another network, slot for slot, on tensors of its own.

        For an average of the other's parameters; see `fxprune.follow`, which is what to call.

        Raises:
            GateError: the other is no gated network, or this is no copy of it.
        """
        if not isinstance(leader, Averaging):
            raise no_average(leader)
        if self is leader or self.channels.shapes != leader.channels.shapes:
            raise GateError(
                "an average has to be a copy of the network that it follows",
                why="each of its channels holds the average of the channel of that number there",
                do="make it with copy.deepcopy(gated)",
            )
        self._leader, self._link = weakref.ref(leader), None
        leader._followers.add(self)
        self._catch_up()

    def needs_attached(self) -> bool:
        """Tell whether an optimiser that steps it should be attached, as that of its source is."""
        source = None if self.copied_from is None else self.copied_from()
        copied = isinstance(source, Averaging) and bool(source.attached) and not self.follows
        return super().needs_attached() or (copied and not self.settled)

    @property
    def follows(self) -> bool:
        """Whether it holds an average, and follows another network's selections."""
        return self._leader is not None

    @whole
    @lasting
    def best(self) -> Selection:
        """Return the selection that export would take now: the whole budget, and no exploration."""
        self._catch_up()
        self._look_for_mixture()
        if self._link is not None and self._link.own_best is not None:
            source = self._link.source()
            if source is None or not self._link.is_written(self._dense_parameters()):
                return self._link.own_best.to(self._device())
            self._take_over(source)
        return super().best()

    @whole
    @lasting
    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        """Return a copy with its own bank; no optimiser is attached to it."""
        self._catch_up()
        self._finish()
        clone = super().__deepcopy__(memo)
        clone._residents = Residents(clone, clone.channels, clone.bank)
        clone._residents.refind(clone._selection)
        for name in ("_wrappers", "_followers", "_copies"):
            setattr(clone, name, weakref.WeakSet())
        clone._pending, clone._link, clone._lock = [], None, threading.RLock()
        clone._sums = None
        clone._leader, clone._leader_selection, clone.copied_from = None, None, weakref.ref(self)
        clone._evaluation, clone._bare_averages = Evaluation(), BareAverages()
        clone._mode_was_set()
        clone._link = Link.of(self, clone._dense_parameters(), clone._selection)
        clone._goes_alone = False
        self._copies.add(clone)
        _LIVING.add(clone)
        return clone

    def begin_alone(self) -> None:
        """Stop following the network of which this is a copy, where it was when it was made."""
        link = self._link
        has_moved = link is not None and link.at is not None and not self._has_gradients()
        if link is not None and has_moved and not link.is_written(self._dense_parameters()):
            self._exchange(link.began.to(self._device()))
        self._forget_source()

    def go_alone(self) -> None:
        """Stop following the network of which this is a copy, since the copy trains by itself."""
        self._forget_source()
        self._goes_alone = True

    def _forget_source(self) -> None:
        source = None if self._link is None else self._link.source()
        if source is not None:
            source._copies.discard(self)
        self._link = None

    def _adopt(self) -> None:
        """Let networks with the same values as this one, which trains, follow it as copies do.

        Such is a target network that was built anew and has loaded this one's state.
        """
        for other in living() if self.attached and not self.follows else []:
            if other is not self and other._may_follow(self) and other._is_alike(self):
                other._link = Link.of(self, other._dense_parameters(), other._selection)
                self._copies.add(other)
        for one in (*self._followers, *self._copies):
            one._residents.part_from(self._residents)

    def _may_follow(self, source: "Averaging") -> bool:
        """Tell whether it is idle, and its step count lies in the source's present selection."""
        free = self._link is None and not (self.attached or self.follows or self.settled)
        free = free and not self._goes_alone
        return free and source._since <= self._selector.steps <= source._selector.steps

    def _is_alike(self, source: "Averaging") -> bool:
        """Tell whether its parameters are near another's, of the same channels."""
        one, other = self._selection, source._selection
        own, wanted = [*self.parameters()], [*source.parameters()]
        return (
            one.widths == other.widths
            and [(p.shape, p.dtype) for p in own] == [(p.shape, p.dtype) for p in wanted]
            and not any(p.is_meta for p in own)
            and self.channels.shapes == source.channels.shapes
            and self._is_at(source)
            and all(map(is_close, own, wanted))
        )

    def _restored(self) -> None:
        """Restore the links to the networks that it follows, after a whole state was loaded."""
        self._sums = None
        leader = None if self._leader is None else self._leader()
        if leader is not None:
            self._loaded_at, self._leader_selection = leader._selection, None
        source = None if self._link is None else self._link.source()
        if source is not None:
            self._link = Link.of(source, self._dense_parameters(), self._selection)

    def dense_tensors(self) -> dict[str, Tensor]:
        """Return the dense network's tensors by name, as `Executing` does."""
        self._look_for_written_average()
        return super().dense_tensors()

    def _evaluate(self, *args: Any, **kwargs: Any) -> Any:
        if not torch.compiler.is_compiling():
            self._look_for_written_average()
        return super()._evaluate(*args, **kwargs)

    def _probed(self) -> Tensor:
        return probed(
            [p for p in self._residents.tensors().values() if isinstance(p, nn.Parameter)]
        )

    def _note_values(self) -> None:
        """Note the values after a step, if there are copies that may be written back later."""
        may = (self._followers or self._copies) and not (self.settled or self._warned_of_written)
        self._sums = self._probed() if may and self._device().type != "meta" else None

    def _look_for_written_average(self) -> None:
        """Warn if the values of a copy were written into the network since its last step."""
        if self._sums is None:
            return
        then, now = self._sums.cpu(), self._probed().cpu()  # it may have been moved since
        if torch.equal(then, now):
            return
        self._sums = None
        copies = [one for one in (*self._followers, *self._copies) if self._is_at(one)]
        if is_written(then, now, (one._probed().cpu() for one in copies)):
            if not bool(torch.isin(self.best().channels, self._selection.channels).all()):
                self._warned_of_written = True
                warn_of_written()
        else:
            self._sums = then

    def _look_for_mixture(self) -> None:
        """Warn once if this copy was averaged with networks that trained apart from its source."""
        link = self._link
        source = None if link is None or link.is_mixed else link.source()
        if link is None or source is None or not self._is_at(source):
            return
        others = [
            other
            for other in living()
            if other not in (self, source)
            and other.channels.shapes == self.channels.shapes
            and not self._is_at(other)
        ]
        if is_mixed(self, source, others):
            link.is_mixed = True
            warn_of_mixture()

    def _is_at(self, other: "Averaging") -> bool:
        """Tell whether it executes the same channels as another one, in the same slots."""
        one, two = self._selection.channels, other._selection.channels
        return not (one.is_meta or two.is_meta) and torch.equal(one, two.to(one.device))

    def _update_copies(self) -> None:
        """Let the copies that follow take up the selection."""
        for follower in self._followers:
            follower._catch_up()
        for copy in [*self._copies]:
            copy._mirror(self)

    def _apply_widths(self) -> None:
        self._update_copies()
        super()._apply_widths()

    def _followed(self) -> Iterator[Tensor]:
        for network in self._led():
            yield from network._residents.moving()
            if network is not self:
                yield from network.parameters()
        for network in living():
            yield from network._evaluation.kept()

    def _led(self) -> Iterator["Averaging"]:
        """Yield the network, and those that execute its selections."""
        yield self
        for one in (*self._followers, *self._copies):
            yield from one._led()

    @lasting
    def _catch_up(self) -> None:
        """Take the selection of the network that it follows, if it follows one."""
        leader = None if self._leader is None else self._leader()
        if leader is None or self._loaded_at is leader._selection:
            return
        self._take_over(leader)
        device = self._device()
        if self._leader_selection is not leader._selection:
            self._exchange(leader._selection.to(device))
            self._leader_selection = leader._selection

    def _take_over(self, leader: "Averaging") -> None:
        """Copy the policy state of another network."""
        device = self._device()
        self._settled = None if leader._settled is None else leader._settled.to(device)
        self._selector.take_over(leader._selector, device)
        self._evaluation.stale = True

    @whole
    def _mirror(self, source: "Averaging") -> None:
        """Take up the source's selection in a copy that may hold an average; see `links.Link`."""
        link = self._link
        if link is None or self._has_gradients():
            self.go_alone()
            source._copies.discard(self)
        elif link.at is not source._selection:
            if link.own_best is None:
                link.own_best = self.best()
            self._exchange(source._selection.to(self._device()))
            link.at = source._selection

    def _has_gradients(self) -> bool:
        return any(p.grad is not None for p in self.parameters())

    def _dense_parameters(self) -> dict[str, Tensor]:
        dense = self.dense_tensors()
        return {name: dense[name] for name, _ in self.named_parameters()}
