"""Optimisers that step a gated network and are not attached to it: found, and warned of.

Their momentum does not follow the channels, and they may apply gradients to other channels than
those that made them; or, where none is attached, the selection stands still in silence.
PyTorch calls hooks for the steps of all optimisers; only the first, second, fourth … step of each
is looked at. An optimiser in which an attached one steps wraps that, and is looked at for state of
its own.
"""

import warnings
import weakref
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.optimizer import (
    register_optimizer_step_post_hook,
    register_optimizer_step_pre_hook,
)

from fxprune.bank.exchange import Selection
from fxprune.errors import FxpruneWarning, message
from fxprune.gated.averages import living
from fxprune.gated.executing import Executing
from fxprune.tracing.module import tensors_of

PATIENCE = 8
"""Steps until a network that none was ever attached to is taken for forgotten."""


class Watch:
    """The steps of all optimisers of the process."""

    def __init__(self) -> None:
        self._steps: weakref.WeakKeyDictionary[Optimizer, int] = weakref.WeakKeyDictionary()
        self._began: weakref.WeakKeyDictionary[Optimizer, dict[int, int]]
        self._began = weakref.WeakKeyDictionary()
        self._warned: weakref.WeakSet[Optimizer] = weakref.WeakSet()
        self._selected: weakref.WeakKeyDictionary[Executing, Selection]
        self._selected = weakref.WeakKeyDictionary()  # at the last step without an attached one
        self._watches = False

    def begin(self) -> None:
        """Register the hooks, once."""
        if not self._watches:
            self._watches = True
            register_optimizer_step_pre_hook(self._before)
            register_optimizer_step_post_hook(self._after)

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def _before(self, optimizer: Optimizer, *_: Any) -> None:
        count = self._steps[optimizer] = self._steps.get(optimizer, 0) + 1
        if not count & (count - 1) and optimizer not in self._warned:
            self._began[optimizer] = {id(network): network.steps for network in living()}

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def _after(self, optimizer: Optimizer, *_: Any) -> None:
        began = self._began.pop(optimizer, None)
        if began is None:
            return
        held = [p for group in optimizer.param_groups for p in group["params"]]
        for network in living():
            own = {id(p) for p in tensors_of(network)[0].values()}
            stepped = [p for p in held if id(p) in own and p.grad is not None]
            if not stepped or network.is_driven_by(optimizer):
                continue
            network.go_alone()
            if network.needs_attached() or self._is_forgotten(network, self._steps[optimizer]):
                wraps = network.steps != began.get(id(network))
                if not wraps or any(_has_state(optimizer, p) for p in stepped):
                    self._warned.add(optimizer)
                    _warn(network, optimizer)

    def _is_forgotten(self, network: Executing, steps: int) -> bool:
        """Tell whether nothing, not even the user's own code, changes the selection."""
        before = self._selected.get(network)
        now = self._selected[network] = network.trained
        stays = network.settled or now.widths == network.channels.layout.sizes
        return steps >= PATIENCE and now is before and not stays


def _has_state(optimizer: Optimizer, parameter: Tensor) -> bool:
    values = optimizer.state.get(parameter, {}).values()
    return any(isinstance(value, Tensor) and value.numel() > 1 for value in values)


def _warn(network: Executing, optimizer: Optimizer) -> None:
    name = type(optimizer).__name__
    text = message(
        f"{name} steps a gated network, and is not attached to it",
        why="its state and its gradients do not follow when channels are exchanged"
        if network.attached
        else "no optimiser is attached (a copy and a loaded network begin without one), so the "
        "selection does not change",
        do="call fxprune.attach(gated, optimizer) for each optimiser that steps it, before its "
        "first step; or gated.settle(), if the selection is to stay",
    )
    warnings.warn(text, FxpruneWarning, stacklevel=2)


WATCH = Watch()
