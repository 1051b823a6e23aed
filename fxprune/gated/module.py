"""The gated network: the compact network, and the bank in which all other channels rest.

A step of it is a step of an ordinary narrow network. Between steps `advance` exchanges the
channels that leave the selection for those that enter it.
"""

import functools
import itertools
import threading
import types
import weakref
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Self, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from fxprune import registry
from fxprune.bank import exchange
from fxprune.bank.exchange import Selection
from fxprune.budget.schedule import StepSchedule
from fxprune.channels.cost import CostModel
from fxprune.channels.graph import ChannelGraph, Widths
from fxprune.channels.resize import resize
from fxprune.errors import FxpruneError, GateError
from fxprune.gated import ddp, display, loading
from fxprune.gated.bare_averages import BareAverages
from fxprune.gated.checkpointing import checkpointed
from fxprune.gated.evaluation import Evaluation
from fxprune.gated.nodes import note_paths, seen, taps, to_gated
from fxprune.gated.optimizers import Rounds
from fxprune.gated.residents import Residents
from fxprune.gated.selector import Chooser, Settings
from fxprune.gated.state import Snapshot, from_bytes, to_bytes
from fxprune.gated.twins import Twin
from fxprune.tracing.module import TracedModule, modules_of

__all__ = ["GatedModule", "Settings"]

_Method = TypeVar("_Method", bound=Callable[..., Any])


def _lasting(method: _Method) -> _Method:
    """Leave `torch.inference_mode`, in which tensors that stay could not be trained."""
    wrapped: _Method = torch.inference_mode(False)(torch.no_grad()(method))
    return wrapped


class GatedModule(TracedModule):
    """A network in which only the chosen channels exist.

    Its parameters hold the selection that the policy explores, in any mode. A forward in training
    mode executes that; one in evaluation mode executes the selection that export would take now,
    on tensors gathered for it. Without `fxprune.attach` it stays on its first selection.

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
        """Take `dense` over: its modules become gated; the bank has copies of its tensors."""
        self._made = False
        self._lock = threading.RLock()  # a thread may evaluate while another exchanges channels
        self._evaluation = Evaluation()
        self._pending: list[exchange.Step] = []
        super().__init__(dense, *dense.both_graphs, origin=dense.origin)
        self.channels, self.settings = channels, settings
        self.cost = CostModel(channels.macs_terms, channels.params_terms, channels.layout.sizes)
        self.inputs = tuple((tuple(tensor.shape), tensor.dtype) for tensor in example_inputs)
        self._wrappers: weakref.WeakSet[DistributedDataParallel] = weakref.WeakSet()
        self._followers: weakref.WeakSet[GatedModule] = weakref.WeakSet()
        self.attached = Rounds()
        self._bare_averages = BareAverages()
        self._lead: weakref.ref[GatedModule] | None = None
        self._known: Selection | None = None  # what the leader executed when it was followed last
        self._loaded_at: Selection | None = None  # what the leader executed then, for a follower
        self.copied_from: weakref.ref[GatedModule] | None = None
        self._copies: weakref.WeakSet[GatedModule] = weakref.WeakSet()
        self._twin: Twin | None = None
        self._settled: Selection | None = None
        self._is_early = False  # gradients of this round come one by one, see `_observe_early`
        self._residents = Residents(self, channels)
        self.bank = self._residents.bank
        for path, module in modules_of(self).items():
            name = f"{path}.weight" if path else "weight"
            if name in channels.axes:
                to_gated(module, channels.shapes[name])
        note_paths(self)
        layout = channels.layout
        whole = Selection(torch.arange(layout.total).to(self._device()), layout.sizes)
        with torch.no_grad():
            prior = self._residents.meter(whole).magnitude(self._residents.tensors())
        self._chooser = Chooser(settings, layout, self.cost, prior)
        first = self._chooser.first()
        self._residents.load(first)
        resize(self, channels, first.widths)
        self._made = True
        self.recompile()
        self._selection = first
        self._known_widths: Widths = ()
        self._announce()
        self._mode_was_set()

    # --- what a user asks -----------------------------------------------------------------

    @property
    def widths(self) -> Widths:
        """The widths that a forward executes now, one per channel group."""
        return self._shown().widths

    @property
    def executing(self) -> Tensor:
        """The selection that a forward executes now: int64 [K], channel numbers in slot order."""
        return self._shown().channels

    @property
    def steps(self) -> int:
        """How many optimiser steps were observed."""
        return self._chooser.steps

    @property
    def policy_state(self) -> dict[str, Tensor]:
        """The policy's tensors."""
        return self._chooser.state

    def selection(self) -> dict[str, dict[int, Tensor]]:
        """Return the kept indices of each parameter, as export would take them now.

        Returns:
            For each gated parameter of the original model, by name, and each of its gated
            dimensions: int64 [kept] on the CPU, in the order of the compact tensor.
        """
        best = self.best()
        places = self.bank.positions(best.channels, best.widths)
        return {
            name: {dim: line.cpu() for dim, line in self.bank.of(name, places).items()}
            for name, tensor in self._residents.tensors().items()
            if isinstance(tensor, nn.Parameter)
        }

    def dense_state_dict(self) -> dict[str, Any]:
        """Return all parameters and buffers with the original model's names and shapes; copies.

        Slices that execute have their newest values; those that rest have the values they had
        when they last executed.
        """
        return self.origin.state_dict(self.dense_tensors())

    def dense_tensors(self) -> dict[str, Tensor]:
        """Return the dense network's tensors by name.

        Those of the bank, brought up to date, and those that are not gated; the tensors
        themselves, not copies.
        """
        self._finish()
        own = {**dict(self.named_parameters()), **dict(self.named_buffers())}
        return {**own, **self._residents.store(self._selection)}

    def _dense_parameters(self) -> dict[str, Tensor]:
        dense = self.dense_tensors()
        return {name: dense[name] for name, _ in self.named_parameters()}

    @_lasting
    def best(self) -> Selection:
        """Return the selection that export would take now: the whole budget, and no exploration."""
        self._catch_up()
        if self._twin is not None and self._twin.still is not None:
            source = self._twin.source()
            if source is None or not self._twin.is_written(self._dense_parameters()):
                return self._twin.still.to(self._device())
            self._take_over(source)
        if self._settled is not None:
            return self._settled
        return self._chooser.best(self._selection)

    @_lasting
    def settle(self, chosen: Selection | None = None) -> None:
        """Fix the export selection, or a given one, from now on, in training too.

        Raises:
            GateError: the given selection does not fit the groups and its widths.
        """
        chosen = self.best() if chosen is None else chosen
        self.select(chosen)
        self._settled = chosen
        self._evaluation.stale = True

    def unsettle(self) -> None:
        """Let the policy choose again."""
        self._settled = None
        self._evaluation.stale = True

    @property
    def settled(self) -> bool:
        """Whether the selection is fixed for good."""
        return self._settled is not None

    def spend(self, share: float) -> None:
        """Execute the widths of another share of the network in training, until told otherwise.

        Without effect once the network is settled, and in evaluation mode, which goes on to show
        what the budget allows.

        Args:
            share: of the dense network, counted as the budget counts: the budget's, up to 1.

        Raises:
            BudgetError: the share is below the budget's, or above 1.
        """
        chosen = self._at(share)
        if chosen is not None:
            self._residents.gradients.drop()
            self._select(chosen)

    def _at(self, share: float) -> Selection | None:
        """Return the selection at another share; None where it stays."""
        if self.settled or not self.training:
            return None
        return self._chooser.spend(share, self._selection)

    # --- what happens around an optimiser step --------------------------------------------

    def track(self, optimizer: torch.optim.Optimizer, pace: StepSchedule | None = None) -> None:
        """Make the optimiser's per-element state follow its channels, and its steps drive them.

        It takes the place of those that hold some of the same parameters.

        Args:
            optimizer: the optimiser.
            pace: what its steps spend by themselves.

        Raises:
            GateError: a gated layer was replaced.
        """
        self._twin = None  # it trains on its own
        self._residents.refind(self._selection)
        self.attached.add(optimizer, pace)
        held = weakref.ref(self)
        self._residents.track(optimizer, self.attached, lambda: _saving(held()))

    def join(self, wrapper: DistributedDataParallel) -> None:
        """Join the equal replicas of a data-parallel wrapper, which is being made.

        Takes over the first rank's bank, policy state and selection, as the wrapper does with the
        parameters. `DistributedDataParallel(gated)` calls it by itself.
        """
        self.restore(ddp.broadcast(self.training_state(), wrapper.process_group, self._device()))
        self._wrappers.add(wrapper)

    def follow(self, leader: "GatedModule") -> None:
        """Follow the selection of another network, slot for slot, on tensors of its own.

        For an average of the other's parameters; see `fxprune.follow`, which is what to call.
        """
        self._lead, self._twin = weakref.ref(leader), None
        leader._followers.add(self)
        self._catch_up()

    @property
    def follows(self) -> bool:
        """Whether it holds an average, and follows another network's selections."""
        return self._lead is not None

    @_lasting
    def _catch_up(self) -> None:
        """Take the selection of the network that it follows, if it follows one."""
        leader = None if self._lead is None else self._lead()
        if leader is None or self._loaded_at is leader._selection:
            return
        self._take_over(leader)
        device = self._device()
        if self._known is not leader._selection:
            self._exchange(leader._selection.to(device))
            self._known = leader._selection

    def _take_over(self, leader: "GatedModule") -> None:
        """Copy the policy state of another network."""
        device = self._device()
        self._settled = None if leader._settled is None else leader._settled.to(device)
        self._chooser.take_over(leader._chooser, device)
        self._evaluation.stale = True

    def _keep_in_step(self, source: "GatedModule") -> None:
        """Execute what its source does, in a copy that may hold an average; see `twins.Twin`."""
        twin = self._twin
        if twin is None or any(p.grad is not None for p in self.parameters()):
            self._twin = None
            source._copies.discard(self)
        elif twin.at is not source._selection:
            if twin.still is None:
                twin.still = self.best()
            self._exchange(source._selection.to(self._device()))
            twin.at = source._selection

    def _before_step(self, optimizer: torch.optim.Optimizer, rate: float) -> None:
        """Prepare a step of an attached optimiser, at a learning rate.

        Where several are attached, the first of each round shows the gradients to the policy.
        """
        if self.attached.begins(optimizer):
            self._observe_early()  # of a round that did not end
            self._chooser.note_rate(rate)
            self.observe()
        elif optimizer in self.attached:
            self._residents.gradients.check()
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
        if not self.training:  # trained in evaluation mode: go on with what is shown
            self._select(self.best())
            return
        for pace in self.attached.paces:
            chosen = self._at(pace.share(self.steps))
            if chosen is not None:
                self._select(chosen)
        self.advance()

    @torch.no_grad()
    def observe(self) -> None:
        """Show this step's saliencies to the policy; to be called before the optimiser's step.

        Raises:
            GateError: the gradients are of channels that do not execute.
        """
        self._finish()
        self._residents.gradients.check()
        self._residents.put_in_order(self._selection)
        self._residents.begin(self.attached)
        self._chooser.steps += 1
        self._evaluation.stale = True
        for follower in self._followers:  # what was loaded into one alone holds no longer
            follower._loaded_at = None
            follower._catch_up()
        for copy in [*self._copies]:
            copy._keep_in_step(self)
        if self._settled is not None:
            seen(self)  # or it would add up until the policy chooses again
            return
        if self.attached.are_several and self.settings.policy.observes in ("batch", "sample"):
            meter = self._residents.meter(self._selection)
            self._is_early = meter.read_early(self._residents.tensors())
            if not self._is_early:
                meter.forget_early()
        if not self._is_early:
            self._chooser.observe(self._selection.channels, self._saliency())

    @torch.no_grad()
    def _observe_early(self) -> None:
        """Show the policy the gradients of a round whose optimisers stepped inside backward."""
        if not self._is_early:
            return
        self._is_early = False
        self._chooser.observe(self._selection.channels, self._saliency())
        self._residents.meter(self._selection).forget_early()

    def advance(self) -> None:
        """Take the next selection if one is due; to be called after the optimiser's step."""
        if self._settled is None and self.training:
            chosen = self._chooser.following(self._selection)
            if chosen is not None:
                self._select(chosen)

    @_lasting
    def select(self, chosen: Selection) -> None:
        """Execute another selection: store what leaves and load what enters, in place.

        Raises:
            GateError: the selection does not fit the groups and its widths.
        """
        self._chooser.check(chosen)
        self._twin = None
        if chosen is not self._selection:
            self._residents.gradients.drop()
        self._select(chosen)

    # --- modes, copies, devices -------------------------------------------------------------

    @property
    def training(self) -> bool:
        """Whether it is in training mode; however that is set, the next forward follows it."""
        mode: bool = self.__dict__["_training"]
        return mode

    @training.setter
    def training(self, mode: bool) -> None:
        self.__dict__["_training"] = mode
        if self.__dict__.get("_made", False):
            self._mode_was_set()

    @_lasting
    def _mode_was_set(self) -> None:
        self._finish()
        self._show_graph()
        self._residents.refind(self._selection)
        self._evaluation.stale = True
        if not self.training:
            self._prepare()

    def _shown(self) -> Selection:
        """Return the selection that a forward executes now."""
        if self.training or self.follows:
            return self._selection
        if self._evaluation.stale or self._evaluation.shown is None:
            return self.best()
        return self._evaluation.shown

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    @_lasting
    def _prepare(self) -> None:
        """Prepare an evaluation."""
        shown = self.best()
        self._evaluation.prepare(
            self, self.channels, self._residents, self._selection, shown, self.settled
        )

    def _evaluate(self, *args: Any, **kwargs: Any) -> Any:
        """Run the selection that export would take now."""
        if self._evaluation.stale:
            self._prepare()
        return self._evaluation.run(self, self._residents, *args, **kwargs)

    @_lasting
    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        """Return a copy with its own bank; no optimiser is attached to it."""
        self._catch_up()
        self._finish()
        own = (
            *("_residents", "_wrappers", "_followers", "_lead", "_evaluation", "_known"),
            *("_copies", "_twin", "_pending", "_bare_averages", "_lock"),
        )
        kept = {name: self.__dict__.pop(name) for name in own}
        try:
            twin = super().__deepcopy__(memo)
        finally:
            self.__dict__.update(kept)
        twin._residents = Residents(twin, twin.channels, twin.bank)
        for name in ("_wrappers", "_followers", "_copies"):
            setattr(twin, name, weakref.WeakSet())
        twin._pending, twin._twin, twin._lock = [], None, threading.RLock()
        twin._lead, twin._known, twin.copied_from = None, None, weakref.ref(self)
        twin._evaluation, twin._bare_averages = Evaluation(), BareAverages()
        twin._mode_was_set()
        twin._twin = Twin.of(self, twin._dense_parameters())
        self._copies.add(twin)
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

    def __reduce__(self) -> Any:
        raise GateError(
            "a gated network cannot be pickled",
            why="its bank, policy and optimisers belong to one training in one process",
            do="keep gated.state_dict() (torch.save, safetensors), fxprune.save(gated, path), or "
            "fxprune.shrink(gated), which is an ordinary module",
        )

    def recompile(self) -> Any:
        """Make the code of the graph; not before its sizes are those of the first selection."""
        if not self._made:
            return None
        code = super().recompile()
        cls: Any = type(self)
        cls.forward = _by_mode(checkpointed(self, self.graph) or cls.forward)
        return code

    @_lasting
    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self.bank.apply(fn)
        self._residents.refind(self._selection)
        device = self._device()
        self._chooser.take_over(self._chooser, device)
        self._selection = self._selection.to(device)
        self._settled = None if self._settled is None else self._settled.to(device)
        self._fit_taps()
        self._evaluation.stale = True
        if not self.training:
            self._prepare()
        return self

    # --- saving -----------------------------------------------------------------------------

    def training_state(self) -> dict[str, Tensor]:
        """Return all that is needed to go on, beside the optimiser's own state dict; copies.

        The selection in it is that of training mode, in whose order the optimiser's state lies.
        """
        self._catch_up()
        return Snapshot(
            dense=self.dense_tensors(),
            policy=self._chooser.state,
            states=self.bank.states,
            trained=self._selection,
            settled=self._settled,
            steps=self._chooser.steps,
            peak_rate=self._chooser.peak_rate,
            share=self._chooser.share,
            settings=self._settings_text(),
        ).tensors()

    @_lasting
    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Go back to what `training_state` returned; the mode stays as it is.

        Raises:
            RunError: it belongs to another network; nothing was changed.
            GateError: its selection does not fit the channel groups; nothing was changed.
        """
        dense, chooser = self.dense_tensors(), self._chooser
        saved = Snapshot.read(state, dense, self._device(), self._settings_text())
        chooser.check(saved.trained)
        if saved.settled is not None:
            chooser.check(saved.settled)
        moments = self._residents.states(self._selection.widths, stepped=True)
        follow = exchange.taken(moments, self.bank, self._selection, saved.trained)
        for name, tensor in dense.items():
            tensor.copy_(saved.dense[name])
        self.bank.forget_states()  # those of another time that the saved one did not have yet
        for name, states in saved.states.items():
            for key, tensor in states.items():
                self.bank.state(name, key, tensor).copy_(tensor)
        self._residents.load(saved.trained)
        resize(self, self.channels, saved.trained.widths)
        self.recompile()
        for install, tensor in follow:
            install(tensor)
        self._selection = saved.trained
        self._settled = saved.settled
        chooser.state |= saved.policy
        chooser.steps, chooser.peak_rate = saved.steps, saved.peak_rate
        chooser.share = self.settings.budget.value if saved.share is None else saved.share
        leader = None if self._lead is None else self._lead()
        if leader is not None:
            self._loaded_at, self._known = leader._selection, None
        source = None if self._twin is None else self._twin.source()
        if source is not None:
            self._twin = Twin.of(source, self._dense_parameters())
        self._evaluation.stale = True
        self._announce()
        if not self.training:
            self._prepare()

    def get_extra_state(self) -> Tensor:
        """Complete `state_dict()`: the bank, the policy's state and the selection, as bytes.

        Returns:
            uint8 [bytes]; see `fxprune.gated.state.to_bytes`.
        """
        return to_bytes(self.training_state())

    def set_extra_state(self, state: Tensor | Mapping[str, Tensor]) -> None:
        """Ignore it: what `get_extra_state` returned was loaded before the parameters."""

    def _save_to_state_dict(self, *args: Any, **kwargs: Any) -> None:
        self._finish()
        super()._save_to_state_dict(*args, **kwargs)

    def _load_from_state_dict(
        self, state_dict: Mapping[str, Any], prefix: str, *args: Any, **kwargs: Any
    ) -> None:
        """Take up the saved widths first, in which the parameters are saved."""
        state = state_dict.get(f"{prefix}_extra_state")
        gated = {id(tensor) for tensor in self._residents.tensors().values()}
        names = [name for name, p in self.named_parameters() if id(p) in gated]
        if state is not None:
            self.restore(state if isinstance(state, Mapping) else from_bytes(state))
        elif not self.settled:
            loading.refuse_without_selection(state_dict, (f"{prefix}{name}" for name in names))
        if state is not None and not self.settled:
            own = dict(self.named_parameters())
            loading.warn_of_others(state_dict, {f"{prefix}{name}": own[name] for name in names})
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)

    # --- inside -----------------------------------------------------------------------------

    def _select(self, chosen: Selection) -> None:
        if chosen is self._selection:
            return
        self._residents.reset_unmovable_state(self._selection.widths, chosen.widths)
        tensors = self._residents.tensors().values()
        buffers = [tensor for tensor in tensors if not isinstance(tensor, nn.Parameter)]
        for wrapper in self._wrappers:
            ddp.share_buffers(buffers, wrapper)
        self._exchange(chosen)
        if not self.training:
            self._prepare()

    @_lasting
    def _exchange(self, chosen: Selection) -> None:
        """Exchange parameters, buffers and optimisers' state for those of another selection."""
        with self._lock:
            self._exchange_alone(chosen)

    def _exchange_alone(self, chosen: Selection) -> None:
        self._finish()
        self._observe_early()
        self._residents.put_in_order(self._selection)
        torch.clear_autocast_cache()  # of casts of what leaves
        old = self._selection
        if self.attached and chosen.widths == old.widths:  # at other widths it fails loudly
            self._bare_averages.look(self.parameters(), self._residents.narrow, self._moving)
        items = itertools.chain(self._residents.states(old.widths), self._residents.parameters())

        def take_up() -> None:
            if chosen.widths != old.widths:
                resize(self, self.channels, chosen.widths)
                self.recompile()
            self._selection = chosen
            self._evaluation.stale = True

        plan = [*exchange.steps(items, self.bank, old, chosen), take_up, self._announce]
        self._pending = plan[::-1]
        try:
            self._finish()
        except FxpruneError:  # of a wrapper that cannot follow; the exchange itself is done
            self._pending = []
            raise
        except BaseException:
            self._finish()  # or it is finished before the next use, if this is interrupted too
            raise

    @_lasting
    def _finish(self) -> None:
        """Finish an exchange, or a forward of evaluation, that was interrupted."""
        with self._lock:
            self._evaluation.restore()
            while self._pending:
                self._pending[-1]()
                self._pending.pop()

    def _moving(self) -> Iterator[Tensor]:
        """Yield the tensors that follow the channels: optimisers' state, the bank, averages."""
        yield from self._residents.moving()
        for one in itertools.chain(self._followers, self._copies):
            yield from one.parameters()
            yield from one._moving()

    def _announce(self) -> None:
        """Give averages the selection, and autograd and data-parallel wrappers its widths."""
        for follower in self._followers:
            follower._catch_up()
        for copy in [*self._copies]:
            copy._keep_in_step(self)
        if self._known_widths == self._selection.widths:
            return
        self._known_widths = self._selection.widths
        self._fit_taps()
        self._residents.renew()
        for wrapper in self._wrappers:
            ddp.rebuild_reducer(wrapper)

    def _settings_text(self) -> str:
        """Format policy and budget as a snapshot has them."""
        budget = self.settings.budget
        return f"{registry.to_text(self.settings.policy)} {budget} round_to={budget.round_to}"

    def _device(self) -> torch.device:
        return next(iter(self.parameters())).device

    def _saliency(self) -> Tensor:
        """Return what the policy observes of this step, on all ranks alike: float32 [K]."""
        observes, tensors = self.settings.policy.observes, self._residents.tensors()
        meter = self._residents.meter(self._selection)
        saliency = meter.measure(observes, tensors, lambda: seen(self))
        if observes == "sample":  # each rank has seen its own; gradients are equal already
            for wrapper in self._wrappers:
                saliency = ddp.mean(saliency, wrapper.process_group)
        return saliency

    def _fit_taps(self) -> None:
        tensors = self._residents.tensors()
        for number, tap in taps(self).items():
            name, dim = self.channels.gates[number].parameters[0]
            tap.fit(tensors[name].shape[dim], tensors[name].device)


@_lasting
def _saving(gated: GatedModule | None) -> Selection | None:
    """Return the selection in whose order an optimiser's state is saved; None without a network."""
    if gated is None:
        return None
    gated._finish()
    gated._residents.put_in_order(gated._selection)
    return gated._selection


def _by_mode(code: Callable[..., Any]) -> Callable[..., Any]:
    """Return a forward that runs this code in training, and otherwise what evaluation runs."""

    def forward(self: GatedModule, *args: Any, **kwargs: Any) -> Any:
        if self._pending:
            self._finish()
        if self.training and self._lead is None:
            return code(self, *args, **kwargs)
        if torch.compiler.is_compiling():
            return self._evaluate(*args, **kwargs)
        with self._lock:
            return self._evaluate(*args, **kwargs)

    # torch.compile counts how often it compiled a code object, and gives up after some times
    own = types.FunctionType(
        forward.__code__.replace(), globals(), code.__name__, None, forward.__closure__
    )
    return functools.update_wrapper(own, code)
