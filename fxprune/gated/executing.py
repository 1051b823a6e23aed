"""Execution: one selection of channels exists as a narrow network, all others rest in the bank.

Outside a forward the parameters hold the selection that the policy explores, in any mode. A forward
in evaluation mode executes the selection that export would take now. An exchange of channels is a
list of operations; if it is interrupted, the next use finishes it first.
"""

import contextlib
import functools
import inspect
import itertools
import threading
import types
import weakref
from collections.abc import Callable, Iterator
from numbers import Real
from typing import Any, Self, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from fxprune.bank import exchange
from fxprune.bank.exchange import Selection
from fxprune.channels.cost import CostModel
from fxprune.channels.graph import ChannelGraph, Widths
from fxprune.channels.resize import resize
from fxprune.equivalence import without_noise
from fxprune.errors import FxpruneError, GateError, require_kind
from fxprune.gated import ddp
from fxprune.gated.bare_averages import BareAverages
from fxprune.gated.checkpointing import checkpointed
from fxprune.gated.evaluation import Evaluation, untraced
from fxprune.gated.nodes import note_paths, taps, to_gated
from fxprune.gated.optimizers import Rounds
from fxprune.gated.residents import Residents, gone
from fxprune.gated.selector import Selector, Settings
from fxprune.gated.slot_order import with_order
from fxprune.tracing.module import TracedModule, modules_of

_Method = TypeVar("_Method", bound=Callable[..., Any])


def lasting(method: _Method) -> _Method:
    """Leave `torch.inference_mode`, in which tensors that stay could not be trained."""
    wrapped: _Method = torch.inference_mode(False)(torch.no_grad()(method))
    return wrapped


def whole(method: _Method) -> _Method:
    """Keep other threads from exchanging channels while a method reads or writes all of them."""

    @functools.wraps(method)
    def locked(self: "Executing", *args: Any, **kwargs: Any) -> Any:
        with self.paused():
            return method(self, *args, **kwargs)

    alike: Any = locked
    found: _Method = alike
    return found


class Executing(TracedModule):
    """A network in which only the channels of a selection exist.

    Its attributes are those of `GatedModule`, which users see.
    """

    _code_now: Callable[..., Any]

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
        self.inputs = without_noise(example_inputs)
        self._wrappers: weakref.WeakSet[DistributedDataParallel] = weakref.WeakSet()
        self.attached = Rounds()
        self._bare_averages = BareAverages()
        self._settled: Selection | None = None
        self._residents = Residents(self, channels)
        self.bank = self._residents.bank
        for path, module in modules_of(self).items():
            name = f"{path}.weight" if path else "weight"
            if name in channels.axes:
                to_gated(module, channels.shapes[name])
        note_paths(self)
        layout = channels.layout
        whole = Selection(torch.arange(layout.total, device="cpu").to(self._device()), layout.sizes)
        with torch.no_grad():
            prior = self._residents.meter(whole).magnitude(self._residents.tensors())
        self._selector = Selector(settings, layout, self.cost, prior)
        first = self._selector.first()
        self._residents.load(first)
        resize(self, channels, first.widths)
        self._made = True
        self.recompile()
        self._selection, self._since = first, 0  # the step after which it was taken up
        self._known_widths: Widths = ()
        self._apply_widths()
        self._mode_was_set()

    @property
    def widths(self) -> Widths:
        """The widths that a forward executes now, one per channel group."""
        return self._shown().widths

    @property
    def executing(self) -> Tensor:
        """The selection that a forward executes now: int64 [K], channel numbers in slot order."""
        return self._shown().channels

    @property
    def trained(self) -> Selection:
        """The selection whose channels the parameters hold, the same in any mode."""
        return self._selection

    @property
    def steps(self) -> int:
        """How many optimiser steps were observed."""
        return self._selector.steps

    def needs_attached(self) -> bool:
        """Tell whether an optimiser that steps it should be attached."""
        return not self.settled and (bool(self.attached) or self.steps > 0)

    def is_driven_by(self, optimizer: torch.optim.Optimizer) -> bool:
        """Tell whether the state of an optimiser is exchanged with the channels."""
        return self._residents.optimizers.is_tracked(optimizer)

    @lasting
    def ordered(self) -> Selection:
        """Return the selection, in whose order the optimisers' states lie from now on."""
        self._finish()
        self._residents.optimizers.put_in_order(self._selection)
        return self._selection

    def with_order(self, state: dict[str, Any], optimizer: torch.optim.Optimizer) -> dict[str, Any]:
        """Add the selection to what an attached optimiser's `__getstate__()` returns."""
        entry = self._residents.optimizers.entry(optimizer, self.ordered())
        return with_order(state, self._residents.tensors().values(), entry)

    @property
    def policy_state(self) -> dict[str, Tensor]:
        """The policy's tensors."""
        return self._selector.state

    def paused(self) -> contextlib.AbstractContextManager[Any]:
        """Return a context in which no other thread exchanges channels."""
        return self._lock

    @whole
    def selection(self) -> dict[str, dict[int, Tensor]]:
        """Return the kept indices of each parameter, as export would take them now.

        Returns:
            For each gated parameter of the original model, by name, and each of its gated
            dimensions: int64 [kept] on the CPU, in the order of the compact tensor.
        """
        best = self.best()
        positions = self.bank.positions(best.channels, best.widths)
        return {
            name: {dim: line.cpu() for dim, line in self.bank.of(name, positions).items()}
            for name, tensor in self._residents.tensors().items()
            if isinstance(tensor, nn.Parameter)
        }

    @whole
    def dense_state_dict(self) -> dict[str, Any]:
        """Return all parameters and buffers with the original model's names and shapes; copies.

        Slices that execute have their newest values; those that rest have the values they had
        when they last executed.

        Raises:
            GateError: a layer was replaced, and the new one lacks a tensor.
        """
        tensors = self.dense_tensors()
        for name, _ in self.origin.entries.values():
            if name is not None and name not in tensors:
                raise gone(self, name)
        return self.origin.state_dict(tensors)

    @whole
    def dense_tensors(self) -> dict[str, Tensor]:
        """Return the dense network's tensors by name.

        Those of the bank, brought up to date, and those that are not gated; the tensors
        themselves, not copies.
        """
        self._finish()
        own = {**dict(self.named_parameters()), **dict(self.named_buffers())}
        return {**own, **self._residents.store(self._selection)}

    @property
    def follows(self) -> bool:
        """Whether its selections are those of another network."""
        return False

    @whole
    @lasting
    def best(self) -> Selection:
        """Return the selection that export would take now: the whole budget, and no exploration."""
        if self._settled is not None:
            return self._settled
        return self._selector.best(self._selection)

    @lasting
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
        """Execute the widths of another share of the network in training, until the next call.

        It has no effect once the network is settled. Evaluation keeps to the budget.

        Args:
            share: of the dense network, counted as the budget counts: the budget's, up to 1.

        Raises:
            BudgetError: the share is below the budget's, or above 1.
            OptionError: it is no number.
        """
        require_kind(share, Real, "the share", "give a number, such as 0.8")
        chosen = self._selection_at(share)
        if chosen is not None:
            self._residents.gradients.drop()
            self._select(chosen)

    def _selection_at(self, share: float) -> Selection | None:
        """Return the selection at another share, or None if it stays the same."""
        if self.settled:
            return None
        return self._selector.spend(share, self._selection)

    @lasting
    def select(self, chosen: Selection) -> None:
        """Execute another selection: store what leaves and load what enters, in place.

        Raises:
            GateError: the selection does not fit the groups and its widths.
        """
        self._selector.check(chosen)
        self._forget_source()
        if chosen is not self._selection:
            self._residents.gradients.drop()
        self._select(chosen)

    def _forget_source(self) -> None:
        """Stop following the network of which this is a copy."""

    # --- modes, devices -----------------------------------------------------------------------

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

    @lasting
    def _mode_was_set(self) -> None:
        self._finish()
        self._show_graph()
        self._residents.refind(self._selection)
        self._evaluation.stale = True
        if not self.training:
            self._prepare()

    def note_registered(self, parent: nn.Module) -> None:
        """Find the residents anew before the next use, if a part of the network was replaced.

        Args:
            parent: a module in which a child or a parameter is about to be registered.
        """
        if self._residents.holds(parent) and self._refind not in self._pending:
            self._pending.insert(0, self._refind)

    def _refind(self) -> None:
        self._residents.refind(self._selection)
        self.attached.check_again()
        self._evaluation.stale = True

    def _shown(self) -> Selection:
        """Return the selection that a forward executes now."""
        if self.training or self.follows:
            return self._selection
        if self._evaluation.stale or self._evaluation.shown is None:
            return self.best()
        return self._evaluation.shown

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    @lasting
    @untraced
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

    def recompile(self) -> Any:
        """Write the graph's code, once its sizes are those of the first selection."""
        if not self._made:
            return None
        code = super().recompile()
        cls: Any = type(self)
        self._code_now = checkpointed(self, self.graph) or cls.forward
        cls.forward = _by_mode(self._code_now)
        return code

    @lasting
    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self.bank.apply(fn)
        self._residents.refind(self._selection)
        device = self._device()
        self._selector.take_over(self._selector, device)
        self._selection = self._selection.to(device)
        self._settled = None if self._settled is None else self._settled.to(device)
        self._fit_taps()
        self._evaluation.stale = True
        if not self.training:
            self._prepare()
        each: Any = self.parameters()
        if not self.settled and any(p.is_cpu and p.is_shared() for p in each):
            raise GateError(
                "a gated network that still chooses channels cannot be shared by processes",
                why="its weights would be exchanged in all of them, and its bank in one",
                do="share fxprune.shrink(gated), or call gated.settle() before; to train in "
                "several processes, take torch.nn.parallel.DistributedDataParallel",
            )
        return self

    # --- the exchange -------------------------------------------------------------------------

    def _select(self, chosen: Selection) -> None:
        if chosen is self._selection:
            return
        self._residents.optimizers.put_in_order(self._selection)
        self._residents.optimizers.reset_unmovable_state(
            self._selection.widths, chosen.widths, self._residents.narrow
        )
        tensors = self._residents.tensors().values()
        buffers = [tensor for tensor in tensors if not isinstance(tensor, nn.Parameter)]
        for wrapper in self._wrappers:
            ddp.share_buffers(buffers, wrapper)
        self._exchange(chosen)
        if not self.training:
            self._prepare()

    @lasting
    def _exchange(self, chosen: Selection) -> None:
        """Exchange parameters, buffers and optimisers' state for those of another selection."""
        with self._lock:
            self._exchange_locked(chosen)

    def _exchange_locked(self, chosen: Selection) -> None:
        self._finish()
        self._adopt()
        self._residents.optimizers.put_in_order(self._selection)
        torch.clear_autocast_cache()  # of casts of what leaves
        old = self._selection
        if self.attached and chosen.widths == old.widths:  # at other widths it fails loudly
            self._bare_averages.look(self.parameters(), self._residents.narrow, self._followed)
            self._residents.gradients.leave(self.attached.holds)
        items = itertools.chain(
            self._residents.optimizers.states(old.widths), self._residents.parameters()
        )

        def take_up() -> None:
            if chosen.widths != old.widths:
                resize(self, self.channels, chosen.widths)
                self.recompile()
            self._residents.optimizers.correct_entries(
                chosen if chosen.widths == old.widths else None
            )
            self._selection, self._since = chosen, self._selector.steps
            self._evaluation.stale = True

        plan = [*exchange.steps(items, self.bank, old, chosen), take_up, self._apply_widths]
        self._pending = plan[::-1]
        try:
            self._finish()
        except FxpruneError:  # of a wrapper that cannot follow; the exchange itself is done
            self._pending = []
            raise
        except BaseException:
            self._finish()  # or it is finished before the next use, if this is interrupted too
            raise

    @lasting
    def _finish(self) -> None:
        """Finish an exchange, or a forward of evaluation, that was interrupted."""
        with self._lock:
            self._evaluation.restore()
            while self._pending:
                self._pending[-1]()
                self._pending.pop()

    def _adopt(self) -> None:
        """Let networks that hold the values of this one follow it."""

    def _followed(self) -> Iterator[Tensor]:
        """Yield the tensors that follow the channels: optimisers' state, and the bank."""
        yield from self._residents.moving()

    def _apply_widths(self) -> None:
        """Give autograd and data-parallel wrappers the widths of the selection."""
        if self._known_widths == self._selection.widths:
            return
        self._known_widths = self._selection.widths
        self._fit_taps()
        self._residents.renew()
        for wrapper in self._wrappers:
            ddp.rebuild_reducer(wrapper)

    def _device(self) -> torch.device:
        return next(iter(self.parameters())).device

    def _fit_taps(self) -> None:
        tensors = self._residents.tensors()
        for number, tap in taps(self).items():
            name, dim = self.channels.gates[number].parameters[0]
            tap.fit(tensors[name].shape[dim], tensors[name].device)


def _by_mode(code: Callable[..., Any]) -> Callable[..., Any]:
    """Return a forward that runs this code in training, and otherwise what evaluation runs."""

    def forward(self: Executing, *args: Any, **kwargs: Any) -> Any:
        if self._pending:
            self._finish()
        if self._code_now is not code:  # accelerate and others have kept a forward of old widths
            return type(self).forward(self, *args, **kwargs)
        if self.training and not self.follows:
            return code(self, *args, **kwargs)
        if torch.compiler.is_compiling():
            return self._evaluate(*args, **kwargs)
        with self._lock:
            return self._evaluate(*args, **kwargs)

    # torch.compile counts how often it compiled a code object, and gives up after some times
    own = types.FunctionType(
        forward.__code__.replace(), globals(), code.__name__, None, forward.__closure__
    )
    whole: Any = functools.update_wrapper(own, code)
    whole.__signature__ = inspect.signature(code)
    del whole.__wrapped__  # which accelerate takes for the forward without its own wrappers
    found: Callable[..., Any] = whole
    return found
