"""The gated network: the compact network, and the bank in which all other channels rest.

A step of it is a step of an ordinary narrow network. Between steps `advance` exchanges the
channels that leave the selection for those that enter it.
"""

import itertools
import weakref
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_module_registration_hook
from torch.nn.parallel import DistributedDataParallel

from fxprune import moments, parallel, residents
from fxprune.bank import Bank, Slots, take
from fxprune.budget import Budget, global_widths, uniform_widths
from fxprune.cost import CostModel
from fxprune.errors import GateError, RunError
from fxprune.gates import TAP, Tap, to_gated
from fxprune.groups import ChannelGraph, Widths
from fxprune.policies import Policy, keep_slots, top
from fxprune.residents import Chosen
from fxprune.resize import resize
from fxprune.saliency import Meter
from fxprune.traced import TracedModule


@dataclass(frozen=True)
class Settings:
    """How channels are chosen.

    Attributes:
        policy: ranks the channels.
        budget: how much may execute.
        every: optimiser steps between two selections.
        seed: for policies that draw.
    """

    policy: Policy
    budget: Budget
    every: int = 1
    seed: int = 0


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
        policy_state: the policy's tensors.
        steps: how many optimiser steps were observed.
        inputs: shape and dtype of each example input, with which it can be instrumented again.
        copied_from: the network of which this is a deep copy.
    """

    def __init__(
        self,
        dense: TracedModule,
        channels: ChannelGraph,
        settings: Settings,
        example_inputs: tuple[Tensor, ...],
    ) -> None:
        """Takes `dense` over: its modules become gated, its tensors the bank's."""
        super().__init__(dense, *dense.both_graphs, origin=dense.origin)
        self.channels, self.settings = channels, settings
        self.cost = CostModel(channels.macs_terms, channels.params_terms, channels.layout.sizes)
        self.steps = 0
        self.inputs = tuple((tuple(tensor.shape), tensor.dtype) for tensor in example_inputs)
        self._peak_rate = 0.0
        self._optimizer: weakref.ref[torch.optim.Optimizer] | None = None
        self._told = False  # of optimiser state that does not follow
        self._wrappers: weakref.WeakSet[DistributedDataParallel] = weakref.WeakSet()
        self._followers: weakref.WeakSet[GatedModule] = weakref.WeakSet()
        self._lead: tuple[GatedModule, Chosen | None] | None = None
        self.copied_from: weakref.ref[GatedModule] | None = None
        self._settled: Chosen | None = None
        self._measured: tuple[Slots, Meter] | None = None
        self._homes = residents.homes(self, channels)
        for path, module in self.named_modules():
            name = f"{path}.weight" if path else "weight"
            if name in channels.axes:
                to_gated(module, channels.shapes[name])
        dense_tensors = {name: home.tensor().detach() for name, home in self._homes.items()}
        self.bank = Bank(channels, dense_tensors)
        self._budget_widths = uniform_widths(settings.budget, channels.layout, self.cost)
        whole = Chosen(
            torch.arange(channels.layout.total).to(self._device()), channels.layout.sizes
        )
        with torch.no_grad():
            prior = self._meter(whole).magnitude(self._tensors())
        self.policy_state = settings.policy.start(channels.layout, prior, settings.seed)
        if settings.policy.reallocate:  # refuses now, not after hours, what floors make impossible
            global_widths(settings.budget, channels.layout, self.cost, prior)
        widths = whole.widths if settings.policy.warmup else self._budget_widths
        first = Chosen(self._top(widths, explore=True).sort().values, widths)
        places = self._places(first)
        for name, home in self._homes.items():
            home.install(take(self.bank.dense[name], self.bank.of(name, places)))
        resize(self, channels, widths)
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

    def selection(self) -> dict[str, dict[int, Tensor]]:
        """The kept indices of each parameter, as export would take them now.

        Returns:
            For each gated parameter of the original model, by name, and each of its gated
            dimensions: int64 [kept] on the CPU, in the order of the compact tensor.
        """
        places = self._places(self.best())
        return {
            name: {dim: line.cpu() for dim, line in self.bank.of(name, places).items()}
            for name, home in self._homes.items()
            if isinstance(home.tensor(), nn.Parameter)
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
        residents.store(residents.parameters(self._homes, self.bank), self.bank, self._chosen)
        own = {**dict(self.named_parameters()), **dict(self.named_buffers())}
        return own | self.bank.dense

    def best(self) -> Chosen:
        """The selection that export would take now: the whole budget, and no exploration."""
        self._catch_up()
        if self._settled is not None:
            return self._settled
        if self.steps == 0 and self._trained.widths == self._budget_widths:
            return self._trained
        widths = self._allocated()
        return self._aligned(self._top(widths, explore=False), widths)

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

    # --- what happens around an optimiser step --------------------------------------------

    def track(self, optimizer: torch.optim.Optimizer) -> None:
        """Makes the optimiser's per-element state follow its channels."""
        self._optimizer = weakref.ref(optimizer)

    def join(self, wrapper: DistributedDataParallel) -> None:
        """Becomes one of the equal replicas of a data-parallel wrapper, which is being made.

        Takes over the first rank's bank, policy state and selection, as the wrapper does with the
        parameters. `DistributedDataParallel(gated)` calls it by itself.
        """
        self.restore(
            parallel.broadcast(self.training_state(), wrapper.process_group, self._device())
        )
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

    def _catch_up(self) -> None:
        """Takes the selection of the network that it follows, if it follows one."""
        if self._lead is None:
            return
        leader, known = self._lead
        device = self._device()
        self._trained = _on(device, leader._trained)
        self._settled = None if leader._settled is None else _on(device, leader._settled)
        self.policy_state = {key: value.to(device) for key, value in leader.policy_state.items()}
        self.steps, self._peak_rate = leader.steps, leader._peak_rate
        if known is not leader._chosen:
            self._lead = (leader, leader._chosen)
            self._show(_on(device, leader._chosen))

    def note_rate(self, rate: float) -> None:
        """Shows cuts of the learning rate to the policy. Call it before `observe`.

        A cut is a rate of at most half of the highest one since the last cut.
        """
        if self._peak_rate > 0 and rate <= self._peak_rate / 2:
            self.settings.policy.milestone(self.policy_state)
            self._peak_rate = rate
        self._peak_rate = max(self._peak_rate, rate)

    @torch.no_grad()
    def observe(self) -> None:
        """Shows this step's saliencies to the policy. Call it before the optimiser's step."""
        if self._trained is not self._chosen:  # trained in eval mode: go on with that selection
            self._exchange_states(self._chosen)
        self.steps += 1
        if self._settled is not None:
            return
        meter, policy, tensors = self._meter(self._chosen), self.settings.policy, self._tensors()
        measures: dict[str, Callable[[], Tensor]] = {
            "batch": lambda: meter.batch(tensors),
            "sample": lambda: meter.sample(tensors, self._seen()),
            "magnitude": lambda: meter.magnitude(tensors),
            "bn_scale": lambda: meter.bn_scale(tensors),
            "none": lambda: torch.zeros(len(self.executing), device=self.executing.device),
        }
        saliency = measures[policy.observes]()
        if policy.observes == "sample":  # each rank has seen its own; gradients are equal already
            for wrapper in self._wrappers:
                saliency = parallel.mean(saliency, wrapper.process_group)
        policy.observe(self.policy_state, self.channels.layout, self.executing, saliency)

    def advance(self) -> None:
        """Takes the next selection if one is due. Call it after the optimiser's step."""
        policy = self.settings.policy
        if self._settled is not None or not self.training or self.steps < policy.warmup:
            return
        widths = self._trained.widths
        since = self.steps - policy.warmup
        if since == 0 or (policy.reallocate and since % policy.reallocate == 0):
            widths = self._allocated()
        if widths != self._trained.widths or self.steps % self.settings.every == 0:
            self._select(self._aligned(self._top(widths, explore=True), widths))

    def select(self, chosen: Chosen) -> None:
        """Executes another selection: stores what leaves and loads what enters, in place.

        Raises:
            GateError: the selection does not fit the groups and its widths.
        """
        self.cost.macs(chosen.widths)  # refuses widths that do not fit
        layout, channels = self.channels.layout, chosen.channels
        asked = torch.arange(len(layout.sizes)).repeat_interleave(torch.tensor(chosen.widths))
        fits = len(channels) == len(asked) and 0 <= channels.min() <= channels.max() < layout.total
        if not fits or not torch.equal(layout.group_of()[channels.cpu()], asked):
            raise GateError(
                "a selection does not fit the channel groups",
                why=f"the widths {chosen.widths} ask for as many channels of each group, in order",
            )
        if torch.bincount(channels, minlength=layout.total).max() > 1:
            raise GateError("a selection names a channel twice")
        self._select(chosen)

    # --- modes, copies, devices -------------------------------------------------------------

    def train(self, mode: bool = True) -> Self:
        """Sets the mode; evaluation runs the export selection, training the explored one."""
        changes = mode != self.training
        super().train(mode)
        if changes and self._lead is None:
            self._show(self._trained if mode else self.best())
        self._announce()
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        """A copy with its own bank; no optimiser is attached to it."""
        self._catch_up()
        own = ("_optimizer", "_homes", "_measured", "_wrappers", "_followers", "_lead")
        kept = {name: self.__dict__.pop(name) for name in own}
        try:
            twin = super().__deepcopy__(memo)
        finally:
            self.__dict__.update(kept)
        twin._optimizer, twin._measured = None, None
        twin._homes = residents.homes(twin, twin.channels)
        twin._wrappers, twin._followers = weakref.WeakSet(), weakref.WeakSet()
        twin._lead, twin.copied_from = None, weakref.ref(self)
        if self.follows and not twin.training:
            twin._show(twin.best())
        return twin

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self.bank.apply(fn)
        device = self._device()
        self.policy_state = {key: value.to(device) for key, value in self.policy_state.items()}
        same = self._trained is self._chosen
        self._chosen = _on(device, self._chosen)
        self._trained = self._chosen if same else _on(device, self._trained)
        self._settled = None if self._settled is None else _on(device, self._settled)
        self._fit_taps()
        return self

    # --- saving -----------------------------------------------------------------------------

    def training_state(self) -> dict[str, Tensor]:
        """All that is needed to go on, beside the optimiser's own state dict; copies.

        The selection in it is that of training mode, in whose order the optimiser's state lies.
        """
        self._catch_up()
        state = {f"dense/{name}": tensor for name, tensor in self.dense_tensors().items()}
        state |= {f"policy/{name}": tensor for name, tensor in self.policy_state.items()}
        for name, states in self.bank.states.items():
            state |= {f"state/{key}/{name}": tensor for key, tensor in states.items()}
        for kind, chosen in (("trained", self._trained), ("settled", self._settled)):
            if chosen is not None:
                state[f"{kind}/channels"] = chosen.channels
                state[f"{kind}/widths"] = torch.tensor(chosen.widths)
        state["steps"] = torch.tensor(self.steps)
        state["peak_rate"] = torch.tensor(self._peak_rate, dtype=torch.float64)
        return {name: tensor.detach().clone() for name, tensor in state.items()}

    @torch.no_grad()
    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Goes back to what `training_state` returned; the mode stays as it is.

        Raises:
            RunError: it belongs to another network; nothing was changed.
        """
        dense = self.dense_tensors()
        _check(state, dense)
        device = self._device()
        trained, settled = _read(state, "trained", device), _read(state, "settled", device)
        assert trained is not None
        for name, tensor in dense.items():
            tensor.copy_(state[f"dense/{name}"])
        places = self._places(trained)
        for name, home in self._homes.items():
            home.install(take(self.bank.dense[name], self.bank.of(name, places)))
        for key, tensor in state.items():
            kind, _, rest = key.partition("/")
            if kind == "policy":
                self.policy_state[rest] = tensor.to(device, copy=True)
            elif kind == "state":
                slot, _, name = rest.partition("/")
                self.bank.state(name, slot, tensor).copy_(tensor)
        resize(self, self.channels, trained.widths)
        self.recompile()
        self._chosen = self._trained = trained
        self._settled, self.steps = settled, int(state["steps"])
        self._peak_rate = float(state["peak_rate"])
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
            self._drop_strays(chosen.widths)
            for wrapper in self._wrappers:
                parallel.share_buffers(self._gated_buffers(), wrapper)
        if not self.training:
            self._show(chosen)
        elif self._trained is self._chosen:  # the usual case: all travels at once
            self._show(chosen, self._states())
            self._trained = chosen
        else:
            self._exchange_states(chosen)
            self._show(chosen)

    def _show(self, chosen: Chosen, others: Iterable[residents.Item] = ()) -> None:
        """Makes a selection the one that executes; the optimiser's state stays where it is.

        `others` travel with the parameters.
        """
        old = self._chosen
        items = itertools.chain(others, residents.parameters(self._homes, self.bank))
        residents.exchange(items, self.bank, old, chosen)
        if chosen.widths != old.widths:
            resize(self, self.channels, chosen.widths)
            self.recompile()
        self._chosen = chosen
        self._announce()

    def _exchange_states(self, chosen: Chosen) -> None:
        residents.exchange(self._states(), self.bank, self._trained, chosen)
        self._trained = chosen

    def _states(self) -> Iterable[residents.Item]:
        optimizer = self._optimizer() if self._optimizer is not None else None
        if optimizer is None:
            return ()
        return residents.states(self._homes, self.bank, optimizer, self._trained.widths)

    def _drop_strays(self, widths: Widths) -> None:
        """Tells of state that cannot follow; at new widths the optimiser has to begin it anew."""
        optimizer, old = self._optimizer() if self._optimizer else None, self._trained.widths
        if optimizer is None or not optimizer.state or (self._told and widths == old):
            return
        strays = residents.strays(self._homes, self.bank, optimizer, old)
        if not self._told:
            for key in dict.fromkeys(key for keys in strays.values() for key in keys):
                moments.warn_of_stray(optimizer, key)
        self._told = True
        if widths != old:
            for parameter in strays:
                del optimizer.state[parameter]

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
        for home in self._homes.values():
            home.renew()
        for wrapper in self._wrappers:
            parallel.rebuild_reducer(wrapper)

    def _gated_buffers(self) -> list[Tensor]:
        tensors = [home.tensor() for home in self._homes.values()]
        return [tensor for tensor in tensors if not isinstance(tensor, nn.Parameter)]

    def _device(self) -> torch.device:
        return next(iter(self.parameters())).device

    def _places(self, chosen: Chosen) -> dict[int, Tensor]:
        return self.bank.places(chosen.channels, chosen.widths)

    def _meter(self, chosen: Chosen) -> Meter:
        """The meter for a selection's widths; kept until they change."""
        slots = self.bank.slots(chosen.widths, device := chosen.channels.device)
        if self._measured is None or self._measured[0] is not slots:
            meter = Meter(self.channels, slots.slot, len(chosen.channels), device)
            self._measured = (slots, meter)
        return self._measured[1]

    def _tensors(self) -> dict[str, Tensor]:
        return {name: home.tensor() for name, home in self._homes.items()}

    def _taps(self) -> dict[int, Tap]:
        """The taps by the number of their gate."""
        taps = ((n, m) for n, m in self.named_children() if isinstance(m, Tap))
        return {int(name.removeprefix(TAP)): tap for name, tap in taps}

    def _seen(self) -> dict[int, Tensor]:
        """What the taps saw since this was last asked."""
        taken = ((number, tap.take()) for number, tap in self._taps().items())
        return {number: values for number, values in taken if values is not None}

    def _fit_taps(self) -> None:
        for number, tap in self._taps().items():
            name, dim = self.channels.gates[number].parameters[0]
            tensor = self._homes[name].tensor()
            tap.fit(tensor.shape[dim], tensor.device)

    def _top(self, widths: Widths, explore: bool) -> Tensor:
        layout = self.channels.layout
        return top(self.settings.policy.score(self.policy_state, layout, explore), layout, widths)

    def _allocated(self) -> Widths:
        """The widths that spend the budget: one share for all groups, or what each deserves."""
        policy, layout = self.settings.policy, self.channels.layout
        if not policy.reallocate or self.steps == 0:
            return self._budget_widths
        score = policy.score(self.policy_state, layout, explore=False)
        return global_widths(self.settings.budget, layout, self.cost, score)

    def _aligned(self, channels: Tensor, widths: Widths) -> Chosen:
        """Channels that stay keep their slots, so that only the others have to move."""
        if widths == self._chosen.widths:
            channels = keep_slots(self.executing, channels, self.channels.layout, widths)
        return Chosen(channels, widths)


def _show_best(module: nn.Module, *_: Any) -> None:
    """Before the forward of an average; a copy of it has the hook too, and is none."""
    if isinstance(module, GatedModule) and module._lead is not None:
        module._show(module.best())
        module._lead = (module._lead[0], None)


def _show_leaders(module: nn.Module, *_: Any) -> None:
    """After it."""
    if isinstance(module, GatedModule):
        module._catch_up()


def _registered(parent: nn.Module, name: str, child: nn.Module | None) -> None:
    """Called by PyTorch for every module that becomes a child of another."""
    del name
    if isinstance(parent, DistributedDataParallel) and child is not None:
        for module in child.modules():
            if isinstance(module, GatedModule):
                module.join(parent)


register_module_module_registration_hook(_registered)


def _on(device: torch.device, chosen: Chosen) -> Chosen:
    return Chosen(chosen.channels.to(device), chosen.widths)


def _read(state: Mapping[str, Tensor], kind: str, device: torch.device) -> Chosen | None:
    if f"{kind}/channels" not in state:
        return None
    channels = state[f"{kind}/channels"].to(device, copy=True)
    return Chosen(channels, tuple(state[f"{kind}/widths"].tolist()))


def _check(state: Mapping[str, Tensor], dense: Mapping[str, Tensor]) -> None:
    saved = {k.removeprefix("dense/"): v for k, v in state.items() if k.startswith("dense/")}
    wrong = sorted(
        name
        for name in {*saved, *dense}
        if name not in saved or name not in dense or saved[name].shape != dense[name].shape
    )
    if wrong or not {"steps", "peak_rate", "trained/channels", "trained/widths"} <= state.keys():
        raise RunError(
            "the saved state belongs to another network",
            why=f"these tensors differ: {', '.join(wrong[:5])}" if wrong else "it is incomplete",
            do="load it into the model it was saved from",
        )
