"""What a training costs: the forward macs of its steps, planned beforehand.

The measure is the macs of one example in the forward pass, summed over the training steps and
times the examples of a batch. Forward and backward together cost about three times as much, of a
dense and of a narrow network alike, so the shares are the same. Evaluation, which the dense run
has as well, and the measuring of the batch norms at the end are not in it.

Steps that GradScaler skips (amp in float16) prolong a policy's warm-up and the fall of the budget,
which is not planned.
"""

import dataclasses
import math
from dataclasses import dataclass

from fxprune.budget.schedule import Schedule, StepSchedule
from fxprune.budget.widths import uniform_widths
from fxprune.errors import OptionError
from fxprune.gated.module import GatedModule
from fxprune.trainer.options import TrainOptions


@dataclass(frozen=True)
class RunPlan:
    """Which share of a network executes in each step of a run, and what that costs.

    Attributes:
        by_step: the share of each step.
        spans: (first step, macs of one example in each step from there on), rising; for a policy
            that allocates the widths by its scores the macs are the most that it may spend. None
            where they cannot be known beforehand.
        steps: of the run.
    """

    by_step: StepSchedule
    spans: tuple[tuple[int, int], ...] | None
    steps: int

    def macs(self, steps: int) -> int | None:
        """Count macs of one example, summed over the first `steps` steps; None if not known."""
        return None if self.spans is None else _sum(self.spans, steps)


def plan_run(gated: GatedModule, options: TrainOptions, steps: int) -> RunPlan:
    """Plan a run; if it may cost only a share of the dense run, by how long the budget falls.

    With `options.train_macs` the fall of the schedule is stretched or compressed, its beginning
    in proportion, until the run costs as much of that share as it can: at most so long that it
    ends where the network settles, at least not at all.

    Args:
        gated: the network.
        options: how it is trained.
        steps: of the whole run.

    Raises:
        OptionError: the run costs more with the budget from its first step on, or what it costs
            cannot be known.
    """
    price = _Price(gated, options, steps)
    falls = gated.settings.policy.falls
    schedule = options.schedule_of_budget(falls)
    if options.train_macs is None:
        return price.of(schedule)
    limit = options.train_macs * gated.cost.dense_macs * steps
    longest = 1 - options.settled_share(falls)

    def stretched(part: float) -> RunPlan:
        start = schedule.begin / schedule.end if schedule.end > 0 else 0.0
        end = part * longest
        return price.of(dataclasses.replace(schedule, begin=start * end, end=end))

    def fits(plan: RunPlan) -> bool:
        macs = plan.macs(steps)
        if macs is None:
            raise _unknown(gated)
        return macs <= limit

    least, most = stretched(0.0), stretched(1.0)
    if not fits(least):
        raise _impossible(gated, options, least)
    if fits(most):
        return most
    low, high = 0.0, 1.0
    while (high - low) * steps > 0.01:
        middle = (low + high) / 2
        if fits(stretched(middle)):
            low = middle
        else:
            high = middle
    return stretched(low)


class _Price:
    """The macs of one example at each share, worked out once."""

    def __init__(self, gated: GatedModule, options: TrainOptions, steps: int) -> None:
        self.gated, self.steps = gated, steps
        self.settles_at = options.settles_at(steps, gated.settings.policy.falls)
        limited = gated.settings.budget.value == 1  # limits of layers hold at the budget itself
        self.known: dict[float, int | None] = {} if limited else {1.0: gated.cost.dense_macs}

    def of(self, schedule: Schedule) -> RunPlan:
        budget = self.gated.settings.budget.value
        by_step = schedule.plan(budget, self.steps)
        warm = min(self.gated.settings.policy.warmup, self.settles_at)
        shares = {0: 1.0} if warm else {}
        shares |= {
            start: by_step.share(start) for start in (*by_step.starts, warm) if start >= warm
        }
        if self.settles_at < self.steps:
            shares = {start: s for start, s in shares.items() if start < self.settles_at}
            shares[self.settles_at] = budget
        spans = []
        for start in sorted(shares):
            macs = self.at(shares[start])
            if macs is None:
                return RunPlan(by_step, None, self.steps)
            spans.append((start, macs))
        return RunPlan(by_step, tuple(spans), self.steps)

    def at(self, share: float) -> int | None:
        if share not in self.known:
            self.known[share] = self._at(share)
        return self.known[share]

    def _at(self, share: float) -> int | None:
        gated, budget = self.gated, self.gated.settings.budget
        budget = budget.at(share, gated.cost.sizes)
        if not gated.settings.reallocate:
            return gated.cost.macs(uniform_widths(budget, gated.channels.layout, gated.cost))
        return int(share * gated.cost.dense_macs + 1e-6) if budget.kind == "macs" else None


def _sum(spans: tuple[tuple[int, int], ...], steps: int) -> int:
    ends = [start for start, _ in spans[1:]] + [max(steps, spans[-1][0])]
    return sum(
        max(min(end, steps) - start, 0) * macs
        for (start, macs), end in zip(spans, ends, strict=True)
    )


def _unknown(gated: GatedModule) -> OptionError:
    return OptionError(
        "the macs of the run cannot be planned",
        why=f"the policy allocates the widths by what it learns, and the budget "
        f"{gated.settings.budget} does not limit their macs",
        do="instrument with a budget macs=…, or with the policy's option reallocate=0",
    )


def _impossible(gated: GatedModule, options: TrainOptions, least: RunPlan) -> OptionError:
    steps, dense = least.steps, gated.cost.dense_macs
    needed = math.ceil((least.macs(steps) or 0) / (dense * steps) * 1e4) / 1e4
    warmup = gated.settings.policy.warmup
    warm = f", after {warmup} steps of all channels for the policy to warm up," if warmup else ""
    return OptionError(
        f"the run cannot cost {options.train_macs} of the dense run's macs",
        why=f"with the budget {gated.settings.budget} from the beginning{warm} it costs {needed:g}",
        do=f"give --train-macs {needed:g} or more, or instrument with a smaller budget",
    )
