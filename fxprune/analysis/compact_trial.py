"""Tries a compact network on meta tensors, with the labels of the dense one."""

import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx

from fxprune.analysis.equalities import lowest, same_memory
from fxprune.analysis.labelled import Compact, Labelled, Value
from fxprune.analysis.propagation import propagate
from fxprune.analysis.solve import Solution
from fxprune.channels.graph import ChannelGraph, Factor, Widths, template_slots
from fxprune.channels.records import KEY, Shape
from fxprune.channels.resize import resize_parts
from fxprune.errors import TraceError
from fxprune.tracing.module import TracedModule, has_leaves


@dataclass(frozen=True)
class Refusal:
    """Where a compact network is not what it has to be.

    Attributes:
        node: the node; None where it is not known.
        why: what is wrong there, for the user.
        near: labels of what met there, as far as they are known.
    """

    node: fx.Node | None
    why: str
    near: Sequence[Tensor] = ()


class _Kept:
    """The labels of a compact network: those of the dense one that its template keeps.

    All positions of a channel stay apart, as they are in the dense network: if they were one,
    a tensor that holds nothing but one channel would seem to hold the same everywhere.
    """

    def __init__(self, solution: Solution, widths: Widths) -> None:
        self.solution = solution
        self.stays = (template_slots(solution.layout, widths) >= 0).numpy()  # by channel
        self.found: dict[int, Tensor] = {}
        self.by_axis: dict[int, Tensor] = {}
        self.compared: dict[tuple[int, int], bool] = {}

    def of(self, labels: Tensor) -> Tensor:
        """Keep what is compared of dense labels, once for all that the same channels share."""
        found = self.found.get(id(labels))
        if found is None:
            found = self.found[id(labels)] = self._select(labels)
        return found

    def same(self, labels: Tensor, seen: Tensor) -> bool:
        """Tell whether a compact run saw the kept dense labels, but for new ones of its own."""
        wanted = self.of(labels)
        if len(wanted) != len(seen):
            return False
        if same_memory(wanted, seen):
            return True
        pair = id(wanted), id(seen)
        if pair not in self.compared:
            component, found = self.solution.component, seen.numpy()
            known = found < len(component)
            ours, theirs = component[wanted.numpy()[known]], component[found[known]]
            self.compared[pair] = bool((ours == theirs).all())
        return self.compared[pair]

    def _select(self, labels: Tensor) -> Tensor:
        axis = self.solution.axis(labels)
        if axis is None:
            return labels
        if id(axis) in self.by_axis:
            return self.by_axis[id(axis)].view(-1)
        kept = torch.from_numpy(labels.numpy()[self.stays[axis.channel.numpy()]])
        if not axis.factor.fixed:  # else the labels that are fixed may be others elsewhere
            self.by_axis[id(axis)] = kept
        return kept


def try_widths(
    module: TracedModule,
    channels: ChannelGraph,
    widths: Widths,
    dense: Labelled,
    solution: Solution,
    inputs: tuple[Tensor, ...],
) -> Refusal | None:
    """Run a compact network of these widths; return the node that refuses, and why."""
    kept = _Kept(solution, widths)
    compact = Compact(module, dense, kept.of, dense.context.next_label)
    nodes, modules = compact.running
    resize_parts(module, modules.items(), nodes, channels, widths)
    try:
        seen = propagate(module, inputs, compact)
    except TraceError as error:
        return Refusal(_named(module, error.node), error.why, error.near)
    finally:
        resize_parts(module, modules.items(), nodes, channels, channels.layout.sizes)
    numbers = dense.context.numbers
    dense.context.counted += (
        _named(module, str(site[1]))
        for site, found in seen.context.numbers.items()
        if numbers.get(site, found) != found
    )
    return (
        _wrong_shape(module, seen, widths)
        or _elsewhere(module, solution, seen, kept)
        or _strangers(module, solution, seen)
    )


def culprits(refuses: Callable[[Sequence[int]], bool], groups: Sequence[int]) -> Sequence[int]:
    """Find which groups a compact network is refused for, when all of these are narrow.

    Each half is tried alone. Of a network that is refused for group 2 of 0 to 3, those with
    (0, 1), (2, 3), (2) and (3) are tried. Where neither half is refused alone, both are returned.

    Args:
        refuses: tells whether a network is refused in which only these groups are narrow.
        groups: with all of them it is.
    """
    if len(groups) == 1:
        return groups
    halves = groups[: len(groups) // 2], groups[len(groups) // 2 :]
    found = [group for half in halves if refuses(half) for group in culprits(refuses, half)]
    return found or groups


def uneven_widths(solution: Solution) -> Iterator[Widths]:
    """Draw widths to try: narrower than dense, and far apart for groups of the same size.

    At widths that are all in proportion, sizes that belong to different groups would fit by
    chance. Small groups have few widths to choose from; those that share an axis with something
    else show as such in more trials. A leaf's own code may halve an axis, say, which is right at
    widths that are near each other: where there is one, widths are also tried that are as far from
    each other as can be.
    """
    sizes = solution.layout.sizes
    yield tuple(
        size if size < 2 else size - 1 - int(size // 2 * _spread(index, 2))
        for index, size in enumerate(sizes)
    )
    if any(_crowded(axis.factor, sizes) for axis in solution.known.values()):
        for root in (3, 5):
            widths = [1 + int(size * _spread(index, root)) for index, size in enumerate(sizes)]
            yield tuple(widths)
            yield tuple(size + 1 - width for size, width in zip(sizes, widths, strict=True))
    if has_leaves(solution.module):
        for bit in range(3):  # groups that share an axis have numbers near each other
            for side in (0, 1):
                yield tuple(
                    size if index >> bit & 1 == side else 1 for index, size in enumerate(sizes)
                )


def _spread(index: int, root: int) -> float:
    """Return a number in [0, 1), far from those of the indices nearby; `root` is no square."""
    return (index + 1) * math.sqrt(root) % 1


def _crowded(length: Factor, sizes: Widths) -> bool:
    """Tell whether a small group shares an axis with another group or with pinned channels."""
    parts = len(length.per_channel) + (length.fixed > 0)
    return parts > 1 and any(sizes[group] < _SMALL for group, _ in length.per_channel)


_SMALL = 8


def _named(module: TracedModule, name: str) -> fx.Node | None:
    return next((n for graph in module.all_graphs for n in graph.nodes if n.name == name), None)


def _wrong_shape(module: TracedModule, compact: Labelled, widths: Widths) -> Refusal | None:
    """Return the first node whose tensor has another shape than the dense run promises."""
    for graph, values in zip(module.all_graphs, compact.values, strict=True):
        for node in graph.nodes:
            for promised, seen in _pairs(node.meta[KEY].result, values.get(node.name)):
                if promised.at(widths) != seen.shape:
                    why = f"a tensor comes out as {seen.shape}, not {promised.at(widths)}"
                    return Refusal(node, why)
    return None


def _elsewhere(
    module: TracedModule, solution: Solution, compact: Labelled, kept: _Kept
) -> Refusal | None:
    """Return the first node that reads other channels than it does in the dense network."""
    readings = solution.context.readings
    often = Counter(site for site, _ in readings)  # a flattened weight has several families in one
    seen = dict(compact.context.readings)
    for site, labels in readings:
        found = seen.get(site)
        if found is None or often[site] > 1 or solution.axis(labels) is None:
            continue  # where all of it stays, another family may remove some along with itself
        if not kept.same(labels, found):
            node = _named(module, str(site[1]))
            return Refusal(
                node, "the call reads other channels than in the dense network", [labels]
            )
    return None


def _strangers(module: TracedModule, solution: Solution, compact: Labelled) -> Refusal | None:
    """Return the first node that couples channels which the dense network leaves apart."""
    edges, known = compact.context.edges, solution.number
    new = np.arange(compact.context.next_label - len(solution.component))
    own = np.concatenate([solution.component, known + new])
    ends = [own[torch.cat(side).numpy()] for side in zip(*((a, b) for a, b, _ in edges))]
    merged = lowest(len(own), *ends) if edges else own
    crowd = np.bincount(merged[:known], minlength=len(own)) > 1
    for labels, _, node in edges:
        if crowd[merged[own[labels.numpy()]]].any():
            why = "channels meet that belong to different layers"
            return Refusal(_named(module, node.name), why, [labels])
    return None


def _pairs(promised: Any, seen: Any) -> Iterator[tuple[Shape, Value]]:
    if isinstance(promised, Shape) and isinstance(seen, Value):
        yield promised, seen
    elif isinstance(promised, tuple) and isinstance(seen, tuple):
        for parts in zip(promised, seen, strict=False):
            yield from _pairs(*parts)
    elif isinstance(promised, dict) and isinstance(seen, dict):
        for key in promised:
            yield from _pairs(promised[key], seen.get(key))
