"""Attach: hooks on an optimiser, which select and exchange channels around each of its steps."""

import functools
import inspect
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from fxprune.budget.schedule import Schedule, StepSchedule, parse
from fxprune.errors import GateError, OptionError, described
from fxprune.gated.averages import living
from fxprune.gated.ddp import refuse_shards
from fxprune.gated.module import GatedModule
from fxprune.gated.optimizer_modes import show_all_channels
from fxprune.gated.optimizers import inside


@dataclass(frozen=True, eq=False)
class Controller:
    """What `attach` returns; the hooks live as long as the optimiser.

    Attributes:
        gated: the network.
        optimizer: the optimiser whose steps drive the selection.
        handles: of the hooks.
    """

    gated: GatedModule
    optimizer: Optimizer
    handles: tuple[RemovableHandle, ...]

    def detach(self) -> None:
        """Remove the hooks; the network stays on its current selection."""
        for handle in self.handles:
            handle.remove()
        self.gated.attached.release(self.optimizer)


def attach(
    gated: GatedModule,
    optimizer: Optimizer,
    *,
    schedule: str | Schedule | StepSchedule | None = None,
    steps: int | None = None,
) -> Controller:
    """Let each step of the optimiser observe the channels, select anew, and exchange them.

    Where several optimisers share the parameters, each is attached: channels are exchanged once
    all of them have stepped. The state of an optimiser that wraps another follows with it.
    A step that GradScaler skips, or that changes no weight, is not observed. Learning-rate cuts
    (the first group's rate falls to half of its highest since the last cut, or lower) are shown to
    the policy.

    Args:
        gated: what `fxprune.instrument` returned; not a wrapper around it.
        optimizer: any torch optimiser over `gated.parameters()`, or what a framework wraps around
            one, such as accelerate's AcceleratedOptimizer or fastai's OptimWrapper.
        schedule: how the network falls from all channels to the budget, such as
            `"cubic{begin=0.1,end=0.6}"`, or a planned StepSchedule. Without one the budget holds
            from the first step on, unless `gated.spend` sets another share.
        steps: number of optimiser steps of the whole run, counted from the network's first one;
            needed for a schedule that is not planned yet.

    Raises:
        GateError: `gated` is no gated network, or is sharded; the optimiser holds none of its
            parameters, or the two are attached already.
        OptionError: the schedule is not understood, or one of schedule and steps is missing.
    """
    if not isinstance(gated, GatedModule):
        raise GateError(
            f"cannot attach to {described(gated)}",
            why="only a gated network selects channels",
            do="attach to what fxprune.instrument returned; for a wrapped one, to its .module",
        )
    refuse_shards(gated, *gated.parameters())
    optimizer = _unwrapped(optimizer)
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    if not any(id(parameter) in held for parameter in gated.parameters()):
        raise GateError(
            "the optimiser holds none of the gated network's parameters",
            why="it was made from another network's, perhaps the original model's",
            do="make it from gated.parameters()",
        )
    if optimizer in gated.attached:
        raise GateError(
            "this optimiser is attached to the gated network already",
            why="each of its steps would be observed twice",
            do="call attach once, or .detach() on what it returned before",
        )
    planned = _planned(gated, schedule, steps)
    gated.track(optimizer, planned)
    for one in (optimizer, *inside(optimizer)):
        vars(one)["__getstate__"] = _contents(one)  # which copies and pickles ask for
        show_all_channels(one)
    if planned is not None:
        gated.spend(planned.share(gated.steps))

    skips = False

    # The hooks take the optimiser that they are handed: it must not hold itself.
    @_outermost
    def before(stepping: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        nonlocal skips
        closure = args[1] if len(args) > 1 else kwargs.get("closure")  # args[0] is the optimiser
        makes = not callable(closure) and _is_empty(stepping)
        if skips := makes or _skips(stepping):
            gated.begin_step(forgets=not makes)  # what the network has loaded may have to wait
            return None
        rate = stepping.param_groups[0].get("lr")  # some have none, or None until they step
        show = functools.partial(
            gated._before_step, stepping, None if rate is None else float(rate)
        )
        if not callable(closure):
            show()
            return None
        observed = _observed(closure, show)
        if len(args) > 1:
            return (args[0], observed, *args[2:]), kwargs
        return args, {**kwargs, "closure": observed}

    @_outermost
    def after(stepping: Optimizer, *_: Any) -> None:
        if not skips:
            gated._after_step(stepping)

    hooked = (optimizer.register_step_pre_hook(before), optimizer.register_step_post_hook(after))
    return Controller(gated, optimizer, (*hooked, *_inner_handles(optimizer, before, after)))


def _inner_handles(
    optimizer: Optimizer, before: Callable[..., Any], after: Callable[..., None]
) -> Iterator[RemovableHandle]:
    """Register hooks on the optimisers in one that wraps them, in whose place a loop may step them.

    A loop with SAM in two halves steps the optimiser inside alone. A step of it inside a step of
    the wrapper is a part of that one.
    """
    outer, depth = weakref.ref(optimizer), 0

    @_outermost
    def entering(*_: Any) -> None:
        nonlocal depth
        depth = 1

    @_outermost
    def leaving(*_: Any) -> None:
        nonlocal depth
        depth = 0

    @_outermost
    def before_inner(_: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        wrapper = outer()
        if depth or wrapper is None:
            return None
        changed = before(wrapper, (wrapper, *args[1:]), kwargs)
        return None if changed is None else ((args[0], *changed[0][1:]), changed[1])

    @_outermost
    def after_inner(*_: Any) -> None:
        wrapper = outer()
        if not depth and wrapper is not None:
            after(wrapper)

    inner = inside(optimizer)
    if inner:
        yield optimizer.register_step_pre_hook(entering)
        yield optimizer.register_step_post_hook(leaving)
    for one in inner:
        yield one.register_step_pre_hook(before_inner)
        yield one.register_step_post_hook(after_inner)


def _contents(optimizer: Optimizer) -> Callable[[], dict[str, Any]]:
    """Return what copies the contents of an optimiser, which say of which channels its slots are.

    It replaces a method of this optimiser alone. A copy has torch's again.
    """
    kind, held = type(optimizer), weakref.ref(optimizer)

    def contents() -> dict[str, Any]:
        one = held()
        assert one is not None
        state: dict[str, Any] = kind.__getstate__(one)
        for network in living():
            if "state" in state and network.is_driven_by(one):
                state = network.with_order(state, one)
        return state

    return contents


def _unwrapped(optimizer: Any) -> Optimizer:
    """Return the torch optimiser in a framework's wrapper, which has no hooks of its own.

    Raises:
        GateError: there is none.
    """
    while "_optimizer_step_pre_hooks" not in (own := getattr(optimizer, "__dict__", {})):
        # asked in its own table alone, since Lightning's passes attributes on
        names = ("optimizer", "opt", "_optimizer", "original_optimizer")  # the last is opacus's
        named = [own.get(name) for name in names]
        inner = next((value for value in named if value is not None), None)
        if inner is None:
            raise GateError(
                f"cannot attach to the steps of {described(optimizer)}",
                why="it is no torch optimiser, and wraps none",
                do="train with one of torch.optim (fastai: opt_func=partial(OptimWrapper, "
                "opt=torch.optim.AdamW))",
            )
        optimizer = inner
    torch_optimizer: Optimizer = optimizer
    return torch_optimizer


def _skips(optimizer: Optimizer) -> bool:
    """Tell whether a fused optimiser was called by a GradScaler for a step that it skips inside."""
    found: Tensor | None = getattr(optimizer, "found_inf", None)
    return found is not None and bool(found)


def _is_empty(optimizer: Optimizer) -> bool:
    """Tell whether a step changes no weight, since all rates and all gradients are zero.

    `torch.distributed.checkpoint` takes one to make the state, between network's and optimiser's.
    """
    groups = optimizer.param_groups
    if any(group.get("lr") != 0 for group in groups):
        return False
    gradients = (p.grad for group in groups for p in group["params"])
    return not any(gradient is not None and bool(gradient.any()) for gradient in gradients)


def _planned(
    gated: GatedModule, schedule: str | Schedule | StepSchedule | None, steps: int | None
) -> StepSchedule | None:
    """Plan a schedule for the steps of the run; one that is planned already is taken as it is."""
    if schedule is None and steps is not None:
        raise OptionError(
            f"{steps} steps are given, and no schedule",
            why="without one the budget holds from the first step on, however many there are",
            do='give schedule="cubic" as well, or leave the steps out',
        )
    if schedule is None or isinstance(schedule, StepSchedule):
        return schedule
    parsed = parse(schedule)
    count: Any = steps  # a caller may have no types
    if not isinstance(count, int) or count < 1:
        raise OptionError(
            f"a schedule cannot be planned for {'no' if count is None else repr(count)} steps",
            do="give attach(…, steps=…) the number of optimiser steps of the whole run",
        )
    return parsed.plan(gated.settings.budget.value, count)


def _outermost(hook: Callable[..., Any]) -> Callable[..., Any]:
    """Let a hook pass by a step that is a part of another step of the same optimiser.

    Where a class calls its parent's `step`, both run the hooks. It is kept out of torch.compile,
    with which a user may compile a whole step.
    """

    def called(stepping: Optimizer, *args: Any) -> Any:
        return None if _is_nested(stepping) else hook(stepping, *args)

    disabled: Callable[..., Any] = torch.compiler.disable(called)  # type: ignore[no-untyped-call]
    return disabled


_HOOKED_STEP = Optimizer.profile_hook_step(lambda *_: None).__code__
"""The code by which each optimiser's step runs its hooks."""


def _is_nested(optimizer: Optimizer) -> bool:
    """Tell whether the step that runs its hooks now was called by a step of the same optimiser."""
    steps, frame = 0, inspect.currentframe()
    while frame is not None:
        if frame.f_code is _HOOKED_STEP:
            steps += frame.f_locals.get("self") is optimizer
        frame = frame.f_back
    return steps > 1


def _observed(closure: Callable[[], Any], show: Callable[[], None]) -> Callable[[], Any]:
    """Return a closure that calls `show` after the first time it has made gradients."""
    seen = False

    def call() -> Any:
        nonlocal seen
        loss = closure()
        if not seen:
            show()
        seen = True
        return loss

    return call
