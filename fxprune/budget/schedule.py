"""Schedules of the budget: how much of a network executes as its training goes on.

A schedule falls from all channels to the budget. Its text form is a name and options, such as
`cubic{begin=0.1,end=0.6}`. New widths mean new tensors, so it falls in a number of jumps.
"""

import abc
import bisect
import itertools
import math
from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from fxprune.errors import OptionError, brief
from fxprune.registry import add, from_text, imported, running


@dataclass(frozen=True)
class Schedule(abc.ABC):
    """Falls between two points of the run; the budget holds exactly from the second one on.

    Attributes:
        begin: share of the run after which it begins to fall.
        end: share of the run after which the budget holds.
        changes: into how many jumps the fall is divided.
    """

    keys: ClassVar[tuple[Hashable, ...]]

    begin: float = 0.0
    end: float = 0.5
    changes: int = 20

    def __post_init__(self) -> None:
        """Check the options."""
        if not 0 <= self.begin <= self.end <= 1:  # refuses nan too
            raise OptionError(
                f"a budget schedule cannot begin at {self.begin} and end at {self.end}",
                do="give shares of the run, 0 to 1, the end not before the beginning",
            )
        if not 1 <= self.changes <= 100:
            raise OptionError(
                f"a budget schedule cannot have {self.changes} changes",
                why="each change of the widths allocates the tensors anew",
                do="give 1 to 100",
            )

    @abc.abstractmethod
    def left(self, way: float) -> float:
        """Return how far above the budget it is, from 1 to 0, after the share `way` of the fall."""

    def _left(self, way: float) -> float:
        """Return what `left` does, if that is a share."""
        name = type(self).__name__
        with running(self, f"left() of the budget schedule {name!r}"):
            left: Any = self.left(way)
        if not isinstance(left, int | float) or not 0 <= left <= 1:  # refuses nan too
            raise OptionError(
                f"the budget schedule {name!r}: left({way:g}) is {brief(left)}",
                do="return a number from 1, at the beginning, to 0",
            )
        return left

    def plan(self, budget: float, steps: int) -> "StepSchedule":
        """Compute what executes in each step of a run.

        Args:
            budget: the share of the dense network that the budget allows.
            steps: optimiser steps of the run.
        """
        shares: dict[int, float] = {0: 1.0}
        for change in range(1, self.changes + 1):
            at = self.begin + (self.end - self.begin) * change / self.changes
            left = self._left(change / self.changes)
            shares[math.ceil(at * steps - 1e-9)] = budget + (1 - budget) * left
        shares[max(shares)] = budget
        return StepSchedule(tuple(sorted(shares)), tuple(shares[start] for start in sorted(shares)))


@dataclass(frozen=True)
class StepSchedule:
    """The share of the dense network that executes in each step of a run.

    Attributes:
        starts: the steps from which on another share executes, rising; the first is 0.
        shares: those shares, falling; the last is the budget's.
    """

    starts: tuple[int, ...]
    shares: tuple[float, ...]

    def __post_init__(self) -> None:
        """Check that the steps rise from 0, and that each has a share."""
        rising = all(one < two for one, two in itertools.pairwise(self.starts))
        if self.starts[:1] != (0,) or not rising or len(self.shares) != len(self.starts):
            raise OptionError(
                f"a schedule cannot have the shares {self.shares} from the steps {self.starts} on",
                do="give steps that rise from 0, and a share for each",
            )

    def share(self, step: int) -> float:
        """Return what executes in a step, counted from 0."""
        return self.shares[bisect.bisect_right(self.starts, step) - 1]


@dataclass(frozen=True)
class Constant(Schedule):
    """The budget from the first step on. Its options have no effect."""

    keys: ClassVar[tuple[Hashable, ...]] = ("constant",)

    def left(self, way: float) -> float:
        """Return 0."""
        del way
        return 0.0

    def plan(self, budget: float, steps: int) -> StepSchedule:
        """Return a single share."""
        del steps
        return StepSchedule((0,), (budget,))


@dataclass(frozen=True)
class Linear(Schedule):
    """Falls evenly."""

    keys: ClassVar[tuple[Hashable, ...]] = ("linear",)

    def left(self, way: float) -> float:
        """Return 1 - way."""
        return 1 - way


@dataclass(frozen=True)
class Cubic(Schedule):
    """Falls fast while much is superfluous, then ever slower.

    Zhu and Gupta, "To prune, or not to prune", arXiv 1710.01878, equation 1, with an initial
    sparsity of 0: s_t = s_f + (s_i - s_f) * (1 - (t - t_0) / (n * dt))^3.
    """

    keys: ClassVar[tuple[Hashable, ...]] = ("cubic",)

    def left(self, way: float) -> float:
        """Return (1 - way)^3."""
        return (1 - way) ** 3


KNOWN: Mapping[Hashable, type[Schedule]] = {cls.keys[0]: cls for cls in (Constant, Linear, Cubic)}


def parse(schedule: str | Schedule) -> Schedule:
    """Read a schedule's text form; a `Schedule` is taken as it is.

    Raises:
        OptionError: the name or an option is unknown or out of its range.

    >>> parse("cubic{end=0.6}")
    Cubic(begin=0.0, end=0.6, changes=20)
    """
    if isinstance(schedule, Schedule):
        return schedule
    known = dict(KNOWN)
    for own in imported(Schedule):  # type: ignore[type-abstract]
        add(own, known)
    return from_text(schedule, known, "budget schedule")
