"""What a run was told to train on is remembered, and a damaged memory is refused."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import fxprune
from fxprune.errors import FxpruneWarning, OptionError, RunError
from fxprune.formats import read_tensors, write_tensors
from fxprune.runs.run import Run
from fxprune.trainer.job import FILE, Job
from fxprune.trainer.options import TrainOptions


@pytest.fixture
def run(tmp_path: Path) -> Run:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3))
    gated = fxprune.instrument(model, (torch.zeros(2, 3, 20, 24),))
    return Run.create(tmp_path / "a.fxprune", gated, "model.py")


def test_the_next_call_takes_what_it_is_not_told(run: Run) -> None:
    first = Job.of(run, "digits", Path("here"), {"epochs": 3, "lr": 0.2, "seed": None})
    assert first.options == TrainOptions(epochs=3, lr=0.2)
    first.write(run)
    assert Job.read(run) == first
    second = Job.of(run, None, None, {"epochs": 5, "lr": None})
    assert second.options == TrainOptions(epochs=5, lr=0.2)
    assert (second.data, second.root) == ("digits", Path("here").resolve())


@pytest.mark.parametrize(
    ("policy", "given", "expected"),
    [
        ("utility", {}, "quick"),
        ("utility", {"budget_schedule": "auto"}, "quick"),
        ("utility", {"budget_schedule": "constant"}, "constant"),
        ("balance", {}, "auto"),
    ],
)
def test_trained_networks_fall_quickly(
    policy: str, given: dict[str, Any], expected: str, tmp_path: Path
) -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3))
    gated = fxprune.instrument(model, (torch.zeros(2, 3, 20, 24),), policy)
    run = Run.create(tmp_path / "a", gated, "model.py", weights=tmp_path / "dense.safetensors")
    first = Job.of(run, "digits", None, given)
    assert first.options.budget_schedule == expected
    first.write(run)
    assert Job.of(run, None, None, given).options == first.options
    assert Job.of(run, None, None, {"settle": 0.95}).options.budget_schedule == expected
    untrained = Run.create(tmp_path / "b", gated, "model.py")
    assert Job.of(untrained, "digits", None, {}).options.budget_schedule == "auto"


@pytest.mark.parametrize(
    "change",
    [
        {"own": {"loss": "mine.py:loss"}},
        {"own": {"metric": "mine.py:metric"}},
        {"transform": "mine.py:transform"},
        {"images": {"mean": "0.5"}},
        {"val_split": 0.1},
    ],
    ids=lambda change: next(iter(change)),
)
def test_a_training_keeps_its_task_and_its_images(run: Run, change: dict[str, Any]) -> None:
    first = Job.of(run, "digits", None, {})
    first.write(run)
    assert Job.of(run, "digits", None, {}, **change) != first  # not trained yet
    tensors, meta = read_tensors(run.checkpoint)
    write_tensors(run.checkpoint, tensors, {**meta, "history": []})
    assert Job.of(run, "digits", None, {}) == first
    said = r"other options: \w+ .* \(now .*\)\n  do   .*--from"
    with pytest.raises(RunError, match=said):
        Job.of(run, None, None, {}, **change)
    (run.path / FILE).unlink()
    with pytest.warns(FxpruneWarning, match=r"is trained and has no train\.json: whether its loss"):
        Job.of(run, "digits", None, {}, **change)


def test_of_two_first_trainings_with_other_losses_the_first_one_wins(run: Run) -> None:
    one, two = (Job.of(run, "digits", None, {}, own={"loss": f"mine.py:{n}"}) for n in "ab")
    two.keep(run)
    one.keep(run)  # neither has trained yet
    tensors, meta = read_tensors(run.checkpoint)
    write_tensors(run.checkpoint, tensors, {**meta, "history": []})
    with pytest.raises(RunError, match=r"other options: loss mine\.py:a \(now mine\.py:b\)"):
        two.keep(run)
    assert Job.read(run) == one


@pytest.mark.parametrize("kind", ["loss", "metric", "transform"])
def test_an_empty_name_takes_back_a_name(run: Run, kind: str) -> None:
    def given(name: str) -> dict[str, Any]:
        return {"transform": name} if kind == "transform" else {"own": {kind: name}}

    job = Job.of(run, "digits", None, {}, **given("mine.py:own"))
    assert job.code == {kind: "mine.py:own"}
    job.write(run)
    assert Job.of(run, None, None, {}).code == {kind: "mine.py:own"}
    assert Job.of(run, None, None, {}, **given("")).code == {}


def test_a_folder_is_found_from_another_one(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Job.of(run, "folder:images", None, {}).write(run)
    monkeypatch.chdir("/")
    assert Job.of(run, None, None, {}).data == f"folder:{tmp_path / 'images'}"


def test_the_first_call_has_to_name_the_data(run: Run) -> None:
    assert Job.read(run) is None
    with pytest.raises(OptionError, match="give --data with one of cifar10"):
        Job.of(run, None, None, {})


@pytest.mark.parametrize(
    "damage",
    [
        lambda value: value.pop("data"),
        lambda value: value["options"].pop("milestones"),
        lambda value: value["options"].update(lr=-1),
        lambda value: value["options"].update(speed=9),
    ],
)
def test_a_damaged_file(damage: object, run: Run) -> None:
    Job.of(run, "digits", None, {}).write(run)
    value = json.loads((run.path / FILE).read_text())
    damage(value)  # type: ignore[operator]
    (run.path / FILE).write_text(json.dumps(value))
    with pytest.raises(RunError, match=r"cannot read .*train\.json"):
        Job.read(run)
