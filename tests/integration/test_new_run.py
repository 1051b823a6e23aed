"""A new run begins with the network of another one; a run says what it has not scored."""

import json
import sys
from pathlib import Path

import pytest
import torch
from click.testing import Result
from typer.testing import CliRunner

from fxprune.cli import lines, records
from fxprune.cli.commands import app
from fxprune.data import load
from fxprune.errors import FxpruneError, RunError
from fxprune.formats import read_tensors, write_record
from fxprune.runs.promise import FILE, Promise
from fxprune.runs.run import CHECKPOINT, Run
from fxprune.trainer.job import Job
from fxprune.trainer.loop import Stopped, fit
from fxprune.trainer.options import TrainOptions
from tests.support.cli import PLAIN_MODEL

DATA = """
import fxprune.data


def digits():
    return fxprune.data.load("digits")
"""


def call(*words: str) -> Result:
    result = CliRunner().invoke(app, list(words), catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a run of two epochs, on data of the user's own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))  # fxprune appends the model's folder
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    Path("model.py").write_text(PLAIN_MODEL)
    Path("mine.py").write_text(DATA)
    call("instrument", "model.py", "--input", "1x8x8", "-o", "a.fxprune")
    call("train", "a.fxprune", "--data", "mine.py:digits", "--epochs", "2", "--device", "cpu")
    return tmp_path


@pytest.mark.slow
def test_too_many_epochs_are_mended_by_a_new_run(here: Path) -> None:
    before = (here / "a.fxprune" / CHECKPOINT).read_bytes()
    with pytest.raises(RunError, match=r"fxprune train NEW\.fxprune --from a\.fxprune") as caught:
        call("train", "a.fxprune", "--epochs", "1")
    assert "epochs 2 (now 1)" in str(caught.value)
    call("train", "b.fxprune", "--from", "a.fxprune", "--minutes", "0", "--epochs", "1")
    assert (here / "a.fxprune" / CHECKPOINT).read_bytes() == before
    b = Run.open(Path("b.fxprune"))
    assert [metrics["epoch"] for metrics in b.metrics()] == [1]
    job = Job.read(b)
    assert job is not None
    assert (job.data, job.options.epochs) == ("mine.py:digits", 1)
    call("train", "b.fxprune", "--epochs", "2")  # its data are trusted in the new run as well
    with pytest.raises(RunError, match=r"there is a trained run in b\.fxprune"):
        call("train", "b.fxprune", "--from", "a.fxprune")


@pytest.mark.usefixtures("here")
def test_a_branch_has_the_network_and_nothing_of_its_training() -> None:
    a = Run.open(Path("a.fxprune"))
    b = a.branch(Path("b.fxprune"))
    old, _ = read_tensors(a.checkpoint)
    new, meta = read_tensors(b.checkpoint)
    assert meta.keys() == {"plan"}
    assert all(name.startswith("gated/") for name in new)
    assert all(torch.equal(value, old[name]) for name, value in new.items())
    assert {name for name in old if name.startswith("gated/dense/")} <= new.keys()
    assert b.standing().metrics is None


@pytest.mark.usefixtures("here")
def test_a_new_run_whose_training_is_refused_is_gone_again() -> None:
    promise = Promise(0.5, 3, cold=True, by_command=False)
    write_record(Path("a.fxprune") / FILE, vars(promise))
    begin = ["train", "b.fxprune", "--from", "a.fxprune", "--minutes", "0"]
    for refused in (["--data", "cats"], ["--freeze", "nothing.*"]):
        result = CliRunner().invoke(app, [*begin, *refused])
        assert isinstance(result.exception, FxpruneError)
        assert not Path("b.fxprune").exists()
    call(*begin)
    assert Promise.read(Path("b.fxprune")) == promise


@pytest.mark.usefixtures("here")
def test_an_accuracy_is_not_said_of_a_network_that_was_trained_on() -> None:
    run = Run.open(Path("a.fxprune"))
    scored = records.of_run(run, run.load(_model()))
    assert scored["val_accuracy"] == run.metrics()[-1]["val_accuracy"]
    assert not [line for line in lines.remarks(scored) if "stopped" in line]

    steps = iter(range(3))
    options = TrainOptions(epochs=3, device="cpu")
    with pytest.raises(Stopped):
        fit(
            run.load(_model()),
            load("digits"),
            options,
            run=run.path,
            stop=lambda: next(steps, None) is None,
        )
    stopped = records.of_run(run, run.load(_model()))
    assert (stopped["val_accuracy"], stopped["stopped_in_epoch"]) == (None, 3)
    (line,) = (line for line in lines.remarks(stopped) if "stopped" in line)
    assert line.startswith("the training was stopped within epoch 3: nothing says how accurate")
    assert json.dumps(stopped)


def _model() -> torch.nn.Module:
    space: dict[str, object] = {}
    exec(PLAIN_MODEL, space)
    model = space["build_model"]()  # type: ignore[operator]
    assert isinstance(model, torch.nn.Module)
    return model
