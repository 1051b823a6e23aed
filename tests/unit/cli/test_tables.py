"""What is said of a training beside its figures; the metrics are made up."""

import dataclasses
import io
from collections.abc import Sequence

import pytest
import torch
from rich.console import Console, RenderableType

from fxprune import analyze
from fxprune.cli import lines, records, tables
from fxprune.cli.spec import resolve
from fxprune.data import from_tensors
from fxprune.trainer.loop import EpochMetrics
from fxprune.trainer.options import TrainOptions

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
    found = records.step_seconds(history(epochs), DENSE)
    assert (found["all"], found["chosen"]) == expected


def test_a_training_that_pruning_does_not_make_faster_is_named() -> None:
    slow = {"step_seconds_of": {"all": 0.010, "chosen": 0.012}, "stopped_early": False}
    (line,) = lines.remarks_on_training(slow)
    assert line.startswith(
        "a step with the chosen channels took 12 ms, one with all channels 10 ms"
    )
    for all_, chosen in ((0.010, 0.009), (None, 0.012), (0.010, None)):
        seconds = {"all": all_, "chosen": chosen}
        assert not lines.remarks_on_training({**slow, "step_seconds_of": seconds})
    early = {**slow, "step_seconds_of": seconds, "stopped_early": True, "run": "a.fxprune"}
    (line,) = lines.remarks_on_training(early)
    assert line.startswith(
        "the run is finished: it stopped early; fxprune train NEW.fxprune --from"
    )


def test_validation_at_widths_that_were_not_trained_yet_is_marked() -> None:
    (metrics,) = history([(500, 0.1)])
    early = lines.epoch_line(metrics, fall_ends=2)
    assert "right 50.00 %: at the final widths, not yet trained; the fall ends in epoch 2" in early
    assert "final widths" not in lines.epoch_line(metrics)


def test_a_batch_of_more_than_a_fifth_of_the_data_is_remarked_on() -> None:
    images, labels = torch.zeros(100, 1, 4, 4, dtype=torch.uint8), torch.zeros(100).long()
    data = from_tensors("a", (images, labels), (images, labels), ("x",))
    assert not lines.remarks_on_data(data, TrainOptions(batch_size=20))
    (line,) = lines.remarks_on_data(data, TrainOptions(batch_size=40))
    assert "a batch of 40 is more than a fifth of the 100 training images" in line
    assert "an epoch has 2 steps" in line


def asked(low: float, middle: float, high: float) -> records.Record:
    quotient = {"low": low, "median": middle, "high": high, "rounds": 20}
    times = {"dense": 0.01, "compact": 0.01 * middle}
    return {
        "hot": quotient | times,
        "cold": quotient | times,
        "binds": "hot",
        "threads": 2,
        "command": "",
        "asked": 0.5,
        "cached": True,
        "date": "2026-11-28",
    }


def test_a_latency_is_told_beside_what_was_asked() -> None:
    line = lines.latency_line(asked(0.501, 0.52, 0.538))
    assert line == (
        "asked 50 % of the dense network's time, is 52 % (50–54), "
        "ONNX Runtime, one example, 2 threads, from the cache of 2026-11-28"
    )


def test_the_live_view_says_where_a_training_stands() -> None:
    rest = {"lr": 0.1, "train_loss": 0.5, "train_accuracy": None, "val_loss": None}
    rest |= {"step_seconds": 0.002, "seconds": 1.0}
    scored = [
        EpochMetrics(epoch=i + 1, val_accuracy=share, macs=1_500_000, **rest)  # type: ignore[arg-type]
        for i, share in enumerate((0.2, 0.5, 0.9))
    ]
    assert lines.live_parts(scored) == [
        *("epoch 3", "validation: right 90.00 %", "▁▄█", "macs 1.50 M", "2 ms a step")
    ]
    own = [
        EpochMetrics(epoch=1, val_accuracy=None, metric="iou", val_metric=0.25, **rest)  # type: ignore[arg-type]
    ]
    assert lines.live_parts(own) == ["epoch 1", "validation: iou 0.2500", "▁", "2 ms a step"]
    lost = dataclasses.replace(own[0], val_metric=None)
    assert lines.live_parts([lost])[:2] == ["epoch 1", "validation: iou not finite"]
    assert "val loss not finite, iou not finite" in lines.epoch_line(lost)
    bare = [EpochMetrics(epoch=1, val_accuracy=None, **rest)]  # type: ignore[arg-type]
    assert lines.live_parts(bare) == ["epoch 1", "training: loss 0.5000", "▁", "2 ms a step"]


def test_an_epoch_that_waits_for_its_data_is_remarked_on() -> None:
    """240 photos: 120 s, 4 s of them steps."""
    metrics = EpochMetrics(1, 0.1, 1.0, 0.5, 1.0, 0.5, step_seconds=0.5, seconds=120.0)
    (line,) = lines.remarks_on_waiting(metrics, 8)
    assert "the last epoch took 120 s, its steps 4 s of it" in line
    assert not lines.remarks_on_waiting(metrics, 100)
    assert not lines.remarks_on_waiting(dataclasses.replace(metrics, seconds=9.0), 8)


@pytest.mark.parametrize("command", ["", "./bench.sh {onnx}"])
def test_what_half_of_a_group_saves_stands_beside_its_macs(command: str) -> None:
    source = resolve("fxprune.demo:build_model")
    record = records.of_graph(source, analyze(source.model, source.example_inputs))
    first, second, *_ = [group["name"] for group in record["groups"]]
    saved = {"width": 24, "saved": 0.0025, "share": 0.125, "error": 0.011, "date": "2026-11-28"}
    record["latency"] = {
        "threads": 2,
        "command": command,
        "binds": "hot",
        "dense": 0.02,
        "groups": {first: saved},
    }
    text = shown(tables.show_graph(record))
    (line,) = [line for line in text.splitlines() if line.split()[:1] == [first]]
    assert "48 → 24" in line
    assert "2.5 ms" in line
    assert "12.5 ± 1.1 %" in line
    (line,) = [line for line in text.splitlines() if line.split()[:1] == [second]]
    assert line.split()[-1] == "–"  # it is too small to be halved
    assert ("./bench.sh" if command else "2 threads, hot") in text
    assert "the dense network takes 20 ms" in text


def test_a_single_group_is_counted_as_one() -> None:
    source = resolve("fxprune.demo:build_model")
    record = records.of_graph(source, analyze(source.model, source.example_inputs))
    record["groups"] = record["groups"][:1]
    assert " in 1 group, " in shown(tables.show_graph(record))


def exported(**more: object) -> records.Record:
    """The record of an export of a network of a quarter of the macs."""
    sides = {"dense": {"params": 2000, "macs": 8_000_000, "bytes": 9000}}
    sides["compact"] = {"params": 600, "macs": 2_000_000, "bytes": 3000}
    proof = {"batches": (1, 2), "real_examples": 7, "reference": "the gated network"}
    proof |= {"max_abs_error": 3e-7, "max_rel_error": 2e-7, "tolerance": 1e-4}
    timing = {**asked(0.30, 0.31, 0.32), "asked": None}
    onnx = {**sides, **proof, "path": "a.onnx", "bytes": 3000, "timing": timing}
    return {"run": "a.fxprune", "onnx": onnx, "asked": 0.3, **more}


def test_an_export_is_told_beside_the_dense_network_and_what_was_asked() -> None:
    text = shown(tables.show_export(exported()))
    (line,) = [line for line in text.splitlines() if line.split()[:1] == ["macs"]]
    assert "25.0 %" in line
    assert "asked 30 %" in text
    assert "batches of 1, 2, fresh random inputs and 7 real examples" in text
    assert "wrote a.onnx" in text
    plain = {"path": "a.py", "bytes": 5000, "max_rel_error": 2e-7}
    sizes = {key: {"dense": 2000, "compact": 600} for key in ("params", "macs")}
    text = shown(tables.show_export({"run": "a.fxprune", **sizes, "torch": plain}))
    assert (
        "wrote a.py, a.safetensors   5.0 kB, largest difference 2.0e-07 of the largest output"
        in text
    )
    assert "ONNX Runtime" not in text


def test_precisions_stand_side_by_side() -> None:
    same = {"max_rel_error": 1e-3, "tolerance": 1e-2, "from_float32": 2e-3, "latency": 0.002}
    files = [
        {**same, "kind": "float32", "path": "a.onnx", "bytes": 3000, "metric": None},
        {**same, "kind": "fp16", "path": "a.fp16.onnx", "bytes": 1500, "metric": 0.25},
        {**same, "kind": "int8", "path": "a.int8.onnx", "bytes": 800, "metric": None},
    ]
    shares = (0.9, 0.9, None)
    files = [{**file, "accuracy": share} for file, share in zip(files, shares, strict=True)]
    lines_ = shown(tables.show_export(exported(files=files))).splitlines()
    rows = {line.split()[0]: line for line in lines_ if line.split()[:1]}
    assert "90.00 %" in rows["float32"]
    assert "0.2500" in rows["fp16"]
    assert " – " in rows["int8"]
    assert "2 ms" in rows["int8"]
    written = [line.split()[1] for line in lines_ if line.startswith("wrote")]
    assert written == ["a.onnx", "a.fp16.onnx", "a.int8.onnx"]


@pytest.mark.parametrize(
    ("points", "held_out", "most", "told"),
    [
        (1.5, None, None, "lost 1.50 points on the validation images (95 % interval 0.50 to 2.50)"),
        (-1.5, None, None, "gained 1.50 points"),
        (0.5, 0.8, 1.0, "lost 0.80 points on the training images held out"),
        (0.5, 1.2, 1.0, "more than the 1 allowed"),
    ],
)
def test_a_pruning_tells_what_it_lost(
    points: float, held_out: float | None, most: float | None, told: str
) -> None:
    record = exported(budget="macs=0.25", max_drop=most, images=1000)
    record["drop"] = {"points": points, "low": points - 1, "high": points + 1}
    record["held_out"] = None if held_out is None else {"points": held_out}
    record["accuracy"] = {"dense": 0.9, "compact": 0.9 - points / 100}
    assert told in shown(tables.show_pruned(record))


def shown(table: RenderableType) -> str:
    """What a terminal of 160 columns shows."""
    screen = Console(width=160, file=io.StringIO(), force_terminal=False)
    screen.print(table)
    return screen.file.getvalue()  # type: ignore[attr-defined, no-any-return]
