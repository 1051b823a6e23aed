"""What a gated network did while it was trained: widths, churn and scores, epoch by epoch."""

import json
from pathlib import Path
from typing import Any

from torch import Tensor

import fxprune
from fxprune import files
from fxprune.trainer import loop


class Trail:
    """Watches a training through `train.fit`'s progress, and keeps what it saw in a file.

    Each line of the file is an epoch: `widths` at its end; `churn`, the mean share of the slots
    that changed hands in a step, over the steps that kept their widths; `scores`, what the policy
    holds of each channel, without exploration.
    """

    def __init__(self, gated: fxprune.GatedModule, path: Path) -> None:
        self.gated, self.path = gated, path
        self.lines: list[dict[str, Any]] = []
        if path.exists():
            self.lines = [json.loads(line) for line in path.read_text().splitlines()]
        self._before: Tensor | None = None
        self._changed: list[Tensor] = []  # read at the end of an epoch: a GPU is not waited for

    def step(self, tick: loop.Tick) -> None:
        """To be called after each step, and at the end of each epoch."""
        if tick.metrics is not None:
            self._epoch(tick.metrics.epoch)
            return
        now = self.gated.executing
        if self._before is not None and len(now) == len(self._before):
            self._changed.append((now != self._before).float().mean())
        self._before = now

    def record(self, scores: bool) -> dict[str, Any]:
        """All epochs, by what was seen; the scores, a number for each channel, if wanted."""
        record = {
            "widths_by_epoch": [line["widths"] for line in self.lines],
            "churn": [line["churn"] for line in self.lines],
        }
        return record | ({"scores": [line["scores"] for line in self.lines]} if scores else {})

    def _epoch(self, epoch: int) -> None:
        gated = self.gated
        scores = gated.settings.policy.score(gated.policy_state, gated.channels.layout, False)
        self.lines[epoch - 1 :] = [
            {
                "widths": list(gated.widths),
                "churn": round(float(sum(self._changed)) / max(len(self._changed), 1), 5),
                "scores": [round(score, 4) for score in scores.tolist()],
            }
        ]
        self._changed = []
        self.path.parent.mkdir(parents=True, exist_ok=True)
        lines = "".join(json.dumps(line) + "\n" for line in self.lines)
        files.write_bytes(self.path, lines.encode())
