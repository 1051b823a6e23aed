"""BN scale: the channels with the largest scale of their norm execute. A control.

The criterion of network slimming (Liu et al., ICCV 2017), without its L1 penalty.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from fxprune.channels.graph import Layout
from fxprune.policies.base import Policy, State, mark_seen, unseen_first, unseen_last


@dataclass(frozen=True)
class BnScale(Policy):
    """The absolute scale of the norm behind a channel. Unknown ones execute first."""

    keys: ClassVar[tuple[str, ...]] = ("bn_scale",)

    @property
    def observes(self) -> Literal["bn_scale"]:
        """The absolute scale of each executed channel's norm."""
        return "bn_scale"

    def start(self, layout: Layout, prior: Tensor, seed: int) -> State:
        """Add `bn_scale`, float32 [N]."""
        state = super().start(layout, prior, seed)
        state["bn_scale"] = torch.zeros_like(state["prior"])
        return state

    def observe(self, state: State, layout: Layout, selection: Tensor, saliency: Tensor) -> None:
        """Take the executed channels' new scales."""
        del layout
        value = saliency.float()
        valid = torch.isfinite(value)
        old = state["bn_scale"][selection]
        state["bn_scale"].index_copy_(0, selection, torch.where(valid, value, old))
        mark_seen(state, selection, valid)

    def score(self, state: State, layout: Layout, explore: bool) -> Tensor:
        """Return the scale last measured."""
        del layout
        order = unseen_first if explore else unseen_last
        return order(state["bn_scale"], state)
