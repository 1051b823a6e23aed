"""The metrics of a training stand where other tools look."""

import csv
import dataclasses
from pathlib import Path

import pytest

from fxprune.errors import OptionError
from fxprune.trainer.logs import figures, open_logs
from fxprune.trainer.loop import EpochMetrics


def metrics(epoch: int) -> EpochMetrics:
    whole = EpochMetrics(
        epoch=epoch,
        lr=0.1,
        train_loss=1 / epoch,
        train_accuracy=0.5,
        val_loss=None,
        val_accuracy=0.6,
        step_seconds=0.01,
        seconds=1.0,
    )
    return dataclasses.replace(whole, macs=100, widths=[4, 8 - epoch], churn=0.01)


def test_csv_has_a_line_for_each_epoch_those_before_a_resumption_too(tmp_path: Path) -> None:
    (log,) = open_logs("csv", tmp_path, [metrics(1)])
    log.epoch(metrics(2))
    with (tmp_path / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["epoch"] for row in rows] == ["1", "2"]
    assert [row["width/1"] for row in rows] == ["7", "6"]
    assert rows[0]["val_loss"] == ""


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of TensorBoard's reader
def test_tensorboard_reads_what_was_written(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    (log,) = open_logs("tensorboard", tmp_path, [])
    for epoch in (1, 2):
        log.epoch(metrics(epoch))
    log.close()
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    loss = [(event.step, event.value) for event in events.Scalars("train_loss")]
    assert loss == [(1, 1.0), (2, 0.5)]
    assert [event.value for event in events.Scalars("width/1")] == [7, 6]
    assert "val_loss" not in events.Tags()["scalars"]


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of TensorBoard's reader
def test_tensorboard_shows_the_epochs_before_it_was_asked_for_once(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    for done in (1, 2):  # two calls of a run whose first epoch was trained without a log
        (log,) = open_logs("tensorboard", tmp_path, [metrics(epoch + 1) for epoch in range(done)])
        log.epoch(metrics(done + 1))
        log.close()
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [event.step for event in events.Scalars("train_loss")] == [1, 2, 3]


def test_an_unknown_log_is_refused() -> None:
    with pytest.raises(OptionError, match=r"unknown log 'wandb'[^$]*progress callback"):
        open_logs("csv,wandb", Path(), [])


def test_none_is_wanted() -> None:
    assert open_logs("", Path(), []) == []


def test_figures_are_numbers() -> None:
    found = figures(metrics(3))
    assert found["width/0"] == 4
    assert all(isinstance(value, int | float) for value in found.values())  # MLflow takes no None
    assert {"widths", "val_loss"}.isdisjoint(found)
