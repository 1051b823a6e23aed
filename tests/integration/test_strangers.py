"""Runs that a stranger made execute nothing, and write nothing outside of themselves."""

import dataclasses
import importlib.util
import json
import os
import py_compile
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from fxprune.cli import commands
from fxprune.cli.spec import resolve
from fxprune.errors import RunError
from fxprune.formats import write_record
from fxprune.runs.promise import COMMAND, Promise
from fxprune.runs.promise import FILE as PROMISE
from fxprune.runs.run import PLAN, Run
from fxprune.trainer.job import Job
from fxprune.trainer.options import TrainOptions

PLANNED = {
    "inputs": [[[2, 1, 8, 8], "float32"]],
    "policy": "balance",
    "budget": "keep=0.5",
    "round_to": None,
    "every": 1,
    "seed": 0,
    "fingerprint": "",
    "torch": "",
}
CODE = "open({!r}, 'w')\nfrom torch import nn\ndef build_model(): return nn.Conv2d(1, 4, 3)\n"


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a stranger's run, and code in and beside it that would leave a file."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    folder = tmp_path / "here"
    code = CODE.format(str(tmp_path / "EXECUTED"))
    names = ("gift.py", "torchvision:gift.py", "timm:gift.py", "gift.fxprune/gift.py", "pkg/m.py")
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(code)
    (folder / "gift.fxprune" / "link.py").symlink_to("gift.py")
    monkeypatch.chdir(folder)
    return folder


def give(spec: str, base: str = "..", path: str = "gift.fxprune") -> None:
    write_record(Path(path) / PLAN, {"spec": spec, "input": None, "base": base, "plan": PLANNED})


def give_job(**names: Any) -> None:
    run = Run.open(Path("gift.fxprune"))
    Job(**{"data": "digits", "root": Path("data"), "options": TrainOptions()} | names).write(run)


def command(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *words: str
) -> str:
    """What a command that is refused says."""
    monkeypatch.setattr(sys, "argv", ["fxprune", *words])
    with pytest.raises(SystemExit) as caught:
        commands.main()
    text = capsys.readouterr().err
    assert caught.value.code == 2, text
    assert "Traceback" not in text
    return text


@pytest.mark.parametrize("word", ["export", "train", "report"])
@pytest.mark.parametrize(
    ("spec", "base"),
    [
        ("os:system{command='touch ../EXECUTED'}", ".."),
        ("subprocess:run{args='touch ../EXECUTED',shell=True}", ".."),
        ("gift.py", ".."),
        ("gift.py", "."),
        ("gift.py:build_model", "../../here"),
        ("gift:build_model", ".."),
        ("gift:build_model", "."),
        ("pkg.m:build_model", ".."),
        ("gift.fxprune/gift.py", ".."),
        ("gift.fxprune/../gift.py:build_model", ".."),
        ("link.py", "."),
        ("torchvision:gift.py", ".."),
        ("timm:gift.py", ".."),
        (" timm:gift.py {}", ".."),
        ("torchvision:../gift.py", ".."),
        ("torchvision:../gift", ".."),
        ("torchvision:gift", ".."),
        ("torchvision.gift:build_model", ".."),
        ("timm:hf-hub:stranger/model", ".."),
        ("timm:local-dir:gift", ".."),
        ("timm:resnet10t{checkpoint_path='gift.pth'}", ".."),
        ("torchvision:resnet18{weights=True}", ".."),
        ("torchvision:resnet18{weights=DEFAULT}", ".."),
        ("timm:resnet10t{pretrained=True}", ".."),
    ],
)
def test_a_spec_of_a_stranger(
    word: str,
    spec: str,
    base: str,
    here: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    give(spec, base)
    text = command(monkeypatch, capsys, word, *(["--data", "digits"] if word == "train" else []))
    assert "was not made here, and would execute code" in text or "has no network" in text
    assert not (here.parent / "EXECUTED").exists()


def test_an_absolute_path(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    give(f"{here}/gift.py:build_model")
    assert "was not made here" in command(monkeypatch, capsys, "export")


@pytest.mark.parametrize("word", ["export", "train"])
@pytest.mark.parametrize("kind", ["data", "loss", "metric", "transform"])
def test_other_names_are_looked_up_before_the_spec_is_imported(
    word: str,
    kind: str,
    here: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    give("gift.py")
    Run.open(Path("gift.fxprune")).record("spec", "gift.py")  # this one is the user's
    give_job(**{kind: "gift.py:build_model"})
    assert f"its {kind} gift.py:build_model" in command(monkeypatch, capsys, word)
    assert not (here.parent / "EXECUTED").exists()


@pytest.mark.parametrize("name", ["gift.py:build_model", "torchvision:resnet18"])
def test_a_registry_is_of_networks_alone(
    name: str, here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    give("torchvision:resnet18")
    give_job(transform=name)
    text = command(monkeypatch, capsys, "train", "gift.fxprune", "--device", "cpu")
    assert f"its transform {name}" in text
    assert not (here.parent / "EXECUTED").exists()


@pytest.mark.parametrize("word", ["train", "export"])
def test_a_name_that_the_user_gives_is_not_imported_from_a_strangers_folder(
    word: str, here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    give("torchvision:resnet18", base=".")
    give_job()
    words = (word, "gift.fxprune", "--transform", "gift:build_model")
    text = command(monkeypatch, capsys, *words)
    assert f"its transform gift:build_model would be imported from {here}/gift.fxprune" in text
    assert not (here.parent / "EXECUTED").exists()


def test_a_latency_command_of_a_stranger_is_not_executed(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    give("torchvision:resnet18")
    run = Run.open(Path("gift.fxprune"))
    promise = Promise(0.5, 1, cold=False, by_command=True, command="touch EXECUTED {model}")
    write_record(run.path / PROMISE, dataclasses.asdict(promise))
    assert "its latency command touch EXECUTED {model}" in command(monkeypatch, capsys, "export")
    assert not (here / "EXECUTED").exists()
    run.record("spec", run.spec)
    run.record(COMMAND, promise.command)  # as the command does that the user gave it to
    run.require(COMMAND, promise.command)


def test_what_was_trusted_is_asked_for_again_when_it_changes(here: Path) -> None:
    give("gift.py")
    path = Path("gift.fxprune")
    Run.open(path, trust=True).require("spec", "gift.py")
    Run.open(path).require("spec", "gift.py")
    (here / "gift.py").write_text("other = 1")
    with pytest.raises(RunError, match="has other code than what you trusted"):
        Run.open(path).require("spec", "gift.py")
    Run.open(path, trust=True).require("spec", "gift.py")
    Run.open(path).require("spec", "gift.py")
    give("pkg.m:build_model")
    Run.open(path, trust=True).require("spec", "pkg.m:build_model")
    (here / "pkg" / "m.py").write_text("other = 1")
    with pytest.raises(RunError, match="has other code than what you trusted"):
        Run.open(path).require("spec", "pkg.m:build_model")


def test_bytecode_beside_a_file_is_not_executed(here: Path) -> None:
    plain = here / "plain.py"
    plain.write_text("from torch import nn\ndef build_model(): return nn.Conv2d(1, 4, 3)\n")
    py_compile.compile(
        str(here / "gift.py"),
        cfile=importlib.util.cache_from_source(str(plain)),
        invalidation_mode=py_compile.PycInvalidationMode.UNCHECKED_HASH,
    )
    resolve("plain.py", "1x8x8")
    assert not (here.parent / "EXECUTED").exists()


@pytest.mark.parametrize("cached", [False, True])
def test_a_package_that_was_trusted_is_its_text(cached: bool, here: Path) -> None:
    harmless = "from torch import nn\ndef build_model(): return nn.Conv2d(1, 4, 3)\n"
    package, evil = here / f"bag{cached}", (here / "gift.py").read_text()
    package.mkdir()
    for name in ("__init__", "m"):
        (package / f"{name}.py").write_text(harmless)
    give(f"{package.name}.m:build_model")
    Run.open(Path("gift.fxprune"), trust=True).require("spec", f"{package.name}.m:build_model")
    if cached:
        for name in ("__init__", "m"):
            py_compile.compile(
                str(here / "gift.py"),
                cfile=importlib.util.cache_from_source(str(package / f"{name}.py")),
                invalidation_mode=py_compile.PycInvalidationMode.UNCHECKED_HASH,
            )
        Run.open(Path("gift.fxprune")).require("spec", f"{package.name}.m:build_model")
        resolve(f"{package.name}.m:build_model", "1x8x8")
    else:
        (package / "__init__.py").write_text(evil)
        with pytest.raises(RunError, match="has other code than what you trusted"):
            Run.open(Path("gift.fxprune")).require("spec", f"{package.name}.m:build_model")
    assert not (here.parent / "EXECUTED").exists()


def test_a_file_that_is_swapped_before_its_import(here: Path) -> None:
    evil = (here / "gift.py").read_text()
    (here / "gift.py").write_text(CODE.partition("\n")[2])
    give("gift.py")
    Run.open(Path("gift.fxprune"), trust=True).require("spec", "gift.py")
    Run.open(Path("gift.fxprune")).require("spec", "gift.py")
    (here / "gift.py").write_text(evil)
    resolve("gift.py", "1x8x8", base=here)
    assert not (here.parent / "EXECUTED").exists()


def test_a_run_that_is_made_of_a_trusted_one_is_trusted_as_far(here: Path) -> None:
    give("gift.py")
    run = Run.open(Path("gift.fxprune"), trust=True)
    run.require("spec", "gift.py")
    new = dataclasses.replace(run, path=here / "new.fxprune", trusted=False)
    run.inherit(new, "spec", "gift.py")
    new.require("spec", "gift.py")
    (here / "gift.py").write_text("other = 1")
    with pytest.raises(RunError, match="has other code than what you trusted"):
        new.require("spec", "gift.py")


def test_code_that_the_user_named_may_change(here: Path) -> None:
    give("gift.py")
    run = Run.open(Path("gift.fxprune"), trust=True)
    run.record("spec", "gift.py")
    run.require("spec", "gift.py")
    (here / "gift.py").write_text("other = 1")
    Run.open(run.path).require("spec", "gift.py")


@pytest.mark.parametrize("name", ["report.html", "metrics.jsonl", "checkpoint.safetensors", "tb"])
def test_a_run_of_a_stranger_writes_nothing_elsewhere(
    name: str,
    here: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    give("torchvision:resnet18")
    (here.parent / "mine").mkdir()
    (here / "gift.fxprune" / name).symlink_to(here.parent / "mine")
    text = command(monkeypatch, capsys, "report", "gift.fxprune")
    assert "would write to files outside of it" in text
    assert f"{name} is a link to {here.parent / 'mine'}" in text
    Run.open(Path("gift.fxprune"), trust=True).require("spec", "torchvision:resnet18")
    Run.open(Path("gift.fxprune")).require("spec", "torchvision:resnet18")


@pytest.mark.slow
def test_a_module_in_the_current_folder_hides_none_of_the_packages(here: Path) -> None:
    for name in ("timm", "typer", "torch", "torchvision", "safetensors"):
        (here / f"{name}.py").write_text(CODE.format(str(here.parent / "EXECUTED")))
    give("timm:resnet10t")
    done = subprocess.run(
        [sys.executable, "-m", "fxprune", "export"],
        cwd=here,
        env={**os.environ, "PYTHONPATH": str(Path(commands.__file__).parents[2])},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 2
    assert "has no checkpoint.safetensors" in done.stderr
    assert not (here.parent / "EXECUTED").exists()


def test_the_plan_is_a_file_and_nothing_else(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    plan = here / "gift.fxprune" / PLAN
    plan.write_text(json.dumps({"spec": "gift.py"}))
    assert "was not written by this version" in command(monkeypatch, capsys, "export")
    plan.unlink()
    plan.symlink_to("/dev/zero")
    assert "not a regular file" in command(monkeypatch, capsys, "export")
