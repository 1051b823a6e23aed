"""A chain of convolutions as a cost model, without a network."""

import itertools

from fxprune.channels.cost import CostModel
from fxprune.channels.graph import Factor, Layout, Term

Case = tuple[Layout, CostModel]


def chain(sizes: tuple[int, ...], scales: tuple[int, ...] | None = None, pinned: int = 0) -> Case:
    """A chain of 3x3 convolutions from 3 channels to 10 classes, a group for each."""
    lengths = [Factor(3), *(Factor(0, ((g, 1),)) for g in range(len(sizes))), Factor(10)]
    pairs = list(itertools.pairwise(lengths))
    scales = scales or (1,) * len(pairs)
    macs = [Term(f"conv{i}", 9 * scales[i], pair) for i, pair in enumerate(pairs)]
    params = [Term(f"conv{i}.weight", 9, pair) for i, pair in enumerate(pairs)]
    fixed = (Term("pinned", pinned, ()),)
    return Layout(sizes), CostModel((*macs, *fixed), (*params, *fixed), sizes)
