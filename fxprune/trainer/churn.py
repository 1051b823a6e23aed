"""How often channels are exchanged in an epoch of training."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fxprune.gated.module import GatedModule


class Churn:
    """Counts the channels that each step exchanges, without making a GPU wait."""

    def __init__(self, gated: GatedModule | None, before: Sequence[float] = ()) -> None:
        """Go on with an epoch of a gated network; a plain one (None) has no figures.

        Args:
            gated: the network.
            before: the shares that its steps before a resumption exchanged.
        """
        self._gated = gated
        self._before = None if gated is None else gated.executing
        device = None if self._before is None else self._before.device
        self._shares: list[Tensor] = [*torch.tensor(before, device=device).float()]

    def step(self) -> None:
        """Note what one optimiser step exchanged; steps that change widths do not count."""
        if self._gated is None or self._before is None:
            return
        now = self._gated.executing
        if now is not self._before and len(now) == len(self._before):
            self._shares.append((now != self._before).float().mean())
        elif now is self._before:
            self._shares.append(torch.zeros((), device=now.device))
        self._before = now

    def shares(self) -> list[float]:
        """Return the shares that the steps so far exchanged."""
        return torch.stack(self._shares).tolist() if self._shares else []

    def figures(self) -> dict[str, Any]:
        """Give `widths` and `churn` as `EpochMetrics` has them; empty for a plain network."""
        if self._gated is None:
            return {}
        mean = float(torch.stack(self._shares).mean()) if self._shares else 0.0
        return {"widths": list(self._gated.widths), "churn": round(mean, 6)}
