"""Random: a fresh draw at every selection. A control."""

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from fxprune.channels.graph import Layout
from fxprune.policies.base import Policy, State, mark_seen, unseen_last
from fxprune.policies.draw import draw


@dataclass(frozen=True)
class Random(Policy):
    """Every channel is as likely as every other in its group. Export takes the draw of step 0."""

    keys: ClassVar[tuple[str, ...]] = ("random",)

    @property
    def observes(self) -> Literal["none"]:
        """Nothing."""
        return "none"

    def start(self, layout: Layout, prior: Tensor, seed: int) -> State:
        """Add `seed` and `step`, int64 []."""
        state = super().start(layout, prior, seed)
        state["seed"] = torch.tensor(seed % 2**32, dtype=torch.int64, device=prior.device)
        state["step"] = torch.zeros_like(state["seed"])
        return state

    def observe(self, state: State, layout: Layout, selection: Tensor, saliency: Tensor) -> None:
        """Count the step."""
        del layout
        state["step"].add_(1)
        mark_seen(state, selection, torch.isfinite(saliency))

    def score(self, state: State, layout: Layout, explore: bool) -> Tensor:
        """Draw this step's numbers from [0, 1), or without exploration those of step 0."""
        channels = torch.arange(layout.total, device=state["seed"].device)
        if explore:
            return draw(state["seed"], state["step"], channels)
        return unseen_last(draw(state["seed"], torch.zeros_like(state["step"]), channels), state)
