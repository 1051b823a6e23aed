"""Utility: dynamic channel propagation (Shen, Li, Zhao, Zhang and Zhou, arXiv 2007.01486).

Executed channels: U <- lambda * U + v, v the saliency made comparable between groups. Utilities
of resting channels do not decay, so a channel comes back when executing ones have fallen below it.
The highest utilities of the whole network execute: one threshold over all groups, which allocates
the widths.

By default v is a channel's share of the saliency of the whole network, lambda is 0.99, and the
widths, for which utilities are weighed against what channels cost (`fxprune.budget.widths`), are
allocated anew every `reallocate` steps, since new widths mean new tensors; in between each group's
best k execute. Groups keep the budget's floor, without which a layer can vanish. How that trains
against other policies is in results/appendix.md.

The published code's own form is
`utility{decay=0.6,scale=max,saliency=sample,reallocate=1,warmup=W}` with a budget that counts
channels, `keep=K,floor=0`; W are the steps of 10 epochs. There v is divided by the largest of its
group, which starved the early layers when measured, lambda grows by 0.1 at each cut of the learning
rate, and widths are allocated in every step; it trains with `--budget-schedule constant --settle 0
--schedule step`. With the four cuts of its ResNets lambda ends at 1; of VGG's three the last one
adds 0.2 there and 0.1 here. Groups keep at least a channel here, and residual streams are gated.

A cut is a rate of half of the highest since the last cut, or lower. So a cosine makes cuts as well,
which takes the default lambda to 1 when half of the rate is gone.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal

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
from fxprune.policies.scale import per_group_l2, per_group_max, per_sum

Scale = Literal["sum", "l2", "max"]
SCALES = {"sum": per_sum, "l2": per_group_l2, "max": per_group_max}


@dataclass(frozen=True)
class Utility(Policy):
    """Decayed sums of saliency, with widths allocated over the whole network.

    Attributes:
        decay: lambda before the first cut of the learning rate.
        decay_step: what each cut adds to lambda, up to 1.
        scale: what saliencies are divided by: their sum over all groups, the L2 norm of their
            group, or the largest of it.
        saliency: form of the Taylor saliency.
        warmup: steps at the start in which all channels execute.
        reallocate: steps between global allocations of the widths; 0 for uniform widths.
    """

    keys: ClassVar[tuple[str, ...]] = ("utility",)

    decay: float = 0.99
    decay_step: float = 0.1
    scale: Scale = "sum"
    saliency: Taylor = "batch"
    warmup: int = 20
    reallocate: int = 100

    def __post_init__(self) -> None:
        """Check the options."""
        check_range(self, "decay", 0, 1)
        check_range(self, "decay_step", 0, 1)
        check_choice(self, "scale", Scale)
        check_choice(self, "saliency", Taylor)
        check_range(self, "warmup", 0, 1e9)
        check_range(self, "reallocate", 0, 1e9)

    @property
    def observes(self) -> Taylor:
        """The chosen form of the Taylor saliency."""
        return self.saliency

    def start(self, layout: Layout, prior: Tensor, seed: int) -> State:
        """Add `utility`, float32 [N], and `milestones`, int64 []."""
        state = super().start(layout, prior, seed)
        state["utility"] = torch.zeros_like(state["prior"])
        state["milestones"] = torch.zeros((), dtype=torch.int64, device=prior.device)
        return state

    def observe(self, state: State, layout: Layout, selection: Tensor, saliency: Tensor) -> None:
        """Decay the utility of the executed channels and add their saliency."""
        value, valid = SCALES[self.scale](saliency, selection, layout)
        decay = (self.decay + self.decay_step * state["milestones"]).clamp_max(1.0)
        old = state["utility"][selection]
        state["utility"].index_copy_(0, selection, torch.where(valid, decay * old + value, old))
        mark_seen(state, selection, valid)

    def score(self, state: State, layout: Layout, explore: bool) -> Tensor:
        """Return the utility; there is no bonus for channels that are little known."""
        del layout, explore
        return unseen_last(state["utility"], state)

    def milestone(self, state: State) -> None:
        """Raise lambda by `decay_step`."""
        state["milestones"].add_(1)
