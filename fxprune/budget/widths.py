"""The widths that spend a budget.

Two ways to spend one. *Uniform*: every group keeps the same share of its channels. *Global*: what
the scores of the kept channels are worth is made as much as possible; no group gets less than its
floor. Where channels are counted (`keep`), that is their sum: one threshold over all channels'
scores, as in arXiv 2007.01486. Where macs or params are, a group that keeps K of the sum S of its
channels' scores loses S (S / K - 1): nothing if it stays whole, S at a half, 3 S at a quarter. So
the less is left of a group, the more its next channel is worth. (With the plain sum, the groups of
most scores for their price would keep nearly all, and the others next to nothing, though the groups
of a VGG differ little in that.) The price of a channel is what it costs in the budget's own
measure: the macs or params saved by removing half of its group, divided by the number of removed
channels.

Both use one list. Every group's width climbs from its least to its most allowed width in
*rounding steps*, see `Budget.round_to` (the last may be shorter). The steps of all groups are
put in order: by the share that the group reaches (uniform) or by what the step adds in worth over
the price of its channels (global), as is usual for knapsacks. As many steps from the beginning of
the list are taken as the budget can pay; then each group may climb one more step if that still
fits. So the cost never exceeds the budget, and it would if every group climbed one step more. Only
uniform `keep` needs no list: it is a share of each group, and a group that cannot be so narrow
keeps its smallest width.

For example, two groups of 24 channels may have 8, 16 or 24 of them; the mean scores of their steps
to 16 and to 24 are 9, 4 and 5, 1; the budget is 40 channels. The widths begin at 8 and 8. The steps
in order are 9, 5, 4, 1, and the first three fit: the widths are 24 and 16.
"""

import dataclasses
import itertools
import math
import typing
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fxprune.budget.budget import Budget, rounding_step
from fxprune.channels.cost import CostModel
from fxprune.channels.graph import Layout, Widths
from fxprune.errors import BudgetError


def uniform_widths(budget: Budget, layout: Layout, cost: CostModel) -> Widths:
    """Compute the widths at which every group keeps the same share of its channels.

    `keep=r` gives each group of n channels r * n, rounded down to an allowed width, and at least
    the smallest one: no group is more than one rounding step away from r * n. `macs` and
    `params` take the largest common share that fits, each group rounded down; groups may then
    climb one step where that still fits. Their cost does not exceed the budget, and it would if
    every group were one step wider. A latency budget has its widths.

    Args:
        budget: the budget. Its floor does not matter here.
        layout: the channel groups.
        cost: the costs of the same groups.

    Returns:
        One width per group.

    Raises:
        BudgetError: even the smallest widths cost more than the budget, or a latency budget was
            not measured, or for another network.
    """
    if budget.kind == "latency":
        return _measured(budget, layout)
    allowed = allowed_widths(budget, layout)
    shares = dict(budget.shares)
    if "keep" in shares:
        keep = shares.pop("keep")
        targets = [keep * size + 1e-6 for size in layout.sizes]
        allowed = [
            [width for i, width in enumerate(widths) if i == 0 or width <= target]
            for widths, target in zip(allowed, targets)
        ]
        if not shares:
            return tuple(widths[-1] for widths in allowed)
        (kind, value), *also = shares.items()
        budget = dataclasses.replace(budget, kind=kind, value=value, also=tuple(also))

    def urgency(group: int, _low: int, high: int) -> float:
        return -high / layout.sizes[group]

    return _spend(budget, cost, allowed, urgency)


def global_widths(budget: Budget, layout: Layout, cost: CostModel, scores: Tensor) -> Widths:
    """Compute the widths at which the kept channels' scores are worth most.

    Every group keeps at least its floor: the smallest allowed width that is no less than
    `budget.floor` of its size. The cost does not exceed the budget, and it would if every group
    were one step wider.

    Args:
        budget: not one of latency; `keep` counts the channels of all groups together.
        layout: the channel groups.
        cost: the costs of the same groups.
        scores: float [N], one per channel, comparable between groups; any scale, but a channel
            of score 0 is worth nothing at any price. A NaN counts as the lowest.

    Returns:
        One width per group.

    Raises:
        BudgetError: the floors alone cost more than the budget.
    """
    assert budget.kind != "latency"  # `Settings` refuses it
    known = torch.where(scores.isnan(), -math.inf, scores.detach().double())
    values: list[float] = known.clamp(-1e30, 1e30).tolist()
    best_first = [
        sorted(values[offset : offset + size], reverse=True)
        for offset, size in zip(layout.offsets, layout.sizes)
    ]
    allowed = allowed_widths(budget, layout, budget.floor)
    if budget.kind == "keep":

        def mean(group: int, low: int, high: int) -> float:
            return sum(best_first[group][low:high]) / (high - low)

        return _spend(budget, cost, allowed, mean)

    kept = [[0.0, *itertools.accumulate(max(v, 0.0) for v in group)] for group in best_first]
    prices = cost.macs_per_channel if budget.kind == "macs" else cost.params_per_channel

    def worth(group: int, low: int, high: int) -> float:
        if not kept[group][low]:
            return 0.0
        whole = kept[group][-1]
        added = whole * (whole / kept[group][low] - whole / kept[group][high])
        return added / (high - low) / max(prices[group], 1e-6)  # free channels come first

    return _spend(budget, cost, allowed, worth)


def _measured(budget: Budget, layout: Layout) -> Widths:
    if not budget.widths:
        raise BudgetError(
            f"the budget {budget} has not been measured",
            do="make the network with fxprune.instrument, which measures it",
        )
    fits = len(budget.widths) == len(layout.sizes) and all(
        1 <= width <= size for width, size in zip(budget.widths, layout.sizes)
    )
    if not fits:
        raise _of_another(budget, "widths", layout)
    return budget.widths


def _of_another(budget: Budget, field: str, layout: Layout) -> BudgetError:
    return BudgetError(
        f"the budget {budget} does not fit the channel groups",
        why=f"there are {len(layout.sizes)}, of {'/'.join(map(str, layout.sizes))} channels",
        do=f"leave out its {field}: they are worked out for each network",
    )


def allowed_widths(budget: Budget, layout: Layout, floor: float = 0.0) -> list[list[int]]:
    """List the widths that each group may have, in rising order.

    They are multiples of the rounding step, or the group's size, within the budget's limits; a
    limit itself is allowed too.

    Raises:
        BudgetError: the budget's limits are those of another network.
    """
    limits = budget.limits or tuple((1, size) for size in layout.sizes)
    fits = len(limits) == len(layout.sizes) and all(
        1 <= least <= most <= size for (least, most), size in zip(limits, layout.sizes)
    )
    if not fits:
        raise _of_another(budget, "limits", layout)
    found = []
    for (least, most), size in zip(limits, layout.sizes):
        step = rounding_step(budget.round_to, size)
        widths = (*range(step, size, step), size)
        within = [width for width in widths if max(least, floor * size - 1e-6) <= width <= most]
        found.append(within or [most])
    return found


def _spend(
    budget: Budget,
    cost: CostModel,
    allowed: list[list[int]],
    urgency: Callable[[int, int, int], float],
) -> Widths:
    """Take steps in falling order of `urgency(group, from, to)` while the budget pays for them."""
    least = tuple(widths[0] for widths in allowed)
    if not budget.fits(least, cost):
        raise _impossible(budget, least, cost)
    groups, targets = _in_order(allowed, urgency)

    def climbed(steps: int) -> list[int]:
        widths = np.array(least, dtype=np.int64)
        np.maximum.at(widths, groups[:steps], targets[:steps])
        return typing.cast(list[int], widths.tolist())

    paid, unpaid = 0, len(groups) + 1
    while unpaid - paid > 1:
        middle = (paid + unpaid) // 2
        if budget.fits(tuple(climbed(middle)), cost):
            paid = middle
        else:
            unpaid = middle

    widths = climbed(paid)
    tried = set()
    for group, target in zip(groups[paid:].tolist(), targets[paid:].tolist()):
        if group in tried:
            continue
        tried.add(group)
        wider = [*widths[:group], target, *widths[group + 1 :]]
        if budget.fits(tuple(wider), cost):
            widths = wider
    return tuple(widths)


def _in_order(
    allowed: list[list[int]], urgency: Callable[[int, int, int], float]
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """List all steps, most urgent first: the group of each and the width that it climbs to."""
    steps: list[tuple[float, int, int]] = []
    for group, widths in enumerate(allowed):
        before = math.inf  # the last bit of a mean must not put a later step first
        for low, high in itertools.pairwise(widths):
            before = min(before, urgency(group, low, high))
            steps.append((-before, group, high))
    steps.sort()
    groups = np.array([group for _, group, _ in steps], dtype=np.int64)
    return groups, np.array([high for _, _, high in steps], dtype=np.int64)


def _impossible(budget: Budget, least: Widths, cost: CostModel) -> BudgetError:
    kind, share = budget.broken(least, cost) or (budget.kind, budget.share(least, cost))
    limited = ", with the limits given for layers" if budget.limits else ""
    return BudgetError(
        f"the budget {budget.asked} cannot be met",
        why=f"the least possible is {kind}={math.ceil(share * 1e4) / 1e4:.4g}: pinned channels "
        f"stay, and each of the {len(least)} groups keeps its smallest width{limited}",
        do="raise the budget, or lower its floor or round_to",
    )
