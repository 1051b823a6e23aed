"""The link of a deep copy to the gated network that it is a copy of: it may hold an average.

Most averages (Lightning's StochasticWeightAveraging, ignite's EMAHandler, YOLO's ModelEMA, a loop
of one's own) are a deep copy whose tensors are averaged with the network's, slot by slot. A copy
cannot know what it is for. So each copy executes its source's channels in the same slots, which
changes none of its dense values. A copy that is never written to evaluates as when it was made. A
copy that was written to is an average, and evaluates the selection that its source would export. A
copy with an optimiser, gradients or a selection of its own is neither: it no longer follows its
source. One to which an optimiser is attached before anything was written to it begins at the
selection that it had, whatever its source has trained since.
"""

import weakref
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fxprune.bank.exchange import Selection


@dataclass(eq=False)
class Link:
    """The link between a copy and its source.

    Attributes:
        source: the network that it is a copy of.
        sums: of each of its dense parameters when it was made; other sums mean that it was
            written to.
        began: the selection that it had when it was made.
        at: the source's selection that it has taken up.
        own_best: the selection that it evaluates as long as nothing is written to it; None until
            the source changes its selection.
        is_mixed: whether it was found to be averaged with a network that trained apart.
    """

    source: "weakref.ref[Any]"
    sums: dict[str, float]
    began: Selection
    at: Selection | None = None
    own_best: Selection | None = None
    is_mixed: bool = False

    @classmethod
    def of(cls, source: Any, dense: Mapping[str, Tensor], began: Selection) -> "Link":
        """Tie a copy that has these dense parameters, by name, and a selection, to its source."""
        return cls(weakref.ref(source), sums_of(dense), began)

    def is_written(self, dense: Mapping[str, Tensor]) -> bool:
        """Tell whether the copy's dense parameters, by name, are others than when it was made."""
        return sums_of(dense) != self.sums


@torch.no_grad()
def sums_of(dense: Mapping[str, Tensor]) -> dict[str, float]:
    """Return the sum of each tensor, by which it is noticed when one is written to."""
    return {name: float(tensor.double().sum()) for name, tensor in dense.items()}
