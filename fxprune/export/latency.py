"""Latency budgets: widths at which the compact ONNX file takes a share of the dense file's time.

What a channel costs in time depends on kernels, caches and threads, so it is measured, on the
machine or device that the network is for. The candidates form one chain, from the least widths to
the dense ones: at each point one group is a rounding step wider, and all groups rise together.

A model predicts the time along the chain, as a share of the dense time: a sum of a fixed part,
macs, params and channels, whose weights are at least 0 and fitted to the measured points (`nnls`).
Then it is corrected, by interpolation, to pass through the measured points, as far as these rise
(`isotonic_regression`). The point where the model meets the budget is measured, and the model
fitted anew, until a measurement is within `CLOSE` of the budget:

    budget 0.5    measured 0.3 at point 0; the model says 0.5 at point 40
                  measured 0.56 at point 40; the corrected model says 0.5 at point 31
                  measured 0.504 at point 31: done

The lowest of several noisy values is the one that noise favours. So the model chooses the widths,
and their time is measured once more, for longer, before it counts.

Where time jumps from one point of the chain to the next, as where kernels take 12 channels in the
time of 16, the widths below the jump may leave much of the budget. Then other groups get a step
wider, one after the other, as long as the budget pays for it.
"""

import itertools
import math
from bisect import bisect
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Protocol

import numpy as np
import numpy.typing as npt
from scipy.optimize import isotonic_regression, nnls

from fxprune.budget.budget import Budget
from fxprune.budget.widths import allowed_widths
from fxprune.channels.cost import CostModel
from fxprune.channels.graph import Layout, Widths
from fxprune.errors import BudgetError
from fxprune.export.bench import Known, Target

TOLERANCE = 0.05
"""How far the measured share may be from the budget's, as a share of the latter."""

CLOSE = 0.015
"""The search ends when the model and a measurement are as close as that."""

MEASUREMENTS = 10
CONFIRMATIONS = 3
FILLS = 10
"""How many times a single group is widened, to spend what the chain leaves of a budget."""

PRIOR = (0.1, 0.9, 0.0, 0.0)  # fixed, macs, params, channels: what is believed before measuring
TRUST = 0.05  # in the prior, beside one measured point

Floats = npt.NDArray[np.float64]


class Measure(Protocol):
    """Measures networks; see `fxprune.export.bench.Bench`."""

    @property
    def target(self) -> Target:
        """On what is measured."""

    def __call__(self, widths: Widths) -> Known:
        """Return the time at the widths; what was measured before is not measured again."""

    def afresh(self, widths: Widths) -> Known:
        """Return the time at the widths, measured once more and for longer."""


@dataclass(frozen=True)
class Choice:
    """The widths that were chosen, and what was measured.

    Attributes:
        budget: the latency budget with its widths.
        target: on what was measured.
        known: the time of the widths, measured afresh after they were chosen.
        measured: the share of the dense network's time by widths, all that were needed.
        slower: (narrower, wider) widths of which the narrower ones are slower, measured twice.
    """

    budget: Budget
    target: Target
    known: Known
    measured: Mapping[Widths, float]
    slower: tuple[tuple[Widths, Widths], ...] = ()

    @property
    def share(self) -> float:
        """The measured share of the dense network's latency."""
        return self.known.timing.bound(self.target.cold).median

    @property
    def met(self) -> bool:
        """Whether it is within the tolerance of the budget; where widths are few it is below."""
        return abs(self.share / self.budget.value - 1) <= TOLERANCE

    @property
    def leaves_some(self) -> bool:
        """Whether more of the budget is left than its tolerance."""
        return self.share < (1 - TOLERANCE) * self.budget.value


def choose(budget: Budget, layout: Layout, cost: CostModel, measure: Measure) -> Choice:
    """Find widths whose latency is the budget's.

    Groups keep about the same share of their channels, as in `uniform_widths`, but for those that
    get what this leaves.

    Args:
        budget: a latency budget.
        layout: the channel groups.
        cost: what the widths cost in macs and params, for the model of their time.
        measure: the bench.

    Raises:
        BudgetError: the narrowest network takes longer than the budget, or the machine is too
            busy for the time to be known.
    """
    allowed = allowed_widths(budget, layout)
    choice = _along_chain(budget, cost, _chain(allowed), measure)
    return _filled(choice, allowed, measure) if choice.leaves_some else choice


def _along_chain(budget: Budget, cost: CostModel, chain: list[Widths], measure: Measure) -> Choice:
    """Find the point of the chain whose latency is nearest to the budget's; see `choose`."""
    search = _Search(budget, cost, chain, measure)
    if budget.value == 1 or len(chain) == 1:
        most = search.ask(len(chain) - 1)
        if most > (1 + TOLERANCE) * budget.value:
            raise _impossible(budget, most)
        return search.choice(len(chain) - 1, measure(chain[-1]))
    least = search.ask(0)
    if least > (1 + TOLERANCE) * budget.value:
        least = search.ask(0, afresh=True)
    if least > (1 + TOLERANCE) * budget.value:
        raise _impossible(budget, least)
    search.approach()
    confirmed: dict[int, Known] = {}
    for _ in range(CONFIRMATIONS):
        at = search.nearest()
        if at in confirmed:
            break
        known = measure(chain[at])
        if not known.confirmed:
            search.ask(at, afresh=True)
            known = measure(chain[at])
        confirmed[at] = known
        if abs(search.shares[at] / budget.value - 1) <= 2 * CLOSE:
            return search.choice(at, known)
        search.approach()
    fitting = [at for at in confirmed if search.shares[at] <= (1 + TOLERANCE) * budget.value]
    if not fitting:
        raise _unsteady(budget, [search.shares[at] for at in confirmed])
    best = min(fitting, key=lambda at: abs(search.shares[at] - budget.value))
    return search.choice(best, confirmed[best])


def _filled(choice: Choice, allowed: list[list[int]], measure: Measure) -> Choice:
    """Make single groups wider, the one that would keep the least share first, while it pays."""
    budget, full, measured = choice.budget, set[int](), dict(choice.measured)
    widths = budget.widths
    for _ in range(FILLS):
        wider = [
            (step / steps[-1], group, step)
            for group, (steps, width) in enumerate(zip(allowed, widths))
            for step in steps[bisect(steps, width) :][:1]
            if group not in full
        ]
        if not wider or measured[widths] >= (1 - TOLERANCE / 2) * budget.value:
            break
        _, group, step = min(wider)
        tried = (*widths[:group], step, *widths[group + 1 :])
        measured[tried] = measure(tried).timing.bound(measure.target.cold).median
        if measured[tried] <= (1 + TOLERANCE / 2) * budget.value:
            widths = tried
        else:
            full.add(group)
    known = measure(widths)
    if not known.confirmed:
        known = measure.afresh(widths)
    measured[widths] = known.timing.bound(measure.target.cold).median
    found = replace(choice, budget=replace(budget, widths=widths), known=known, measured=measured)
    return found if found.share <= (1 + TOLERANCE) * budget.value else choice


@dataclass
class _Search:
    """What is known along the chain, whose points are counted from the least widths on.

    Attributes:
        budget: the latency budget.
        cost: of the groups.
        chain: the candidates.
        measure: the bench.
        shares: measured shares of the dense time by point.
        doubted: pairs of points that contradicted each other, and were both measured twice.
    """

    budget: Budget
    cost: CostModel
    chain: list[Widths]
    measure: Measure
    shares: dict[int, float] = field(default_factory=dict)
    doubted: set[tuple[int, int]] = field(default_factory=set)

    def ask(self, at: int, *, afresh: bool = False) -> float:
        """Measure the share at a point of the chain; once more if its neighbours contradict it."""
        known = self.measure.afresh(self.chain[at]) if afresh else self.measure(self.chain[at])
        self.shares[at] = known.timing.bound(self.measure.target.cold).median
        self._doubt(at)
        return self.shares[at]

    def _doubt(self, at: int) -> None:
        for other in list(self.shares):
            low, high = sorted((at, other))
            if low == high or (low, high) in self.doubted or not self._contradict(low, high):
                continue
            self.doubted.add((low, high))
            for point in (low, high):
                known = self.measure.afresh(self.chain[point])
                self.shares[point] = known.timing.bound(self.measure.target.cold).median

    def _contradict(self, low: int, high: int) -> bool:
        narrow, wide = (
            self.measure(self.chain[point]).timing.bound(self.measure.target.cold)
            for point in (low, high)
        )
        return narrow.low > wide.high

    def approach(self) -> None:
        """Measure where the model expects the budget, until it is as expected."""
        for _ in range(MEASUREMENTS):
            at = self.nearest()
            if at in self.shares:
                return
            if abs(self.ask(at) / self.budget.value - 1) <= CLOSE:
                return

    def nearest(self) -> int:
        """Find the point where the model is nearest to the budget, and not above its tolerance."""
        model = self._model()
        fitting = np.flatnonzero(model <= (1 + TOLERANCE / 2) * self.budget.value)
        if len(fitting) == 0:
            return 0
        return int(fitting[np.argmin(np.abs(model[fitting] - self.budget.value))])

    def _model(self) -> Floats:
        """Compute shares of the dense time at all points of the chain, rising; float64 [points]."""
        features = self._features
        points = [*sorted(self.shares), len(self.chain)]  # the last one is the dense network
        values = np.array([*(self.shares[point] for point in points[:-1]), 1.0])
        rows = np.vstack([features[points], math.sqrt(TRUST) * np.eye(len(PRIOR))])
        weights, _ = nnls(rows, np.concatenate([values, math.sqrt(TRUST) * np.array(PRIOR)]))
        expected: Floats = features @ weights
        rising = isotonic_regression(values).x
        known = expected[points]  # rises as well; ties would not be a function
        known = known + np.arange(len(known)) * 1e-12
        bent: Floats = np.interp(expected[:-1], known, rising)
        return bent

    @cached_property
    def _features(self) -> Floats:
        """1, and the shares of macs, params and channels; float64 [points + 1, 4].

        The last row is the dense network's.
        """
        cost, total = self.cost, sum(self.cost.sizes)
        return np.array(
            [
                (
                    1.0,
                    cost.macs(widths) / max(cost.dense_macs, 1),
                    cost.params(widths) / max(cost.dense_params, 1),
                    sum(widths) / total,
                )
                for widths in (*self.chain, cost.sizes)
            ]
        )

    def choice(self, at: int, known: Known) -> Choice:
        """Describe the chosen point of the chain, with its final measurement."""
        self.shares[at] = known.timing.bound(self.measure.target.cold).median
        slower = [pair for pair in sorted(self.doubted) if self._contradict(*pair)]
        return Choice(
            replace(self.budget, widths=self.chain[at]),
            self.measure.target,
            known,
            {self.chain[point]: share for point, share in sorted(self.shares.items())},
            tuple((self.chain[low], self.chain[high]) for low, high in slower),
        )


def _chain(allowed: list[list[int]]) -> list[Widths]:
    """List widths from the least to the widest, one group a step wider each time, all together."""
    widths = [steps[0] for steps in allowed]
    climbs = sorted(
        (step / steps[-1], group, step)
        for group, steps in enumerate(allowed)
        for _, step in itertools.pairwise(steps)
    )
    chain = [tuple(widths)]
    for _, group, step in climbs:
        widths[group] = step
        chain.append(tuple(widths))
    return chain


def _impossible(budget: Budget, least: float) -> BudgetError:
    return BudgetError(
        f"the budget {budget} cannot be met",
        why=f"with the smallest widths the network takes {least:.3f} of the dense one's time",
        do="raise the budget, or lower round_to",
    )


def _unsteady(budget: Budget, shares: list[float]) -> BudgetError:
    found = ", ".join(f"{share:.3f}" for share in shares)
    return BudgetError(
        f"no widths are known to meet the budget {budget}",
        why=f"measured afresh, those chosen took {found} of the dense network's time",
        do="end other programs on this machine, then measure anew with --remeasure",
    )
