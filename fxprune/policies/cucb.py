"""CUCB: every channel is an arm; play the set that could be best.

The combinatorial upper confidence bound of Chen, Wang and Yuan (ICML 2013, algorithm 1), in the
manner of Spasov and Liò (arXiv 1905.06435), who do not publish their reward and constants. Ours:

* reward of a played arm: its Taylor saliency as a share of the largest of its group, in [0, 1];
* each arm i keeps its plays T_i and mean reward mu_i; arms that are not played keep theirs;
* in round t the arms with the largest mu_i + c * sqrt(3 ln t / (2 T_i)) of each group are played,
  those that were never played first. The paper's c is 1, which swaps a third of the channels in
  every step.

With `discount` d < 1 plays, rounds and reward sums are multiplied by d in each round (Garivier and
Moulines, ALT 2011, discounted UCB): a mean follows its moving target, and long unplayed arms
are tried again.
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
    unseen_first,
    unseen_last,
)
from fxprune.policies.scale import per_group_max


@dataclass(frozen=True)
class Cucb(Policy):
    """Combinatorial upper confidence bound.

    Attributes:
        c: weight of the exploration bonus; 1 is Chen, Wang and Yuan's.
        discount: what a past round counts for in the next; 1 gives the plain mean.
        saliency: form of the Taylor saliency.
        warmup: steps at the start in which all channels execute.
    """

    keys: ClassVar[tuple[str, ...]] = ("cucb",)

    c: float = 0.1
    discount: float = 1.0
    saliency: Taylor = "batch"
    warmup: int = 0

    def __post_init__(self) -> None:
        """Check the options."""
        check_range(self, "c", 0, 1e6)
        check_range(self, "discount", 0.5, 1)
        check_choice(self, "saliency", Taylor)
        check_range(self, "warmup", 0, 1e9)

    @property
    def observes(self) -> Taylor:
        """The chosen form of the Taylor saliency."""
        return self.saliency

    def start(self, layout: Layout, prior: Tensor, seed: int) -> State:
        """Add `mean` and `plays`, float32 [N], and `rounds`, float32 []."""
        state = super().start(layout, prior, seed)
        state["mean"] = torch.zeros_like(state["prior"])
        state["plays"] = torch.zeros_like(state["prior"])
        state["rounds"] = state["prior"].new_zeros(())
        return state

    def observe(self, state: State, layout: Layout, selection: Tensor, saliency: Tensor) -> None:
        """Count the play and move the mean of each executed channel."""
        reward, valid = per_group_max(saliency, selection, layout)
        if self.discount < 1:
            state["plays"].mul_(self.discount)
            state["rounds"].mul_(self.discount)
        mean = state["mean"][selection]
        plays = state["plays"][selection] + valid
        moved = torch.where(valid, mean + (reward - mean) / plays, mean)
        state["mean"].index_copy_(0, selection, moved)
        state["plays"].index_copy_(0, selection, plays)
        state["rounds"].add_(1)
        mark_seen(state, selection, valid)

    def score(self, state: State, layout: Layout, explore: bool) -> Tensor:
        """Compute the upper confidence bound, or without exploration the mean reward."""
        del layout
        if not explore:
            return unseen_last(state["mean"], state)
        log_round = (state["rounds"] + 1).log()
        plays = state["plays"].clamp_min(1e-12)  # discounted plays may vanish
        bonus = self.c * (1.5 * log_round / plays).sqrt()
        return unseen_first(state["mean"] + bonus, state)
