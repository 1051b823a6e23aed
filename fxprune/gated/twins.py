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
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fxprune.bank.exchange import Selection


@dataclass(eq=False)
class Twin:
    """What ties a copy to its source.

    Attributes:
        source: the network that it is a copy of.
        sums: of its dense parameters when it was made, by which a change is noticed.
        at: the source's selection that it has taken up.
        still: what it evaluates as long as nothing is written to it; None before it first moves.
    """

    source: "weakref.ref[Any]"
    sums: dict[str, float]
    at: Selection | None = None
    still: Selection | None = None

    @classmethod
    def of(cls, source: Any, dense: Mapping[str, Tensor]) -> "Twin":
        """Tie a copy that has these dense parameters, by name, to its source."""
        return cls(weakref.ref(source), _sums(dense))

    def is_written(self, dense: Mapping[str, Tensor]) -> bool:
        """Tell whether the copy's dense parameters, by name, are others than when it was made."""
        return _sums(dense) != self.sums


@torch.no_grad()
def _sums(dense: Mapping[str, Tensor]) -> dict[str, float]:
    return {name: float(tensor.double().sum()) for name, tensor in dense.items()}
