"""What the command line refuses, and how it says so."""

import json
from pathlib import Path

import pytest

from fxprune.formats import write_record
from tests.support.cli import MODEL, Call, run

REFUSED = {
    "no such file": (("inspect", "nothing.py"), "there is no file"),
    "no factory": (("inspect", "odd.py"), "odd.py has no build_model and no model"),
    "a factory that raises": (
        ("inspect", "odd.py:broken", "--input", "3x8x8"),
        "at   odd.py:12   return nn.Conv2d(3, 5, 3, groups=2)",
    ),
    "does not run": (
        ("inspect", "odd.py:Raises", "--input", "1x8x8"),
        "error: the model does not run on inputs of shape [(2, 1, 8, 8)]\n"
        '  at   odd.py:7   raise ValueError("no images")\n  why  ValueError: no images\n',
    ),
    "no shape is known": (("inspect", "odd.py:pinned"), "no shape is known for the input"),
    "a shape that does not fit": (
        ("inspect", "model.py", "--input", "3x8x8"),
        "does not run on inputs of shape [(2, 3, 8, 8)]",
    ),
    "a shape that is none": (
        ("inspect", "model.py", "--input", "axb"),
        "cannot read the input shape 'axb'",
    ),
    "nothing to prune": (
        ("instrument", "odd.py:pinned", "--input", "1x8x8"),
        "no channel that could be removed",
    ),
    "unknown policy": (("instrument", "model.py", "--policy", "best"), "unknown policy 'best'"),
    "no policy": (("instrument", "model.py", "--policy", ""), "cannot read the policy ''"),
    "unknown option": (
        ("instrument", "model.py", "--policy", "cucb{d=1}"),
        "the policy 'cucb' has no option 'd'",
    ),
    "unknown budget": (
        ("instrument", "model.py", "--budget", "flops=0.5"),
        "unknown budget 'flops'",
    ),
    "budget 0": (("instrument", "model.py", "--budget", "keep=0"), "out of range"),
    "budget 1.5": (("instrument", "model.py", "--budget", "keep=1.5"), "out of range"),
    "budget nan": (("instrument", "model.py", "--budget", "keep=nan"), "out of range"),
    "every 0": (("instrument", "model.py", "--every", "0"), "every cannot be 0"),
    "no run": (("export", "nothing.fxprune"), "there is no run nothing.fxprune"),
    "no data named": (("train", "model.fxprune"), "nothing says what to train"),
    "unknown data": (("train", "--data", "cats"), "unknown data set 'cats'"),
    "no name of data": (("train", "--data", ""), "unknown data set ''"),
    "data that are not there": (
        ("train", "--data", "cifar10", "--data-root", "none"),
        "cannot read the data set cifar10",
    ),
    "a rate that is none": (("train", "--data", "digits", "--lr", "nan"), "lr cannot be nan"),
    "a mean that is none": (
        ("train", "--data", "digits", "--mean", "nan"),
        "mean and std cannot be (nan,) and the usual",
    ),
    "a deviation that is none": (
        ("train", "--data", "digits", "--std", "inf"),
        "mean and std cannot be the usual and (inf,)",
    ),
    "minutes that are none": (
        ("train", "--data", "digits", "--minutes", "nan"),
        "minutes cannot be nan",
    ),
    "minutes below 0": (("train", "--minutes", "-1"), "minutes cannot be -1.0"),
    "patience that is none": (("train", "--patience", "nan"), "patience cannot be nan"),
    "patience without end": (("train", "--patience", "1e300"), "patience cannot be 1e+300"),
    "a command that is none": (
        ("export", "--latency-command", "run '{model}"),
        "cannot read the latency command run '{model}\n  why  No closing quotation",
    ),
    "a place in no folder": (
        ("instrument", "model.py", "-o", "no/a.fxprune"),
        "cannot make the folder no/a.fxprune\n  why  there is no folder no",
    ),
    "a schedule that is none": (
        ("train", "--data", "digits", "--budget-schedule", "cubic{to=3}"),
        "the budget schedule 'cubic' has no option 'to'",
    ),
    "macs that are none": (
        ("train", "--data", "digits", "--train-macs", "2"),
        "train_macs cannot be 2.0",
    ),
    "two runs": (("export", "a.fxprune", "b.fxprune"), "name one run"),
    "a place that is not there": (("export", "-o", "no/such/folder"), "there is no folder"),
    "an option that is none": (("export", "--nonsense"), "--nonsense"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_refused(case: str, folder: Path, call: Call) -> None:
    arguments, expected = REFUSED[case]
    done = call(*arguments, folder=folder, exit_code=2)
    assert expected in done.stderr
    assert done.stdout == ""


@pytest.mark.slow
@pytest.mark.parametrize(
    "case",
    [
        "no such file",
        "a factory that raises",
        "does not run",
        "a shape that does not fit",
        "unknown policy",
        "budget nan",
    ],
)
def test_what_is_refused_in_a_process_of_its_own(case: str, folder: Path) -> None:
    arguments, expected = REFUSED[case]
    refused = run(*arguments, folder=folder, exit_code=2)
    assert refused.stderr.startswith("error: ")
    assert expected in refused.stderr
    assert refused.stdout == ""


@pytest.mark.slow
@pytest.mark.parametrize("name", ["plan.json", "checkpoint.safetensors"])
def test_a_damaged_run(name: str, here: Path) -> None:
    path = here / "model.fxprune" / name
    content = bytearray(path.read_bytes())
    content[len(content) // 2 :] = b"\x00" * 20
    path.write_bytes(content)
    refused = run("export", "--onnx", folder=here, exit_code=2)
    assert "error: cannot read" in refused.stderr
    assert not (here / "model.onnx").exists()


@pytest.mark.slow
def test_a_run_whose_model_has_changed(here: Path) -> None:
    (here / "model.py").write_text(MODEL.replace("width=16", "width=24"))
    refused = run("export", "--onnx", folder=here, exit_code=2)
    assert "belongs to another network" in refused.stderr


@pytest.mark.parametrize("command", [("export",), ("train", "--data", "digits"), ("report",)])
def test_a_run_of_a_stranger_executes_nothing(
    command: tuple[str, ...], here: Path, call: Call
) -> None:
    path = here / "model.fxprune" / "plan.json"
    plan = json.loads(path.read_text())
    del plan["format"], plan["checksum"]
    write_record(path, {**plan, "spec": "gift.py:build_model"})
    (here / "gift.py").write_text("open('executed', 'w')\n")
    text = call(*command, folder=here, exit_code=2).stderr
    assert "error: model.fxprune was not made here, and would execute code" in text
    assert "gift.py:build_model" in text
    assert "--trust" in text
    assert not (here / "executed").exists()


@pytest.mark.parametrize("command", [("export",), ("train", "--data", "digits"), ("report",)])
def test_a_run_whose_source_is_gone(command: tuple[str, ...], here: Path, call: Call) -> None:
    (here / "model.py").unlink()
    text = call(*command, folder=here, exit_code=2).stderr
    assert "there is no file" in text
    assert "why  model.fxprune was made of model.py" in text
    assert f"do   bring it back to {here}" in text


@pytest.mark.slow
def test_a_run_that_is_trusted_stays_so(here: Path) -> None:
    (here / "model.fxprune").rename(here / "moved.fxprune")
    run("export", "moved.fxprune", "--pt2", folder=here, exit_code=2)
    run("export", "moved.fxprune", "--pt2", "--trust", folder=here)
    run("export", "moved.fxprune", "--pt2", folder=here)
