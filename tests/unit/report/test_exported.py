"""The figures of an export stand in the run under a checksum and a schema."""

import dataclasses
import json
import shlex
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import fxprune
from fxprune.data.preprocess import Preprocess
from fxprune.errors import RunError
from fxprune.export.bench import Target
from fxprune.export.compare import Comparison, Figures
from fxprune.export.onnx import ExportReport
from fxprune.export.timing import Quotient, Timing
from fxprune.formats import write_record
from fxprune.report.exported import FILE, Exported
from fxprune.report.of_runs import commands_of
from fxprune.runs.run import Run
from fxprune.trainer.job import Job
from fxprune.trainer.options import TrainOptions


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    monkeypatch.chdir(tmp_path)
    model = nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3))
    gated = fxprune.instrument(model, (torch.zeros(2, 1, 8, 8),))
    made = Run.create(Path("a.fxprune"), gated, "model.py")
    (tmp_path / "a.onnx").write_bytes(b"the file")
    report = ExportReport(Path("a.onnx"), 8, 18, 3, 1e-6, 1e-7, 2e-5, (1, 2, 7), 2**60 + 1, 7)
    quotient = Quotient(0.5, 0.4, 0.6, 9)
    timing = Timing(quotient, quotient, (2e-3, 3e-3), (1e-3, 2e-3), 1, True)
    small = Figures(3, 4, 8, 1e-3)
    Exported.keep(made, Comparison(report, "the network", small, small, timing, Target()))
    return made


def refused(run: Run) -> str:
    with pytest.raises(RunError) as caught:
        Exported.read(run)
    return str(caught.value)


def test_they_come_back(run: Run) -> None:
    found = Exported.read(run)
    assert found is not None
    onnx = found["onnx"]
    assert (onnx["path"], onnx["bytes"], onnx["batches"]) == ("a.onnx", 8, [1, 2, 7])
    assert onnx["seed"] == str(2**60 + 1)  # a number of JavaScript is exact to 2**53
    assert onnx["timing"]["hot"]["dense"] == 2e-3


def test_an_edit_by_hand_is_noticed(run: Run) -> None:
    path = run.path / FILE
    path.write_text(path.read_text().replace('"max_abs_error": 1e-06', '"max_abs_error": 1e-09'))
    assert "the checksum does not match" in refused(run)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("bytes", -1),
        ("bytes", "many"),
        ("batches", 3),
        ("compact", None),
        ("sha256", 5),
        ("surprise", 1),
        ("tolerance", True),
    ],
)
def test_other_content_under_a_new_checksum(run: Run, key: str, value: object) -> None:
    content: dict[str, Any] = json.loads((run.path / FILE).read_text())
    content["onnx"][key] = value
    write_record(run.path / FILE, {"onnx": content["onnx"]})
    assert f"its content is damaged: onnx: {key}" in refused(run)


def test_a_run_without_an_export(run: Run) -> None:
    (run.path / FILE).unlink()
    assert Exported.read(run) is None
    (run.path / FILE).symlink_to("nowhere")
    refused(run)


def test_commands_are_quoted_for_a_shell(tmp_path: Path, run: Run) -> None:
    odd = Run(run.path, "m.py:f{a='$(id)'}", "1x8x8", tmp_path, run.plan)
    assert commands_of(odd)[0].startswith(
        """fxprune instrument 'm.py:f{a='"'"'$(id)'"'"'}' --input 1x8x8 --policy """
    )


def test_the_commands_begin_where_the_run_did(tmp_path: Path, run: Run) -> None:
    weights, every = Path("old weights.pt"), dataclasses.replace(run.plan, every=5)
    begun = dataclasses.replace(run, plan=every, weights=str(weights))
    assert " --weights 'old weights.pt' --policy " in commands_of(begun)[0]
    assert " --every 5 " in commands_of(begun)[0]
    Job("digits", tmp_path, TrainOptions()).write(run)
    branch = Run.open(run.branch(Path("b.fxprune")).path)
    Job("digits", tmp_path, TrainOptions()).write(branch)
    train, export = commands_of(branch)
    assert train.startswith("fxprune train b.fxprune --from a.fxprune --data digits ")
    assert export == "fxprune export b.fxprune --onnx"


def test_the_command_repeats_a_training_with_its_options(tmp_path: Path, run: Run) -> None:
    options = TrainOptions(
        epochs=3, optimizer="nadam", clip=0.12345678, decay_norms=False, mixup=0.2
    )
    look = Preprocess(mean=(0.5,), resize=(8, 9), flip=False)
    Job("data.py:make", tmp_path, options, look, loss="l.py:dice").write(run)
    words = shlex.split(commands_of(run)[1])
    assert words[:3] == ["fxprune", "train", run.path.name]
    assert words[3:] == [
        *("--data", "data.py:make", "--loss", "l.py:dice", "--mean", "0.5", "--resize", "8x9"),
        *("--no-flip", "--epochs", "3", "--lr", "0.1", "--optimizer", "nadam"),
        *("--batch-size", "128", "--no-decay-norms", "--clip", "0.12345678", "--mixup", "0.2"),
        *("--seed", "0"),
    ]
