"""What a run names is imported only if its user gave the name, or trusts the run."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from torch import nn

import fxprune
from fxprune.errors import RunError
from fxprune.formats import write_record
from fxprune.runs import trust
from fxprune.runs.run import PLAN, Run


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """A run that was made in the current folder."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.chdir(tmp_path)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3))
    gated = fxprune.instrument(model, (torch.zeros(2, 3, 8, 8),))
    return Run.create(Path("a.fxprune"), gated, "model.py:build")


def refusal(run: Run, kind: str, name: str) -> str:
    with pytest.raises(RunError) as caught:
        run.require(kind, name)
    return str(caught.value)


def test_what_the_user_gave_may_run(run: Run) -> None:
    Run.open(run.path).require("spec", run.spec)
    run.record("data", "data.py:load")
    Run.open(run.path).require("data", "data.py:load")


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("spec", "os:system{command='echo'}"),
        ("spec", "model.py:other"),
        ("spec", "model.py"),
        ("data", "model.py:build"),  # given, but for something else
        ("loss", "torch.nn.functional:cross_entropy"),
        ("spec", "timm:resnet10t{checkpoint_path='/tmp/a.pth'}"),
        ("spec", "timm:resnet10t{pretrained_cfg={'file':'a'}}"),
        ("spec", "torchvision:resnet18{weights=DEFAULT}"),
        ("spec", "torchvision:resnet18{a=1,b=c}"),
        ("spec", "torchvision.models:resnet18"),
        ("spec", "timm:resnet10t\nos:system"),
    ],
)
def test_what_nobody_gave_is_refused(run: Run, kind: str, name: str) -> None:
    text = refusal(run, kind, name)
    assert text.startswith("a.fxprune was not made here, and would execute code\n")
    assert f"its {kind} {trust.shown(name)} would be imported" in text
    assert "--trust (in Python trust=True)" in text


@pytest.mark.parametrize(
    "name",
    [
        "torchvision:resnet18",
        "timm:resnet10t",
        "timm:resnet10t.c3_in1k",
        "torchvision:resnet18{num_classes=10}",
        "timm:resnet10t{drop_rate=0.1, in_chans=1,}",
        "timm:resnet10t{global_pool=None,x=True}",
    ],
)
def test_names_of_registries_run_no_code_of_the_run(run: Run, name: str) -> None:
    run.require("spec", name)


def test_trust_is_remembered_for_this_folder(run: Run, tmp_path: Path) -> None:
    shutil.copytree(run.path, tmp_path / "b.fxprune")
    copy = Run.open(tmp_path / "b.fxprune")
    assert "was not made here" in refusal(copy, "spec", copy.spec)
    trusted = Run.open(tmp_path / "b.fxprune", trust=True)
    trusted.require("spec", trusted.spec)
    Run.open(tmp_path / "b.fxprune").require("spec", run.spec)
    assert "was not made here" in refusal(copy, "spec", "other.py")


def test_trust_without_a_state_folder(
    run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("x")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "file"))
    refusal(run, "spec", run.spec)
    Run.open(run.path, trust=True).require("spec", run.spec)


@pytest.mark.parametrize("content", [b"", b"\xff\xfe\0", b"content \xff"])
def test_a_damaged_mark_is_asked_for_again(run: Run, tmp_path: Path, content: bytes) -> None:
    Run.open(run.path, trust=True).require("spec", "other.py")
    for mark in (tmp_path / "state" / "fxprune" / "trust").iterdir():
        mark.write_bytes(content)
    refusal(run, "spec", "other.py")
    Run.open(run.path, trust=True).require("spec", "other.py")


def test_another_base_is_another_name(run: Run) -> None:
    plan = json.loads((run.path / PLAN).read_text())
    del plan["checksum"], plan["format"]
    write_record(run.path / PLAN, {**plan, "base": "../elsewhere"})
    assert "was not made here" in refusal(Run.open(run.path), "spec", run.spec)


def test_what_a_stranger_wrote_is_shown_on_one_line() -> None:
    assert trust.shown("a\n\x1b[2Jb") == r"a\n\x1b[2Jb"
    assert len(trust.shown("x" * 999)) == 201
