"""What each channel group costs in time: the network is timed with half of the group's channels."""

from collections.abc import Callable
from dataclasses import dataclass

from fxprune.budget.budget import Budget
from fxprune.budget.widths import allowed_widths
from fxprune.channels.graph import ChannelGraph
from fxprune.export.bench import Known
from fxprune.export.latency import Measure


@dataclass(frozen=True)
class GroupLatency:
    """The time that removing about half of a group's channels saves.

    Attributes:
        name: of the group.
        width: its channels that were left; all others had theirs.
        known: the time of that network beside the dense one's.
        cold: whether a call right after another network's counts, not one in a loop.
    """

    name: str
    width: int
    known: Known
    cold: bool

    @property
    def saved(self) -> float:
        """The seconds that are saved; below 0 where it is slower."""
        dense = self.known.timing.dense[self.cold]
        return dense * (1 - self.known.timing.bound(self.cold).median)

    @property
    def error(self) -> float:
        """Half of the 95 % interval of what is saved, as a share of the dense network's time."""
        quotient = self.known.timing.bound(self.cold)
        return quotient.median * quotient.error


def measure_groups(
    graph: ChannelGraph, measure: Measure, begin: Callable[[str], None] = lambda _: None
) -> list[GroupLatency]:
    """Time a network with half of the channels of one group after the other.

    Args:
        graph: its channel groups.
        measure: the bench.
        begin: called with the group that is next.

    Raises:
        BudgetError: the machine is too busy.
    """
    sizes, found = graph.layout.sizes, []
    for number, allowed in enumerate(allowed_widths(Budget("keep", 0.5), graph.layout)):
        name, size = graph.groups[number].name, sizes[number]
        half = min(allowed, key=lambda width: abs(2 * width - size))
        begin(f"group {number + 1} of {len(sizes)}, {name}")
        if half < size:
            known = measure((*sizes[:number], half, *sizes[number + 1 :]))
            found.append(GroupLatency(name, half, known, measure.target.cold))
    return found
