"""Paired timing: the time of one network as a share of another one's.

The speed of a machine drifts by more than what is to be measured. So both networks run in one
process, in turns, and every round of turns gives a quotient of its own; the median of the
quotients is the answer, with their quartiles (duet benchmarking, arXiv 2001.05811).

A turn is a block of calls. Its first call finds the caches full of the other network's weights:
it is *cold*, as for a server with several networks. The calls in the second half of the block
are *hot*, as in a loop that does nothing else. Those in between belong to neither: of ShuffleNetV2
(29 MB) and a compact form of it (13 MB), the quotient was .44 after one call, .42 after five, .40
after ten and .37 after forty, for it takes that long until all of the smaller one's weights are
in the caches.

One thread is timed by the processor time of that thread, which other programs do not add to.
Several threads have to be timed by the clock on the wall, and that says something only while
the cores are theirs: rounds in which other programs took part of them do not count.
"""

import math
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import median, quantiles
from typing import Any

from fxprune.errors import BudgetError

Call = Callable[[], object]

ROUNDS = 11
"""The fewest rounds: below that their quartiles say little."""

BLOCK = 0.1  # seconds of a turn
CALLS = (9, 100)  # the fewest and the most of a turn
SLOW, SLOW_CALLS = 0.2, 3  # seconds of a call from which on so few are enough
QUIET = 0.015  # the largest error of a quotient that is known well
STARVED = 5
FOREIGN = 0.15  # of a core, that other programs may take in a round of several threads


@dataclass(frozen=True)
class Effort:
    """How long two networks are timed.

    Attributes:
        precision: it ends when the error of the quotient is at most this share of it.
        noisy: it is refused if the error is still more than this when patience ends, or if other
            programs use the cores; infinite to have a figure in any case.
        patience: seconds after which it ends: of the processor where that is the clock, so that a
            busy machine is measured for longer, but not for more than `STARVED` times as long.
    """

    precision: float = 0.01
    noisy: float = 0.03
    patience: float = 15.0


USUAL = Effort(noisy=0.1)


@dataclass(frozen=True)
class Quotient:
    """The quotients of all rounds, in short.

    Attributes:
        median: the middle one.
        low: the lower quartile.
        high: the upper quartile.
        rounds: how many there were.
    """

    median: float
    low: float
    high: float
    rounds: int

    @staticmethod
    def of(values: Sequence[float]) -> "Quotient":
        """Sum up the quotients of two rounds or more."""
        low, middle, high = quantiles(values, n=4, method="inclusive")
        return Quotient(middle, low, high, len(values))

    @property
    def error(self) -> float:
        """Half of the median's 95 % interval, as a share of the median.

        1.57 interquartile ranges over the root of the rounds (McGill, Tukey and Larsen,
        "Variations of box plots", 1978).
        """
        return 1.57 * (self.high - self.low) / math.sqrt(self.rounds) / self.median


@dataclass(frozen=True)
class Timing:
    """How long a network takes beside the dense one.

    Attributes:
        hot: its quotient in a loop.
        cold: its quotient right after the other network ran.
        dense: median seconds of a call of the dense network, hot and cold.
        compact: the same of the network.
        threads: of ONNX Runtime; 0 where a command of the user's measured.
        quiet: whether the machine let the quotient that counts be known well.
    """

    hot: Quotient
    cold: Quotient
    dense: tuple[float, float]
    compact: tuple[float, float]
    threads: int
    quiet: bool

    def bound(self, cold: bool) -> Quotient:
        """Return the quotient that a budget binds."""
        return self.cold if cold else self.hot

    def to_json(self) -> dict[str, Any]:
        """Convert to plain values; `from_json` reads them."""
        return asdict(self)

    @staticmethod
    def from_json(value: Any) -> "Timing":
        """Read what `to_json` gave.

        Raises:
            TypeError, KeyError, ValueError: it is something else.
        """
        pairs = [tuple(map(float, value[name])) for name in ("dense", "compact")]
        quotients = [Quotient(**value[name]) for name in ("hot", "cold")]
        numbers = [number for q in quotients for number in (q.low, q.median, q.high)]
        if not all(0 < float(number) < math.inf for number in [*numbers, *pairs[0], *pairs[1]]):
            raise ValueError("a time is not above 0")
        (dense_hot, dense_cold), (hot, cold) = pairs
        times = (dense_hot, dense_cold), (hot, cold)
        return Timing(
            quotients[0], quotients[1], *times, int(value["threads"]), bool(value["quiet"])
        )


def compare(
    dense: Call,
    compact: Call,
    *,
    threads: int,
    cold: bool = False,
    effort: Effort = USUAL,
    progress: Callable[[str], None] = lambda _: None,
) -> Timing:
    """Time two networks in turns until their quotient is known well enough.

    Args:
        dense: runs the dense network once.
        compact: runs the other one once.
        threads: in which both compute.
        cold: the cold quotient has to be known well enough, not the hot one.
        effort: how well, and for how long.
        progress: called with how far it is, after each round.

    Raises:
        BudgetError: the machine is too busy.
    """
    clock = time.thread_time if threads == 1 else time.perf_counter
    turns = [_Turn(call, clock) for call in (dense, compact)]
    rounds: list[list[tuple[float, float]]] = []
    tried, disturbed = 0, 0
    began, began_wall = clock(), time.monotonic()
    while True:
        foreign = _Foreign()
        times = [turn() for turn in turns]
        tried += 1
        alone = threads == 1 or foreign.cores() <= max(FOREIGN, _cores() - threads)
        if alone or effort.noisy == math.inf:
            rounds.append(times)
        if not alone:
            disturbed += 1
        waited = max(clock() - began, (time.monotonic() - began_wall) / STARVED)
        over = waited > effort.patience
        if len(rounds) >= ROUNDS:
            known = _timing(rounds, threads, quiet=False)
            error = known.bound(cold).error
            progress(f"{len(rounds)} rounds, {100 * known.bound(cold).median:.1f} % of dense")
            if error <= effort.precision or (over and error <= effort.noisy):
                quiet = error <= QUIET and disturbed < tried / 2
                return replace(known, quiet=quiet)
        if over and tried >= 2 * ROUNDS:
            raise _busy(threads, rounds, tried, cold)


class _Turn:
    """A network's block of calls."""

    def __init__(self, call: Call, clock: Callable[[], float]) -> None:
        self.call, self.clock = call, clock
        once = min(self._timed() for _ in range(3))
        fewest, most = CALLS
        self.calls = min(max(int(BLOCK / once), fewest if once < SLOW else SLOW_CALLS), most)

    def __call__(self) -> tuple[float, float]:
        """Time a network: median seconds of hot calls, and seconds of the cold one before."""
        cold, *others = (self._timed() for _ in range(self.calls))
        return median(others[len(others) // 2 :]), cold

    def _timed(self) -> float:
        began = self.clock()
        self.call()
        return max(self.clock() - began, 1e-9)


class _Foreign:
    """How many cores other programs have used since this was made (Linux; elsewhere none)."""

    def __init__(self) -> None:
        self.wall, self.busy, self.own = time.monotonic(), busy_seconds(), time.process_time()

    def cores(self) -> float:
        """Count the cores that were busy, on average."""
        own = time.process_time() - self.own
        wall = time.monotonic() - self.wall
        return max(busy_seconds() - self.busy - own, 0.0) / max(wall, 1e-9)


def busy_seconds() -> float:
    """Read the seconds that all cores were busy, or taken from this virtual machine."""
    try:
        fields = Path("/proc/stat").read_text().split(maxsplit=9)[1:9]
    except OSError:
        return 0.0
    user, nice, system, _idle, _waiting, irq, soft_irq, stolen = map(int, fields)
    ticks: int = os.sysconf("SC_CLK_TCK")
    return (user + nice + system + irq + soft_irq + stolen) / ticks


def _cores() -> int:
    return os.cpu_count() or 1


def _timing(
    rounds: Sequence[Sequence[tuple[float, float]]], threads: int, *, quiet: bool
) -> Timing:
    dense, compact = ([times[side] for times in rounds] for side in (0, 1))
    hot, cold = (
        Quotient.of([ours[kind] / theirs[kind] for ours, theirs in zip(compact, dense)])
        for kind in (0, 1)
    )
    seconds = [
        (median(hot for hot, _ in times), median(cold for _, cold in times))
        for times in (dense, compact)
    ]
    return Timing(hot, cold, seconds[0], seconds[1], threads, quiet)


def _busy(
    threads: int, rounds: Sequence[Sequence[tuple[float, float]]], tried: int, cold: bool
) -> BudgetError:
    if len(rounds) < ROUNDS:
        why = (
            f"in {tried - len(rounds)} of {tried} rounds other programs used the cores that "
            f"{threads} threads need"
        )
    else:
        found = _timing(rounds, threads, quiet=False).bound(cold)
        why = (
            f"after {len(rounds)} rounds the middle half of the quotients still lies between "
            f"{100 * found.low:.0f} and {100 * found.high:.0f} % of the dense network's time"
        )
    return BudgetError(
        "the latency cannot be measured on this machine now",
        why=why,
        do="let the machine rest"
        + (", give --threads 1, which is timed by the processor" if threads > 1 else "")
        + ", or a budget that needs no clock, such as macs=0.5",
    )
