"""Twins: deep copies of a gated network, of which some hold an average.

Most averages (Lightning's StochasticWeightAveraging, ignite's EMAHandler, YOLO's ModelEMA, a loop
of one's own) are a deep copy whose tensors are averaged with the network's, slot by slot. A copy
cannot know what it is for. So each one executes the channels that its source does, in the same
slots, which changes none of its values: a copy that is only kept has the same dense tensors, and
evaluates as when it was made. One that was written to is an average, and evaluates the selection
that its source would export. A copy with an optimiser, gradients or selections of its own is
neither, and goes its own way.
"""

import weakref
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from fxprune.bank.exchange import Chosen

if TYPE_CHECKING:
    from fxprune.gated.module import GatedModule


@dataclass(eq=False)
class Twin:
    """What ties a copy to its source.

    Attributes:
        source: the network that it is a copy of.
        sums: of its dense parameters when it was made, by which a change is noticed.
        at: the source's selection that it has taken up.
        still: what it evaluates as long as nothing is written to it; None before it first moves.
    """

    source: "weakref.ref[GatedModule]"
    sums: dict[str, float]
    at: Chosen | None
    still: Chosen | None = None

    @classmethod
    def of(cls, copy: "GatedModule", source: "GatedModule | None") -> "Twin | None":
        """Ties a copy to its source as it is now."""
        if source is None:
            return None
        return cls(weakref.ref(source), _sums(copy), None)

    def keep(self, copy: "GatedModule") -> None:
        """Remembers what the copy evaluates, before it moves for the first time."""
        if self.still is None and self.source() is not None:
            self.still = copy.best()

    def shows(self, copy: "GatedModule") -> Chosen | None:
        """What a copy evaluates that has moved; None where that is its policy's affair."""
        if self.still is None:
            return None
        source = self.source()
        if source is None or _sums(copy) == self.sums:
            return self.still.to(copy._selection.channels.device)
        copy._take_over(source)
        return None


@torch.no_grad()
def _sums(network: "GatedModule") -> dict[str, float]:
    parameters = {name for name, _ in network.named_parameters()}
    dense = network.dense_tensors()
    return {name: float(dense[name].double().sum()) for name in sorted(parameters)}
