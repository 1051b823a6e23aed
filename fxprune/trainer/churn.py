"""How often channels are exchanged in an epoch of training."""

from collections.abc import Sequence
from typing import Any

import numpy as np
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
        """Give fields of `EpochMetrics`: widths, selection, churn; none for a plain network."""
        if self._gated is None:
            return {}
        mean = float(torch.stack(self._shares).mean()) if self._shares else 0.0
        return {
            "widths": list(self._gated.widths),
            "selection": selection_of(self._gated),
            "churn": round(mean, 6),
        }


def selection_of(gated: GatedModule) -> list[str]:
    """Write which channels of each group execute, as a hexadecimal number: bit i for channel i.

    Channels 0, 1 and 5 of eight are 100011 in binary, `23`.
    """
    layout = gated.channels.layout
    executes = np.zeros(layout.total, dtype=bool)
    executes[gated.executing.cpu().numpy()] = True
    groups = (executes[first:][:size] for first, size in zip(layout.offsets, layout.sizes))
    packed = [np.packbits(group, bitorder="little").tobytes() for group in groups]
    return [f"{int.from_bytes(group, 'little'):x}" for group in packed]
