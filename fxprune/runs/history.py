"""The history of a training: what each epoch showed, as the checkpoint keeps it."""

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from fxprune.files import damaged, read_bytes, write_bytes
from fxprune.formats import fitting
from fxprune.runs.plan import LongText, Text
from fxprune.runs.schema import Strict

METRICS = "metrics.jsonl"

Count = Annotated[int, Field(ge=0, lt=2**63)]
Share = Annotated[float, Field(ge=0, le=1)]
Seconds = Annotated[float, Field(ge=0)]


@dataclass(frozen=True)
class EpochMetrics(Strict):
    """What one epoch showed; a line of metrics.jsonl.

    Attributes:
        epoch: its number, from 1.
        lr: learning rate of its last step.
        train_loss: mean over the epoch's steps, of the loss that is minimised.
        train_accuracy: share of training examples (augmented, before the step) that were right;
            None where the targets are no classes, or the run has a metric of its own.
        val_loss: mean loss, without label smoothing, in `model.eval()`; None where it is not
            finite.
        val_accuracy: as `train_accuracy`, of the validation split, in `model.eval()`.
        step_seconds: median time of forward, backward and optimiser step.
        seconds: of the whole epoch, with data and evaluation.
        macs: multiply-accumulates of one example in the epoch's last training step. This and the
            next seven are None for a plain network.
        params: elements of the parameters that executed in that step.
        run_macs: forward macs of all training steps of the run so far, of all examples.
        run_macs_planned: the `run_macs` that were planned; the most possible where widths depend
            on scores, None where that is not known.
        run_macs_dense: what the dense network would have spent on the same examples.
        widths: for each group, the number of channels that executed in the last step.
        selection: for each group, which ones: a hexadecimal number whose bit i stands for its
            channel i.
        churn: mean share of the executing channels that a step exchanged for others, over the
            steps that kept their widths.
        val_top5: share of the validation split whose class is among the five likeliest; None for
            fewer than six classes.
        metric: the name of the run's own metric, if it has one.
        val_metric: that metric's value on the validation split; None where it is not finite.
        settled: whether a gated network ended the epoch with its final channels; None for a plain
            network.
    """

    epoch: Annotated[int, Field(ge=1, lt=2**31)]
    lr: Annotated[float, Field(ge=0)]
    train_loss: float
    train_accuracy: Share | None
    val_loss: float | None
    val_accuracy: Share | None
    step_seconds: Seconds
    seconds: Seconds
    macs: Count | None = None
    params: Count | None = None
    run_macs: Count | None = None
    run_macs_planned: Count | None = None
    run_macs_dense: Count | None = None
    widths: list[Annotated[int, Field(ge=1, lt=2**31)]] | None = None
    selection: list[LongText] | None = None
    churn: Share | None = None
    val_top5: Share | None = None
    metric: Text | None = None
    val_metric: float | None = None
    settled: bool | None = None

    @property
    def value(self) -> tuple[float, float]:
        """How good the network was on the validation split, higher is better.

        By the run's own metric, else the accuracy, else the loss, by which ties are decided too.
        """
        loss = -math.inf if self.val_loss is None else -self.val_loss
        own = self.val_accuracy if self.metric is None else self.val_metric
        if own is None:
            own = loss if self.metric is None else -math.inf
        return own, loss


def best_of(history: Sequence[EpochMetrics]) -> EpochMetrics | None:
    """Return the best epoch that ended with the final channels; None if none did."""
    final = [metrics for metrics in history if metrics.settled is not False]
    return max(final, key=lambda metrics: metrics.value, default=None)


def history_of(meta: dict[str, Any], path: Path) -> list[EpochMetrics]:
    """Read the epochs that a checkpoint's meta holds; `path` is for the message.

    Raises:
        RunError: they are damaged.
    """
    history = fitting(list[EpochMetrics], meta.get("history", []), path, "history")
    if [metrics.epoch for metrics in history] != list(range(1, len(history) + 1)):
        raise damaged(path, "epochs are missing", "its history")
    return history


def keep_metrics(folder: Path, history: Sequence[EpochMetrics]) -> None:
    """Write metrics.jsonl, a line an epoch, for people and their tools; fxprune reads none of it.

    A file that says the same already is left alone.

    Raises:
        RunError: it cannot be written.
    """
    path = folder / METRICS
    content = "".join(json.dumps(asdict(metrics)) + "\n" for metrics in history).encode()
    if not path.is_file() or path.stat().st_size != len(content) or read_bytes(path) != content:
        write_bytes(path, content)
