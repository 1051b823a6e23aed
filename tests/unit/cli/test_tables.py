"""What is said of a training beside its figures; the metrics are made up."""

import dataclasses
from collections.abc import Sequence

import pytest

from fxprune.cli import records, tables
from fxprune.trainer.loop import EpochMetrics

DENSE = 1000


def history(epochs: Sequence[tuple[int | None, float]]) -> list[EpochMetrics]:
    """Epochs by the macs of their last step, and the median seconds of their steps."""
    first = EpochMetrics(1, 0.1, 1.0, 0.5, 1.0, 0.5, 0.0, 0.0)
    return [
        dataclasses.replace(first, epoch=number, macs=macs, step_seconds=seconds)
        for number, (macs, seconds) in enumerate(epochs, 1)
    ]


@pytest.mark.parametrize(
    ("epochs", "expected"),
    [
        # the third falls, the fourth is the first to have the chosen channels from its beginning
        ([(1000, 3), (1000, 5), (250, 9), (240, 1), (250, 2)], (4, 1.5)),
        ([(1000, 3), (250, 1)], (3, None)),
        ([(250, 1), (250, 2)], (None, 2)),
        ([(1000, 3), (1000, 4)], (3.5, None)),
        ([(None, 3), (None, 4)], (3.5, None)),
    ],
)
def test_steps_with_all_channels_and_with_the_chosen_ones(
    epochs: list[tuple[int | None, float]], expected: tuple[float | None, float | None]
) -> None:
    found = records._step_seconds(history(epochs), DENSE)
    assert (found["all"], found["chosen"]) == expected


def test_a_training_that_pruning_does_not_make_faster_is_named() -> None:
    slow = {"step_seconds_of": {"all": 0.010, "chosen": 0.012}}
    (line,) = tables.remarks_on_training(slow)
    assert line.startswith(
        "a step with the chosen channels took 12 ms, one with all channels 10 ms"
    )
    for all_, chosen in ((0.010, 0.009), (None, 0.012), (0.010, None)):
        seconds = {"all": all_, "chosen": chosen}
        assert not tables.remarks_on_training({"step_seconds_of": seconds})
