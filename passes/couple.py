"""Couple: a traced network to its channel dependency graph.

Labels are propagated and solved; then the result is tried: a compact network of uneven widths is
run on meta tensors, with the labels of the dense one. Where it cannot run, or couples channels that
the dense network does not couple, the code around that node does not follow narrow widths: its
channels are pinned with that reason, and the rest is tried again.
"""

import contextlib
import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor

from fxprune.analysis.aliasing import copy_always
from fxprune.analysis.channel_convs import (
    POSITIONS,
    drop_unused_positions,
    run_at_dense_positions,
)
from fxprune.analysis.compact_trial import Refusal, culprits, try_widths, uneven_widths
from fxprune.analysis.context import Pin
from fxprune.analysis.describe import Description
from fxprune.analysis.labelled import Labelled
from fxprune.analysis.propagation import propagate
from fxprune.analysis.records import write_records
from fxprune.analysis.solve import Solution
from fxprune.channels.graph import ChannelGraph, Widths
from fxprune.channels.records import KEY
from fxprune.equivalence import batch_of, repeated
from fxprune.errors import TraceError
from fxprune.passes.base import Pass, Program
from fxprune.tracing.check import hold_to_model
from fxprune.tracing.module import TracedModule, clone_of


@dataclass(frozen=True)
class Couple(Pass):
    """Requires a traced network; the result knows its channels, and every node has its Record."""

    keys = ("couple",)

    def requires(self, program: Program) -> None:
        assert isinstance(program.module, TracedModule)

    def run(self, program: Program) -> Program:
        assert isinstance(program.module, TracedModule)
        module = clone_of(program.module, {})
        inputs, labelled = _propagate(module, program.inputs)
        if copy_always(module, labelled.copies):
            labelled = propagate(module, inputs)
        if run_at_dense_positions(module, labelled):
            labelled = propagate(module, inputs)
            graph = Description(Solution(labelled, module, [])).graph()
            if drop_unused_positions(module, lambda positions: _is_fixed(graph, positions)):
                labelled = propagate(module, inputs)
        extra: list[Pin] = []
        while True:
            solution = Solution(labelled, module, extra)
            description = Description(solution)
            channels = description.graph()
            write_records(solution)
            if not channels.groups:  # nothing is left to refuse
                return Program(module, program.inputs, channels)
            refused = functools.partial(
                try_widths, module, channels, dense=labelled, solution=solution, inputs=inputs
            )
            trials = ((widths, refused(widths)) for widths in uneven_widths(solution))
            found = next(((widths, refusal) for widths, refusal in trials if refusal), None)
            if found is None:
                return Program(module, program.inputs, description.with_found_mixing(channels))
            extra.append(_pin(solution, *found, refused))

    def ensures(self, before: Program, after: Program) -> None:
        assert after.channels is not None, "the result has no channels"
        assert isinstance(before.module, TracedModule)
        assert isinstance(after.module, TracedModule), "the result is no TracedModule"
        for graph in after.module.all_graphs:
            bare = [node.name for node in graph.nodes if KEY not in node.meta]
            assert not bare, f"nodes without a record: {', '.join(bare)}"
        if _text(before.module) != _text(after.module):  # copies or taps of its own stand in it
            hold_to_model(before.module, after.module, before.inputs)


def _pin(
    solution: Solution,
    widths: Widths,
    refusal: Refusal,
    refused: Callable[[Widths], Refusal | None],
) -> Pin:
    """Pin the channels for which a compact network of these widths is refused."""
    sizes = solution.layout.sizes

    def refuses(groups: Sequence[int]) -> bool:
        narrow = {*groups}
        few = (widths[g] if g in narrow else size for g, size in enumerate(sizes))
        return refused(tuple(few)) is not None

    def guilty(groups: Sequence[int] | None) -> Sequence[int]:
        near = range(len(sizes)) if groups is None else groups
        narrowed = [group for group in near if widths[group] < sizes[group]]
        if groups is not None and not (narrowed and refuses(narrowed)):
            return groups
        return culprits(refuses, narrowed)

    return solution.around(refusal.node, refusal.why, refusal.near, guilty)


def _is_fixed(channels: ChannelGraph, positions: str) -> bool:
    """Tell whether the channels of a buffer of positions are pinned, or no layer has them.

    The positions along which `x.repeat_interleave(2, dim=2)` repeats could go, and with them only
    the buffer itself.
    """
    axis = channels.axes.get(positions, {}).get(0)
    groups = () if axis is None else (channels.groups[g] for g, _ in axis.factor.per_channel)
    members = (member.parameter for group in groups for member in group.members)
    return all(name.startswith(POSITIONS) for name in members)


def _text(module: TracedModule) -> list[str]:
    """Print the module's graphs; equal texts compute the same from the same tensors."""
    return [str(graph) for graph in module.graphs]


def _propagate(
    module: TracedModule, inputs: tuple[Tensor, ...]
) -> tuple[tuple[Tensor, ...], Labelled]:
    """Propagate labels, and return the inputs it took for that.

    A batch norm in training mode refuses a single value; then a batch of two is tried.
    """
    try:
        return inputs, propagate(module, inputs)
    except TraceError:
        if batch_of(inputs) != 1:
            raise
        pairs = repeated(inputs, 2)
        with contextlib.suppress(TraceError):  # the first refusal says more
            return pairs, propagate(module, pairs)
        raise
