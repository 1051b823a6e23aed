"""Fixed: the first selection stays. The control that every other policy has to beat."""

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from fxprune.channels.graph import Layout
from fxprune.policies.base import Policy, State, check_choice, mark_seen
from fxprune.policies.draw import draw

Choice = Literal["magnitude", "first", "random"]


@dataclass(frozen=True)
class Fixed(Policy):
    """One selection for the whole training.

    Attributes:
        choice: which channels: the largest weights at the start, the first of each group, or a
            draw from the seed.
    """

    keys: ClassVar[tuple[str, ...]] = ("fixed",)

    choice: Choice = "magnitude"

    def __post_init__(self) -> None:
        """Check the option."""
        check_choice(self, "choice", Choice)

    @property
    def observes(self) -> Literal["none"]:
        """Nothing."""
        return "none"

    def start(self, layout: Layout, prior: Tensor, seed: int) -> State:
        """Add `order`, float32 [N], the score for good."""
        state = super().start(layout, prior, seed)
        channels = torch.arange(layout.total, device=prior.device)
        if self.choice == "magnitude":
            state["order"] = state["prior"].clone()
        elif self.choice == "first":
            state["order"] = -channels.float()
        else:
            state["order"] = draw(
                torch.tensor(seed % 2**32, device="cpu").to(channels), 0 * channels, channels
            )
        return state

    def observe(self, state: State, layout: Layout, selection: Tensor, saliency: Tensor) -> None:
        """Note only which channels executed."""
        del layout
        mark_seen(state, selection, torch.isfinite(saliency))

    def score(self, state: State, layout: Layout, explore: bool) -> Tensor:
        """Return the scores of the start."""
        del layout, explore
        return state["order"].clone()
