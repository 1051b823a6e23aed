"""The gated network: the compact network, and the bank in which all other channels rest.

A step of it is a step of an ordinary narrow network. Between steps `advance` exchanges the
channels that leave the selection for those that enter it.
"""

import itertools
import weakref
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Self, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from fxprune import registry
from fxprune.bank import exchange
from fxprune.bank.exchange import Chosen
from fxprune.budget.schedule import Pace
from fxprune.channels.cost import CostModel
from fxprune.channels.graph import ChannelGraph, Widths
from fxprune.channels.resize import resize
from fxprune.gated import ddp, display
from fxprune.gated.nodes import seen, taps, to_gated
from fxprune.gated.optimizers import Rounds
from fxprune.gated.residents import Holdings
from fxprune.gated.selector import Chooser, Settings
from fxprune.gated.state import Snapshot
from fxprune.tracing.module import TracedModule, modules_of

__all__ = ["GatedModule", "Settings"]

_Method = TypeVar("_Method", bound=Callable[..., Any])


def _lasting(method: _Method) -> _Method:
    """For what makes tensors that stay: inside `torch.inference_mode` they could not be trained."""
    wrapped: _Method = torch.inference_mode(False)(torch.no_grad()(method))
    return wrapped


class GatedModule(TracedModule):
    """A network in which only the chosen channels exist.

    In training mode it executes the selection that the policy explores; `eval()` changes to the
    selection that export would take now, and `train()` back. Without `fxprune.attach` it stays
    on its first selection.

    Attributes:
        channels: the channel dependency graph.
        cost: macs and params as a function of the widths.
        settings: policy, budget, interval, seed.
        bank: where channels rest.
        inputs: shape and dtype of each example input, with which it can be instrumented again.
        copied_from: the network of which this is a deep copy.
        attached: the optimisers whose steps drive its selection.
    """

    def __init__(
        self,
        dense: TracedModule,
        channels: ChannelGraph,
        settings: Settings,
        example_inputs: tuple[Tensor, ...],
    ) -> None:
        """Takes `dense` over: its modules become gated; the bank has copies of its tensors."""
        self._made = False
        super().__init__(dense, *dense.both_graphs, origin=dense.origin)
        self.channels, self.settings = channels, settings
        self.cost = CostModel(channels.macs_terms, channels.params_terms, channels.layout.sizes)
        self.inputs = tuple((tuple(tensor.shape), tensor.dtype) for tensor in example_inputs)
        self._wrappers: weakref.WeakSet[DistributedDataParallel] = weakref.WeakSet()
        self._followers: weakref.WeakSet[GatedModule] = weakref.WeakSet()
        self.attached = Rounds()
        self._lead: tuple[GatedModule, Chosen | None] | None = None
        self._loaded_at: Chosen | None = None  # what the leader executed then, for a follower
        self.copied_from: weakref.ref[GatedModule] | None = None
        self._settled: Chosen | None = None
        self._holdings = Holdings(self, channels)
        self.bank = self._holdings.bank
        for path, module in modules_of(self).items():
            name = f"{path}.weight" if path else "weight"
            if name in channels.axes:
                to_gated(module, channels.shapes[name])
        layout = channels.layout
        whole = Chosen(torch.arange(layout.total).to(self._device()), layout.sizes)
        with torch.no_grad():
            prior = self._holdings.meter(whole).magnitude(self._holdings.tensors())
        self._chooser = Chooser(settings, layout, self.cost, prior)
        first = self._chooser.first()
        self._holdings.load(first)
        resize(self, channels, first.widths)
        self._made = True
        self.recompile()
        self._chosen = self._trained = first
        self._known_widths: Widths = ()
        if not self.training:
            self._show(self.best())
        self._announce()

    # --- what a user asks -----------------------------------------------------------------

    @property
    def widths(self) -> Widths:
        """The widths that execute now, one per channel group."""
        return self._chosen.widths

    @property
    def executing(self) -> Tensor:
        """The selection that executes now: int64 [K], channel numbers in slot order."""
        return self._chosen.channels

    @property
    def steps(self) -> int:
        """How many optimiser steps were observed."""
        return self._chooser.steps

    @property
    def policy_state(self) -> dict[str, Tensor]:
        """The policy's tensors."""
        return self._chooser.state

    def selection(self) -> dict[str, dict[int, Tensor]]:
        """The kept indices of each parameter, as export would take them now.

        Returns:
            For each gated parameter of the original model, by name, and each of its gated
            dimensions: int64 [kept] on the CPU, in the order of the compact tensor.
        """
        best = self.best()
        places = self.bank.places(best.channels, best.widths)
        return {
            name: {dim: line.cpu() for dim, line in self.bank.of(name, places).items()}
            for name, tensor in self._holdings.tensors().items()
            if isinstance(tensor, nn.Parameter)
        }

    def dense_state_dict(self) -> dict[str, Any]:
        """All parameters and buffers with the original model's names and shapes; copies.

        Slices that execute have their newest values; those that rest have the values they had
        when they last executed.
        """
        return self.origin.state_dict(self.dense_tensors())

    def dense_tensors(self) -> dict[str, Tensor]:
        """The dense network's tensors by name: the bank, brought up to date, and what is not gated.

        They are the tensors themselves, not copies.
        """
        own = {**dict(self.named_parameters()), **dict(self.named_buffers())}
        return {**own, **self._holdings.store(self._chosen)}

    @_lasting
    def best(self) -> Chosen:
        """The selection that export would take now: the whole budget, and no exploration."""
        self._catch_up()
        if self._settled is not None:
            return self._settled
        return self._chooser.best(self._trained, self._chosen)

    @_lasting
    def settle(self, chosen: Chosen | None = None) -> None:
        """Stays on the export selection, or on a given one, from now on, in training too.

        Raises:
            GateError: the given selection does not fit the groups and its widths.
        """
        chosen = self.best() if chosen is None else chosen
        self.select(chosen)
        self._exchange_states(chosen)  # in evaluation mode as well: train() goes on with it
        self._settled = chosen

    def unsettle(self) -> None:
        """Lets the policy choose again."""
        self._settled = None

    @property
    def settled(self) -> bool:
        """Whether the selection is fixed for good."""
        return self._settled is not None

    def spend(self, share: float) -> None:
        """Executes the widths of another share of the network in training, until told otherwise.

        Without effect once the network is settled, and in evaluation mode, which goes on to show
        what the budget allows.

        Args:
            share: of the dense network, counted as the budget counts: the budget's, up to 1.

        Raises:
            BudgetError: the share is below the budget's, or above 1.
        """
        chosen = self._at(share)
        if chosen is not None:
            self._holdings.gradients.drop()
            self._select(chosen)

    def _at(self, share: float) -> Chosen | None:
        """The selection at another share; None where it stays."""
        if self.settled or not self.training:
            return None
        return self._chooser.spend(share, self._trained, self._chosen)

    # --- what happens around an optimiser step --------------------------------------------

    def track(self, optimizer: torch.optim.Optimizer, pace: Pace | None = None) -> None:
        """Makes the optimiser's per-element state follow its channels, and its steps drive them.

        It takes the place of those that hold some of the same parameters.

        Args:
            optimizer: the optimiser.
            pace: what its steps spend by themselves.

        Raises:
            GateError: a gated layer was replaced.
        """
        self._holdings.look_again(self._chosen)
        self.attached.add(optimizer, pace)
        self._holdings.track(optimizer, self.attached)

    def join(self, wrapper: DistributedDataParallel) -> None:
        """Becomes one of the equal replicas of a data-parallel wrapper, which is being made.

        Takes over the first rank's bank, policy state and selection, as the wrapper does with the
        parameters. `DistributedDataParallel(gated)` calls it by itself.
        """
        self.restore(ddp.broadcast(self.training_state(), wrapper.process_group, self._device()))
        self._wrappers.add(wrapper)

    def follow(self, leader: "GatedModule") -> None:
        """Always executes the selection of another network, slot for slot, on tensors of its own.

        For an average of the other's parameters; see `fxprune.follow`, which is what to call.
        """
        self._lead = (leader, None)
        leader._followers.add(self)
        self._catch_up()
        self.register_forward_pre_hook(_show_best)
        self.register_forward_hook(_show_leaders, always_call=True)

    @property
    def follows(self) -> bool:
        """Whether it holds an average, and follows another network's selections."""
        return self._lead is not None

    @_lasting
    def _catch_up(self) -> None:
        """Takes the selection of the network that it follows, if it follows one."""
        if self._lead is None or self._loaded_at is self._lead[0]._chosen:
            return
        leader, known = self._lead
        device = self._device()
        self._trained = leader._trained.to(device)
        self._settled = None if leader._settled is None else leader._settled.to(device)
        self._chooser.take_over(leader._chooser, device)
        if known is not leader._chosen:
            self._lead = (leader, leader._chosen)
            self._show(leader._chosen.to(device))

    def before_step(self, optimizer: torch.optim.Optimizer, rate: float) -> None:
        """To be called before a step of an attached optimiser, at a learning rate.

        Where several are attached, the first of each round shows the gradients to the policy.
        """
        if self.attached.begins(optimizer):
            self._chooser.note_rate(rate)
            self.observe()
        elif optimizer in self.attached:
            self._holdings.gradients.check()

    def after_step(self, optimizer: torch.optim.Optimizer) -> None:
        """To be called after it. The last of a round exchanges the channels."""
        if not self.attached.ends(optimizer):
            return
        self._holdings.gradients.used()
        for pace in self.attached.paces:
            chosen = self._at(pace.share(self.steps))
            if chosen is not None:
                self._select(chosen)
        self.advance()

    @torch.no_grad()
    def observe(self) -> None:
        """Shows this step's saliencies to the policy. Call it before the optimiser's step.

        Raises:
            GateError: the gradients are of channels that do not execute.
        """
        self._holdings.gradients.check()
        self._holdings.begin(self.attached)
        if self._trained is not self._chosen:  # trained in eval mode: go on with that selection
            self._exchange_states(self._chosen)
        self._chooser.steps += 1
        for follower in self._followers:  # what was loaded into one alone holds no longer
            follower._loaded_at = None
            follower._catch_up()
        if self._settled is None:
            self._chooser.observe(self.executing, self._saliency())
        else:
            seen(self)  # or it would add up until the policy chooses again

    def advance(self) -> None:
        """Takes the next selection if one is due. Call it after the optimiser's step."""
        if self._settled is None and self.training:
            chosen = self._chooser.following(self._trained, self._chosen)
            if chosen is not None:
                self._select(chosen)

    @_lasting
    def select(self, chosen: Chosen) -> None:
        """Executes another selection: stores what leaves and loads what enters, in place.

        Raises:
            GateError: the selection does not fit the groups and its widths.
        """
        self._chooser.check(chosen)
        if chosen is not self._chosen:
            self._holdings.gradients.drop()
        self._select(chosen)

    # --- modes, copies, devices -------------------------------------------------------------

    @_lasting
    def train(self, mode: bool = True) -> Self:
        """Sets the mode; evaluation runs the export selection, training the explored one."""
        changes = mode != self.training
        if changes and self._lead is None:
            self._holdings.look_again(self._chosen)
        super().train(mode)
        if changes and self._lead is None:
            gradients = self._holdings.gradients
            chosen = self._trained if mode else self.best()
            if chosen is not self._chosen:
                with gradients.back() if mode else gradients.aside():
                    self._show(chosen)
        self._announce()
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        """A copy with its own bank; no optimiser is attached to it."""
        self._catch_up()
        own = ("_holdings", "_wrappers", "_followers", "_lead")
        kept = {name: self.__dict__.pop(name) for name in own}
        try:
            twin = super().__deepcopy__(memo)
        finally:
            self.__dict__.update(kept)
        twin._holdings = Holdings(twin, twin.channels, twin.bank)
        for name in ("_wrappers", "_followers"):
            setattr(twin, name, weakref.WeakSet())
        twin._lead, twin.copied_from = None, weakref.ref(self)
        if self.follows and not twin.training:
            twin._show(twin.best())
        return twin

    def __repr__(self) -> str:
        return display.as_text(self._picture())

    __str__ = __repr__  # torch.fx would print the code of the graph, which `gated.code` has

    def _repr_html_(self) -> str:
        return display.as_html(self._picture())

    def _picture(self) -> display.GatedPicture:
        graph, cost, widths = self.channels, self.cost, self.widths
        mode = "training" if self.training else "evaluation"
        names = (group.name for group in graph.groups)
        return display.GatedPicture(
            policy=registry.to_text(self.settings.policy),
            budget=str(self.settings.budget),
            steps=self.steps,
            state=f"{mode}, settled" if self.settled else mode,
            macs=(cost.macs(widths), cost.dense_macs),
            params=(cost.params(widths), cost.dense_params),
            groups=list(zip(names, widths, graph.layout.sizes, strict=True)),
        )

    def recompile(self) -> Any:
        """Makes the code of the graph; not before its sizes are those of the first selection."""
        return super().recompile() if self._made else None

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        with self._holdings.gradients.moving(fn):
            super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self.bank.apply(fn)
        self._holdings.look_again(self._chosen)
        device = self._device()
        self._chooser.take_over(self._chooser, device)
        same = self._trained is self._chosen
        self._chosen = self._chosen.to(device)
        self._trained = self._chosen if same else self._trained.to(device)
        self._settled = None if self._settled is None else self._settled.to(device)
        self._fit_taps()
        return self

    # --- saving -----------------------------------------------------------------------------

    def training_state(self) -> dict[str, Tensor]:
        """All that is needed to go on, beside the optimiser's own state dict; copies.

        The selection in it is that of training mode, in whose order the optimiser's state lies.
        """
        self._catch_up()
        return Snapshot(
            dense=self.dense_tensors(),
            policy=self._chooser.state,
            states=self.bank.states,
            trained=self._trained,
            settled=self._settled,
            steps=self._chooser.steps,
            peak_rate=self._chooser.peak_rate,
            share=self._chooser.share,
            settings=self._settings_text(),
        ).tensors()

    @_lasting
    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Goes back to what `training_state` returned; the mode stays as it is.

        Raises:
            RunError: it belongs to another network; nothing was changed.
            GateError: its selection does not fit the channel groups; nothing was changed.
        """
        dense, chooser = self.dense_tensors(), self._chooser
        saved = Snapshot.read(state, dense, self._device(), self._settings_text())
        chooser.check(saved.trained)
        if saved.settled is not None:
            chooser.check(saved.settled)
        moments = self._holdings.states(self._trained.widths, stepped=True)
        follow = exchange.taken(moments, self.bank, self._trained, saved.trained)
        for name, tensor in dense.items():
            tensor.copy_(saved.dense[name])
        self.bank.forget_states()  # those of another time that the saved one did not have yet
        for name, states in saved.states.items():
            for key, tensor in states.items():
                self.bank.state(name, key, tensor).copy_(tensor)
        self._holdings.load(saved.trained)
        resize(self, self.channels, saved.trained.widths)
        self.recompile()
        for install, tensor in follow:
            install(tensor)
        self._chosen = self._trained = saved.trained
        self._settled = saved.settled
        chooser.state |= saved.policy
        chooser.steps, chooser.peak_rate = saved.steps, saved.peak_rate
        chooser.share = self.settings.budget.value if saved.share is None else saved.share
        if self._lead is not None:
            self._loaded_at = self._lead[0]._chosen
            self._lead = (self._lead[0], None)
        if not self.training:
            self._show(self.best())
        self._announce()

    def get_extra_state(self) -> dict[str, Tensor]:
        """Makes `state_dict()` complete: the bank, the policy's state and the selection."""
        return self.training_state()

    def set_extra_state(self, state: Mapping[str, Tensor]) -> None:
        """Makes `load_state_dict()` complete; see `get_extra_state`."""
        self.restore(state)

    # --- inside -----------------------------------------------------------------------------

    def _select(self, chosen: Chosen) -> None:
        if self.training:
            self._holdings.drop_strays(self._trained.widths, chosen.widths)
            tensors = self._holdings.tensors().values()
            buffers = [tensor for tensor in tensors if not isinstance(tensor, nn.Parameter)]
            for wrapper in self._wrappers:
                ddp.share_buffers(buffers, wrapper)
        if not self.training:
            self._show(chosen)
        elif self._trained is self._chosen:  # the usual case: all travels at once
            self._show(chosen, self._holdings.states(self._trained.widths))
            self._trained = chosen
        else:
            self._exchange_states(chosen)
            self._show(chosen)

    @_lasting
    def _show(self, chosen: Chosen, others: Iterable[exchange.Item] = ()) -> None:
        """Makes a selection the one that executes; the optimiser's state stays where it is.

        `others` travel with the parameters.
        """
        torch.clear_autocast_cache()  # of casts of what leaves
        old = self._chosen
        items = itertools.chain(others, self._holdings.parameters())
        exchange.exchange(items, self.bank, old, chosen)
        if chosen.widths != old.widths:
            resize(self, self.channels, chosen.widths)
            self.recompile()
        self._chosen = chosen
        self._announce()

    def _exchange_states(self, chosen: Chosen) -> None:
        states = self._holdings.states(self._trained.widths)
        exchange.exchange(states, self.bank, self._trained, chosen)
        self._trained = chosen

    def _announce(self) -> None:
        """Averages take up the selection, autograd and data-parallel wrappers its widths.

        Not widths that only evaluate, where there are wrappers: one rank may validate alone.
        """
        for follower in self._followers:
            follower._catch_up()
        if self._known_widths == self.widths or (self._wrappers and not self.training):
            return
        self._known_widths = self.widths
        self._fit_taps()
        self._holdings.renew()
        for wrapper in self._wrappers:
            ddp.rebuild_reducer(wrapper)

    def _settings_text(self) -> str:
        """Policy and budget, as a snapshot has them."""
        budget = self.settings.budget
        return f"{registry.to_text(self.settings.policy)} {budget} round_to={budget.round_to}"

    def _device(self) -> torch.device:
        return next(iter(self.parameters())).device

    def _saliency(self) -> Tensor:
        """What the policy observes of this step, on all ranks alike: float32 [K]."""
        observes, tensors = self.settings.policy.observes, self._holdings.tensors()
        meter = self._holdings.meter(self._chosen)
        saliency = meter.measure(observes, tensors, lambda: seen(self))
        if observes == "sample":  # each rank has seen its own; gradients are equal already
            for wrapper in self._wrappers:
                saliency = ddp.mean(saliency, wrapper.process_group)
        return saliency

    def _fit_taps(self) -> None:
        tensors = self._holdings.tensors()
        for number, tap in taps(self).items():
            name, dim = self.channels.gates[number].parameters[0]
            tap.fit(tensors[name].shape[dim], tensors[name].device)


def _show_best(module: nn.Module, *_: Any) -> None:
    """Before the forward of an average; a copy of it has the hook too, and is none."""
    if isinstance(module, GatedModule) and module._lead is not None:
        module._show(module.best())
        module._lead = (module._lead[0], None)


def _show_leaders(module: nn.Module, *_: Any) -> None:
    """After it."""
    if isinstance(module, GatedModule):
        module._catch_up()
