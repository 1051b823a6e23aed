"""Magnitude: the channels with the largest weights execute. A control."""

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from fxprune.channels.graph import Layout
from fxprune.policies.base import Policy, State, mark_seen, unseen_last


@dataclass(frozen=True)
class Magnitude(Policy):
    """The norm of a channel's weights, which stands still while the channel does not execute."""

    keys: ClassVar[tuple[str, ...]] = ("magnitude",)

    @property
    def observes(self) -> Literal["magnitude"]:
        """The norm of each executed channel's weights, as in the prior."""
        return "magnitude"

    def start(self, layout: Layout, prior: Tensor, seed: int) -> State:
        """Add `magnitude`, float32 [N], which starts as the prior itself."""
        state = super().start(layout, prior, seed)
        state["magnitude"] = torch.where(torch.isfinite(prior), prior, 0).float()
        return state

    def observe(self, state: State, layout: Layout, selection: Tensor, saliency: Tensor) -> None:
        """Take the executed channels' new magnitudes."""
        del layout
        value = saliency.float()
        valid = torch.isfinite(value)
        old = state["magnitude"][selection]
        new = torch.where(valid, value, old)
        state["magnitude"].index_copy_(0, selection, new)
        mark_seen(state, selection, valid)

    def score(self, state: State, layout: Layout, explore: bool) -> Tensor:
        """Return the magnitude last measured."""
        del layout
        return state["magnitude"].clone() if explore else unseen_last(state["magnitude"], state)
