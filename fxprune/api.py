"""The public functions that run the passes: analyze, instrument, shrink, fold."""

import contextlib
import dataclasses
import gc
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor, fx, nn

import fxprune.gated.wrappers  # noqa: F401 - what wraps a gated network is recognised from now on
from fxprune.budget.budget import Budget
from fxprune.budget.layers import Layers, limit
from fxprune.channels.graph import ChannelGraph
from fxprune.channels.records import KEY
from fxprune.errors import OptionError
from fxprune.gated.module import GatedModule, Settings
from fxprune.passes import Pass, Program, apply, run_passes
from fxprune.policies import Policy, parse

if TYPE_CHECKING:
    from fxprune.export.bench import Bench, Target
    from fxprune.export.group_latency import GroupLatency
    from fxprune.export.latency import Choice


Inputs = Tensor | tuple[Any, ...] | Mapping[str, Any]
"""Example inputs: one tensor, positional ones in a tuple, or keywords in a dict."""


def analyze(
    model: nn.Module, example_inputs: Inputs, *, example_kwargs: Mapping[str, Any] | None = None
) -> ChannelGraph:
    """Find which slices of which parameters can only be kept or removed together.

    Args:
        model: any network of convolutions; it is not changed.
        example_inputs: a tensor [N, ...]; or a tuple with one for each positional argument of
            forward (a list, tuple or dict of tensors, where forward takes one); or a dict of
            tensors by keyword. Shapes and dtypes matter, and whole numbers, such as lengths, which
            may decide the shapes in forward; other values do not. N, the first dimension of
            the first tensor that has one, is the batch, and so is that of each that is as long.
        example_kwargs: more arguments by keyword. Those that are no tensors become constants of
            the network.

    Returns:
        The channel groups, and what is pinned, with the reason and the line of the model's code.

    Raises:
        TraceError: the model cannot be traced, or does not run on inputs of this shape.

    >>> import torch
    >>> model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3))
    >>> [group.size for group in analyze(model, (torch.zeros(1, 3, 8, 8),)).groups]
    [8]
    """
    channels = _coupled(model, example_inputs, example_kwargs).channels
    assert channels is not None
    return channels


def instrument(
    model: nn.Module,
    example_inputs: Inputs,
    policy: str | Policy = "cucb",
    budget: str | Budget | None = None,
    round_to: int | None = None,
    every: int = 1,
    seed: int = 0,
    *,
    exclude: str | Sequence[str] = (),
    exclude_inputs: str | Sequence[str] = (),
    keep: Mapping[str, float] | None = None,
    floor: Mapping[str, float] | None = None,
    ceiling: Mapping[str, float] | None = None,
    example_kwargs: Mapping[str, Any] | None = None,
) -> GatedModule:
    """Rewrite a network so that each training step executes only a chosen subset of channels.

    Args:
        model: any network of convolutions; it is not changed, and the result has copies of its
            parameters.
        example_inputs: as for `analyze`.
        policy: how channels are chosen, such as `"cucb{c=0.5}"`, or a Policy.
        budget: how much may execute, such as `"macs=0.25"` or `"macs=0.5,params=0.3"`, or a
            Budget. For `"latency=0.4"`, compact networks are timed first, see `fit_latency`.
            None means `"keep=0.5"`; if `keep` is given, that alone limits the network, and all
            other layers stay whole.
        round_to: widths are multiples of this many channels. None means 8, less in groups of
            fewer than 32 channels. A Budget has its own.
        every: optimiser steps between two selections.
        seed: of the random numbers that policies draw.
        exclude: patterns of layers that keep all channels that they make; a pattern is a name of
            `named_modules()`, `*` and `?` allowed, see `fxprune.budget.layers`.
        exclude_inputs: patterns of layers that keep all channels that they consume.
        keep: the share of their channels that layers keep, by pattern, such as
            `{"layer4.*": 0.3, "*": 0.6}`; the first pattern that matches decides.
        floor: the least share that layers keep, by pattern.
        ceiling: the most, by pattern.
        example_kwargs: as for `analyze`.

    Warns:
        UserWarning: a pattern affects more layers than it matches, or fewer; or the budget is a
            share of the channels, and a much larger share of the channels or macs stays.

    Returns:
        A GraphModule with `selection()` and `dense_state_dict()`; give its parameters to an
        optimiser, and both to `fxprune.attach`.

    Raises:
        TraceError: as for `analyze`; or the traced network, run on random inputs in evaluation
            mode, does not compute what the model computes.
        OptionError: the policy, the budget or another option is not understood or out of range.
        GateError: no channel of the model could be removed.
    """
    steps: Any = every  # a caller may have no types
    if not isinstance(steps, int) or steps < 1:
        raise OptionError(f"every cannot be {every!r}", do="give a number of steps, 1 or more")
    start: Any = seed
    if not isinstance(start, int) or start < 0:
        raise OptionError(f"seed cannot be {seed!r}", do="give a whole number, 0 or more")
    chosen, default = parse(policy), Budget.parse("keep=0.5", round_to)
    given = None if budget is None else Budget.parse(budget, round_to)
    Settings(chosen, given or default)  # refused before any work
    layers = Layers.of(exclude, exclude_inputs, keep, floor, ceiling)
    with _uncollected():
        coupled = _coupled(model, example_inputs, example_kwargs)
        assert coupled.channels is not None
        limited = limit(layers, given, default, coupled.channels, names_of(model))
        for note in limited.notes:
            warnings.warn(note, stacklevel=2)
        settings = Settings(chosen, limited.budget, every, seed)
        if limited.budget.is_unmeasured:
            fitted = fit_latency(
                model, example_inputs, limited.budget, example_kwargs=example_kwargs
            )
            settings = dataclasses.replace(settings, budget=fitted.budget)
        gated = apply("gate", coupled, settings=settings).module
    assert isinstance(gated, GatedModule)
    for note in _kept_too_much(gated):
        warnings.warn(note, stacklevel=2)
    return gated


TOO_MUCH = 0.1
"""How far the share that stays may exceed the budget's share without a warning."""


def _kept_too_much(gated: GatedModule) -> Iterator[str]:
    """Yield a warning if much more than a `keep` budget's share of channels or macs stays."""
    budget, widths, cost = gated.settings.budget, gated.best().widths, gated.cost
    if budget.kind != "keep" or budget.limits:
        return
    channels = sum(widths) / max(sum(cost.sizes), 1)
    if channels > budget.value + TOO_MUCH:
        yield (
            f"{channels:.0%} of the channels stay, more than {budget}: some groups cannot be so "
            "narrow; round_to=1 leaves them the most freedom"
        )
    macs = cost.macs(widths) / max(cost.dense_macs, 1)
    if macs > budget.value + TOO_MUCH:
        pinned = sorted(gated.channels.pinned, key=lambda pin: -pin.macs)[:3]
        reasons = "; ".join(
            f"{pin.macs / max(cost.dense_macs, 1):.0%} {pin.reason}" for pin in pinned if pin.macs
        )
        why = f"channels are pinned: {reasons} (all of them: gated.channels.pinned)"
        whole = [group.name for group in gated.channels.groups if group.size == 1]
        if whole and sum(p.macs for p in pinned) < (macs - budget.value) * cost.dense_macs:
            why = f"the channels of {', '.join(whole[:3])} go all together or not at all"
        yield f"{macs:.0%} of the macs stay with {budget}, because {why}"


def fit_latency(
    model: nn.Module,
    example_inputs: Inputs,
    budget: Budget,
    target: "Target | None" = None,
    *,
    example_kwargs: Mapping[str, Any] | None = None,
    remeasure: bool = False,
    progress: Callable[[str], None] = lambda _: None,
) -> "Choice":
    """Find by measurement which widths meet a latency budget.

    About six compact networks are timed, in ONNX Runtime or by a command of the user's. Each
    takes some seconds, longer on a busy machine. Measurements without noise are kept in the
    user's cache directory.

    Args:
        model: as for `instrument`.
        example_inputs: likewise.
        budget: a latency budget.
        target: where and how networks are timed; by default ONNX Runtime on this machine, in a
            loop.
        example_kwargs: likewise.
        remeasure: whether to measure again what the cache holds.
        progress: called with a line of text that says what is measured, and how far it is.

    Returns:
        The budget with its widths, and the measurements.

    Raises:
        BudgetError: the narrowest network takes longer, or the machine is too busy to tell.
        ExportError: the network cannot be exported.
    """
    from fxprune.export.latency import choose

    coupled = _coupled(model, example_inputs, example_kwargs)
    with _bench(coupled, target, remeasure, progress) as bench:
        return choose(budget, bench.gated.channels.layout, bench.gated.cost, bench)


def group_latencies(
    model: nn.Module,
    example_inputs: Inputs,
    target: "Target | None" = None,
    *,
    example_kwargs: Mapping[str, Any] | None = None,
    remeasure: bool = False,
    progress: Callable[[str], None] = lambda _: None,
) -> "list[GroupLatency]":
    """Measure for each channel group how much time half of its channels take.

    For each group, the network with half of that group's channels is exported and timed in turns
    with the dense network, which takes some seconds. Arguments, cache and errors are those of
    `fit_latency`.
    """
    from fxprune.export.group_latency import measure_groups

    at = ""

    def begin(group: str) -> None:
        nonlocal at
        at = group

    coupled = _coupled(model, example_inputs, example_kwargs)
    with _bench(coupled, target, remeasure, lambda text: progress(f"{at}: {text}")) as bench:
        return measure_groups(bench.gated.channels, bench, begin)


def _bench(
    coupled: Program, target: "Target | None", remeasure: bool, progress: Callable[[str], None]
) -> "Bench":
    from fxprune.export.bench import Bench, Target  # which brings ONNX Runtime

    whole = Settings(parse("fixed"), Budget("keep", 1.0))
    program = apply("gate", coupled, settings=whole)
    return Bench(
        program, coupled.inputs, target or Target(), remeasure=remeasure, progress=progress
    )


def names_of(model: nn.Module) -> list[str]:
    """List the names of a network's modules; one that is used under several names has all."""
    return [name for name, _ in model.named_modules(remove_duplicate=False)]


def shrink(gated: GatedModule, passes: str | Sequence[str | Pass] = ()) -> fx.GraphModule:
    """Build the compact network of plain modules with the channels that an export would have.

    It has tensors of its own, and the mode (training or evaluation) that `gated` is in; `gated`
    does not change. In evaluation mode the two are compared on random inputs.

    Args:
        gated: the network.
        passes: passes that are then run on the compact network, in this order: names with
            options, such as `"fold"` or `"my_package:MyPass{strength=2}"` (one text with commas,
            or a sequence), or `Pass` objects.

    Raises:
        GateError: `gated` is not a gated network, or a pass refuses the network.
        OptionError: a pass is unknown, or its options are wrong.
        PassError: the result of a pass does not fulfil what the pass ensures.
    """
    return run_passes(passes, apply("shrink", Program(gated, ()))).graph_module


def fold(compact: fx.GraphModule) -> fx.GraphModule:
    """Copy a network and merge its batch norms into the layers before them.

    Args:
        compact: a network in evaluation mode. If `shrink` made it, it is compared with the result
            on random inputs.

    Raises:
        GateError: the network is no GraphModule, or in training mode.
        PassError: the result computes something else.
    """
    inputs = getattr(compact, "meta", {}).get(KEY, ())
    return apply("fold", Program(compact, inputs)).graph_module


def _coupled(model: nn.Module, inputs: Inputs, kwargs: Mapping[str, Any] | None) -> Program:
    given: Any = inputs  # the traced program has the tensors among them
    with _uncollected():
        return apply("couple", apply("trace", Program(model, given), kwargs=kwargs or {}))


@contextlib.contextmanager
def _uncollected() -> Iterator[None]:
    """Suspend garbage collection: a graph is a million small objects, none of them garbage."""
    collected = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collected:
            gc.enable()
