"""Balance: widths follow marginal saliency at a constant cost, channels come in a fixed order.

Each group executes its first channels, in the order of their weights' magnitudes at the start. So
channels are hardly exchanged: a selection that keeps changing costs more accuracy than choosing
channels well gains (results/appendix.md). Only the widths are learnt. Every `reallocate` steps the
budget goes to where one more channel is worth most for its price: an executing channel is worth
its mean saliency, and the next ones, of which nothing is known, as much as the least of their
group. A group grows by about the share `grow` at a time, or by a rounding step; what it takes,
others give up. Groups start at uniform widths, and no step costs more than the budget: the trainer
gives it no schedule from all channels down.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from fxprune.channels.graph import Layout
from fxprune.policies.base import (
    Policy,
    State,
    Taylor,
    check_choice,
    check_range,
    mark_seen,
    unseen_last,
)
from fxprune.policies.rows import cell_of
from fxprune.policies.scale import per_sum
from fxprune.policies.select import top

RESTING = 1e-6
"""What a channel that may not enter yet is worth, as a share of the least of its group.

It is above 0, so that the mean of a rounding step is worth what those of its channels are that may
enter, and so that what is left of the budget is spent.
"""


@dataclass(frozen=True)
class Balance(Policy):
    """Decayed means of saliency, which say what the positions of a group are worth.

    Attributes:
        decay: what is left of an observation's weight after another one.
        grow: by which share of its width a group may grow at a time, rounded up.
        reallocate: steps between global allocations of the widths.
        saliency: form of the Taylor saliency.
    """

    keys: ClassVar[tuple[str, ...]] = ("balance",)

    decay: float = 0.99
    grow: float = 0.15
    reallocate: int = 100
    saliency: Taylor = "batch"

    def __post_init__(self) -> None:
        """Check the options."""
        check_range(self, "decay", 0, 1)
        check_range(self, "grow", 0, 1e9)
        check_range(self, "reallocate", 1, 1e9)
        check_choice(self, "saliency", Taylor)

    @property
    def observes(self) -> Taylor:
        """The chosen form of the Taylor saliency."""
        return self.saliency

    @property
    def falls(self) -> bool:
        """False: scores choose the widths, not the channels, so a fall from all does not pay."""
        return False

    def start(self, layout: Layout, prior: Tensor, seed: int) -> State:
        """Add `worth`, `weight`, float32 [N], and `last`, int64 [N]: when it was observed last."""
        state = super().start(layout, prior, seed)
        state["worth"] = torch.zeros_like(state["prior"])
        state["weight"] = torch.zeros_like(state["prior"])
        state["last"] = torch.zeros_like(state["prior"], dtype=torch.int64)
        return state

    def observe(self, state: State, layout: Layout, selection: Tensor, saliency: Tensor) -> None:
        """Add to the discounted means of the executed channels."""
        value, valid = per_sum(saliency, selection, layout)
        if not layout.total:
            return
        for name, new in (("worth", value), ("weight", torch.ones_like(value))):
            old = state[name][selection]
            state[name].index_copy_(0, selection, torch.where(valid, self.decay * old + new, old))
        last = state["last"]
        last.index_copy_(0, selection, torch.where(valid, last.amax() + 1, last[selection]))
        mark_seen(state, selection, valid)

    def score(self, state: State, layout: Layout, explore: bool) -> Tensor:
        """Return the worth of each channel in its group.

        The channels of a group are in a fixed order; its first position has the largest mean
        saliency of those that execute, and so on down. A group of 6 that executes 3, grow 0.3:

            means of the executing       9 7 4, in the order of their size
            positions that may enter     1 more, ceil(3 * 1.3) = 4; worth the least: 4
            the others                   4 * RESTING
            worths by position           9 7 4 4 0.000004 0.000004

        Of equal worths the earlier position's is made a millionth larger, so that a group's widths
        grow from the front.
        """
        rows, columns = len(layout.sizes), max(layout.sizes, default=0)
        cells = cell_of(layout, state["prior"].device)
        newest = state["last"].amax() if layout.total else 0
        executing = state["seen"] & (state["last"] == newest)
        mean = state["worth"] / state["weight"].clamp_min(1e-30)
        table = mean.new_full((rows * columns,), -1.0)
        table.index_copy_(0, cells, torch.where(executing, mean, -1.0))
        worths = table.view(rows, columns).sort(dim=1, descending=True).values
        width = (worths >= 0).sum(dim=1, keepdim=True)
        least = worths.gather(1, (width - 1).clamp_min(0)) if columns else worths
        position = torch.arange(columns, device=cells.device)
        near = (position < (width * (1 + self.grow)).ceil()) & explore
        resting = least.clamp_min(0) * torch.where(near, 1.0, RESTING)
        curve = torch.where(worths >= 0, worths, resting)
        curve = (curve + 1e-12) * (1 - 1e-6 * position)  # the earlier of equals first
        order = top(state["prior"], layout, layout.sizes)
        score = torch.empty_like(mean).index_copy_(0, order, curve.flatten()[cells].to(mean))
        return score if explore else unseen_last(score, state)
