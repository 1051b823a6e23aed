"""The gated network: the compact network, and the bank in which all other channels rest.

A step of it is a step of an ordinary narrow network. Between steps `advance` exchanges the
channels that leave the selection for those that enter it.
"""

import contextlib
import functools
import gc
import weakref
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from fxprune.bank import exchange
from fxprune.bank.bank import take
from fxprune.bank.exchange import Item, Selection
from fxprune.budget.schedule import StepSchedule
from fxprune.errors import require_kind
from fxprune.gated import ddp, display
from fxprune.gated.executing import lasting, whole
from fxprune.gated.nodes import read_taps
from fxprune.gated.saving import Saving
from fxprune.gated.selector import Settings

__all__ = ["GatedModule", "Settings", "example_of"]


_Shown = tuple[Item, Callable[[], Tensor | None], Callable[[Tensor], None]]
"""A tensor, and how what stands in its place is read and replaced."""


class GatedModule(Saving):
    """A network in which only the chosen channels exist.

    Its parameters hold the selection that the policy explores, in any mode. A forward in training
    mode executes that; one in evaluation mode executes the selection that export would take now,
    on tensors gathered for it. Without `fxprune.attach` it stays on its first selection.

    Attributes:
        channels: the channel dependency graph.
        cost: macs and params as a function of the widths.
        settings: policy, budget, interval, seed.
        bank: where channels rest.
        inputs: the example inputs, with which it can be instrumented again, on the CPU; floating
            ones are zero.
        copied_from: the network of which this is a deep copy.
        attached: the optimisers whose steps drive its selection.
    """

    _is_early = False  # gradients of this round come one by one, see `_observe_early`
    _shows_all = False  # see `all_channels`

    def track(self, optimizer: torch.optim.Optimizer, pace: StepSchedule | None = None) -> None:
        """Exchange the optimiser's state with the channels, and let its steps drive the selection.

        It replaces attached optimisers that hold some of the same parameters.

        Args:
            optimizer: the optimiser.
            pace: the share of the network that executes at each of its steps.

        Raises:
            GateError: a gated layer was replaced.
            OptionError: it is no optimiser.
        """
        do = "give one of torch.optim; fxprune.attach takes what frameworks wrap around one too"
        require_kind(optimizer, torch.optim.Optimizer, "the optimiser", do)
        self.begin_alone()
        self._residents.refind(self._selection)
        self.attached.add(optimizer, pace)
        held = weakref.ref(self)
        self._residents.optimizers.track(
            optimizer, self.attached, lambda: _saving(held()), lambda: _chooses(held())
        )

    def join(self, wrapper: DistributedDataParallel) -> None:
        """Join the replicas of a data-parallel wrapper that is being made.

        Takes over the first rank's bank, policy state and selection, as the wrapper does with the
        parameters. `DistributedDataParallel(gated)` calls it by itself.

        Raises:
            OptionError: it is no such wrapper.
        """
        require_kind(wrapper, DistributedDataParallel, "the wrapper", "wrap the gated network")
        gc.collect()  # of an earlier one, which ranks would otherwise forget at different times
        self.restore(ddp.broadcast(self.training_state(), wrapper.process_group, self._device()))
        self._wrappers.add(wrapper)
        ddp.refuse_join(wrapper, lambda: not self.settled)

    @contextlib.contextmanager
    def all_channels(self) -> Iterator[None]:
        """Show the attached optimisers all channels, of the weights and of their state.

        For what they do to all weights at once, beside their steps; what rests takes part too.
        """
        with self.paused():
            if self._shows_all:  # a method that moves all weights calls another one
                yield
                return
            at = self.ordered()
            shown = self._stored(at)
            self._pending = [functools.partial(self._narrow, shown, at)]
            try:
                self._shows_all = True
                for item, _, install in shown:
                    install(item.dense)
                yield
            finally:
                self._finish()

    @lasting
    def _stored(self, at: Selection) -> list[_Shown]:
        """Write the residents and their state into the bank; return what can be shown instead."""
        residents = self._residents.tensors()
        shown: list[_Shown] = []
        for item in self._residents.parameters():
            tensor = residents[item.name]
            read = functools.partial(getattr, tensor, "data")
            shown.append((item, read, functools.partial(setattr, tensor, "data")))
        for state, item in self._residents.optimizers.with_states(at.widths):
            shown.append((item, functools.partial(state.get, item.key), item.install))
        exchange.store((item for item, *_ in shown), self.bank, at)
        return shown

    def _narrow(self, shown: Sequence[_Shown], at: Selection) -> None:
        """Put the channels of a selection back in the place of all; it may be called again."""
        positions = self.bank.positions(at.channels, at.widths)
        for item, read, install in shown:
            now = read()
            if now is None:  # a state that was deleted
                continue
            if now.data_ptr() not in (item.dense.data_ptr(), item.resident.data_ptr()):
                item.dense.copy_(now)
            item.resident.copy_(take(item.dense, self.bank.of(item.name, positions)))
            install(item.resident)
        self._evaluation.stale, self._sums, self._shows_all = True, None, False

    def _before_step(self, optimizer: torch.optim.Optimizer, rate: float | None) -> None:
        """Prepare a step of an attached optimiser, at a learning rate, if it has one.

        Where several are attached, the policy observes before the first step of each round.
        """
        self._residents.gradients.refuse_mixed(
            p for group in optimizer.param_groups for p in group["params"]
        )
        if self.attached.begins(optimizer):
            if not self.settled:
                self.attached.warn_of_broken()
            self._observe_early()  # of a round that did not end
            if rate is not None:
                self._selector.note_rate(rate)
            self.observe()
        elif optimizer in self.attached:
            self._residents.gradients.check()
            self._residents.optimizers.put_in_order(
                self._selection
            )  # of a state loaded within the round
            if self._is_early:
                self._residents.meter(self._selection).read_early(self._residents.tensors())

    def _after_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Follow a step of an attached optimiser; the last of a round exchanges the channels."""
        if not self.attached.ends(optimizer):
            return
        self._observe_early()
        self.attached.warn_of_unheld(
            (name, t) for name, t in self._residents.tensors().items() if t.requires_grad
        )
        self._residents.gradients.used()
        if not self.training:  # trained in evaluation mode: train the selection that it executes
            self._select(self.best())
        else:
            for pace in self.attached.paces:
                chosen = self._selection_at(pace.share(self.steps))
                if chosen is not None:
                    self._select(chosen)
            self.advance()
        self._note_values()

    @whole
    def begin_step(self, forgets: bool = True) -> None:
        """Put the optimisers' states in order, and delete what an earlier optimiser left.

        Args:
            forgets: whether to delete it.
        """
        self._residents.optimizers.begin(self.attached, self.ordered(), forgets)

    @whole
    @torch.no_grad()
    def observe(self) -> None:
        """Show this step's saliencies to the policy; to be called before the optimiser's step.

        Raises:
            GateError: the gradients are of channels that do not execute.
        """
        if self._device().type == "cpu":  # a step on a GPU does not wait for it; evaluation looks
            self._look_for_written_average()
        self.begin_step()
        self._residents.gradients.check()
        self._selector.steps += 1
        self._evaluation.stale = True
        for follower in self._followers:  # a state that was loaded into one alone is outdated
            follower._loaded_at = None
        self._update_copies()
        if self._settled is not None:
            read_taps(self)  # empties the taps, which would add up until the policy chooses again
            return
        if self.attached.are_several and self.settings.policy.observes in ("batch", "sample"):
            meter = self._residents.meter(self._selection)
            self._is_early = meter.read_early(self._residents.tensors())
            if not self._is_early:
                meter.forget_early()
        if not self._is_early:
            self._selector.observe(self._selection.channels, self._saliency())

    @torch.no_grad()
    def _observe_early(self) -> None:
        """Show the policy the gradients of a round whose optimisers stepped inside backward."""
        if not self._is_early:
            return
        self._is_early = False
        self._selector.observe(self._selection.channels, self._saliency())
        self._residents.meter(self._selection).forget_early()

    @whole
    def advance(self) -> None:
        """Take the next selection if one is due; to be called after the optimiser's step."""
        if self._settled is None and self.training:
            chosen = self._selector.following(self._selection)
            if chosen is not None:
                self._select(chosen)

    def _saliency(self) -> Tensor:
        """Return what the policy observes of this step, on all ranks alike: float32 [K]."""
        observes, tensors = self.settings.policy.observes, self._residents.tensors()
        meter = self._residents.meter(self._selection)
        saliency = meter.measure(observes, tensors, lambda: read_taps(self))
        if observes == "sample":  # each rank has seen its own; gradients are equal already
            for wrapper in self._wrappers:
                saliency = ddp.mean(saliency, wrapper.process_group)
        return saliency

    def _exchange_locked(self, chosen: Selection) -> None:
        self._finish()
        self._observe_early()
        self._sums = None
        super()._exchange_locked(chosen)

    def __repr__(self) -> str:
        return display.as_text(display.picture_of(self))

    __str__ = __repr__  # torch.fx would print the code of the graph, which `gated.code` has

    def _repr_html_(self) -> str:
        return display.as_html(display.picture_of(self))


def example_of(gated: GatedModule) -> tuple[Tensor, ...]:
    """Copy the example inputs of a network, on the CPU; floating ones are zero."""
    return tuple(tensor.clone(memory_format=torch.contiguous_format) for tensor in gated.inputs)


def _chooses(gated: GatedModule | None) -> bool:
    """Tell whether a network has some of its channels only, and may exchange them."""
    if gated is None or gated.settled:
        return False
    return gated.trained.widths != gated.channels.layout.sizes


def _saving(gated: GatedModule | None) -> Selection | None:
    """Return the selection in whose order an optimiser's state is saved; None without a network."""
    if gated is None:
        return None
    return gated.ordered()
