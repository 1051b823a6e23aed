"""Write the metrics of a training where other tools look: TensorBoard and CSV.

For any other tracker, hand `fit` a `progress` callback: its ticks carry the same `EpochMetrics`.
"""

import abc
import csv
import dataclasses
import importlib
import io
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from fxprune.errors import OptionError
from fxprune.files import write_bytes
from fxprune.trainer.loop import EpochMetrics

CSV = "metrics.csv"
TENSORBOARD = "tensorboard"


class Log(abc.ABC):
    """Takes the metrics of each epoch."""

    @abc.abstractmethod
    def epoch(self, metrics: EpochMetrics) -> None:
        """Write one epoch."""

    def close(self) -> None:  # noqa: B027 - most have nothing to close
        """Write what is still held back."""


class CsvLog(Log):
    """RUN/metrics.csv: a line for each epoch, a column for each number and each group's width."""

    def __init__(self, folder: Path, history: Sequence[EpochMetrics]) -> None:
        """Begin with the epochs that are over already."""
        self.path = folder / CSV
        self.rows = [dict(_cells(metrics)) for metrics in history]

    def epoch(self, metrics: EpochMetrics) -> None:
        """Write the file anew, atomically."""
        self.rows.append(dict(_cells(metrics)))
        text = io.StringIO()
        columns = list(dict.fromkeys(name for row in self.rows for name in row))
        writer = csv.DictWriter(text, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(self.rows)
        write_bytes(self.path, text.getvalue().encode())


class TensorBoardLog(Log):
    """RUN/tensorboard: a scalar for each number and each group's width, by epoch."""

    def __init__(self, folder: Path, history: Sequence[EpochMetrics]) -> None:
        """Open the event file; what an interrupted run wrote of later epochs is hidden.

        The first file begins with the epochs that are over already.

        Raises:
            OptionError: TensorBoard is not installed.
        """
        try:
            tensorboard: Any = importlib.import_module("torch.utils.tensorboard")
        except ImportError as error:
            raise OptionError(
                "--log tensorboard needs TensorBoard",
                why=str(error),
                do="install it: pip install tensorboard",
            ) from error
        path = folder / TENSORBOARD
        first = not any(path.glob("events.*"))
        self.writer = tensorboard.SummaryWriter(str(path), purge_step=len(history) + 1)
        if first:  # the epochs before were trained without this log
            for metrics in history:
                self.epoch(metrics)

    def epoch(self, metrics: EpochMetrics) -> None:
        """Write the scalars, and flush them."""
        for name, value in figures(metrics).items():
            if name != "epoch":
                self.writer.add_scalar(name, value, metrics.epoch)
        self.writer.flush()

    def close(self) -> None:
        """Close the event file."""
        self.writer.close()


_LOGS: dict[str, type[CsvLog] | type[TensorBoardLog]] = {
    "csv": CsvLog,
    "tensorboard": TensorBoardLog,
}


def open_logs(names: str, folder: Path, history: Sequence[EpochMetrics]) -> list[Log]:
    """Open the logs of a run.

    Args:
        names: such as "tensorboard,csv"; empty for none.
        folder: the run directory.
        history: the epochs that are over already.

    Raises:
        OptionError: a name is unknown, or its package is missing.
    """
    wanted = [name.strip() for name in names.split(",") if name.strip()]
    for name in wanted:
        if name not in _LOGS:
            raise OptionError(
                f"unknown log {name!r}",
                why=f"fxprune writes {' and '.join(_LOGS)}",
                do="take one of these, or hand fit a progress callback for another tracker, as in "
                "docs/guides/report.md, Logs",
            )
    return [_LOGS[name](folder, history) for name in dict.fromkeys(wanted)]


def figures(metrics: EpochMetrics) -> dict[str, float]:
    """Return the numbers that an epoch has, by name; each group has its own `width/INDEX`."""
    return {name: value for name, value in _cells(metrics) if value is not None}


def _cells(metrics: EpochMetrics) -> Iterator[tuple[str, float | None]]:
    for name, value in dataclasses.asdict(metrics).items():
        if name == "widths":
            for group, width in enumerate(value or ()):
                yield f"width/{group}", width
        elif value is None or isinstance(value, int | float):
            yield name, value
