"""`fxprune train` under the real torchrun: two processes, one run directory."""

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import torch

from fxprune.formats import read_tensors
from fxprune.runs.run import Run
from tests.support.cli import MODEL, python, run

TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m"]


def torchrun(*arguments: str, folder: Path, exit_code: int = 0) -> subprocess.CompletedProcess[str]:
    """Runs `fxprune` in two processes."""
    command = (*TORCHRUN, "fxprune", *arguments)
    return python(*command, folder=folder, exit_code=exit_code, GLOO_SOCKET_IFNAME="lo")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs that begin alike, two by two."""
    folder = tmp_path_factory.mktemp("torchrun")
    (folder / "model.py").write_text(MODEL)
    policy = ["--policy", "utility{warmup=8,reallocate=5}", "--budget", "macs=0.4"]
    run("instrument", "model.py", *policy, "-o", "straight.fxprune", folder=folder)
    shutil.copytree(folder / "straight.fxprune", folder / "resumed.fxprune")
    Run.open(folder / "resumed.fxprune").record("spec", "model.py")
    return folder


@pytest.mark.slow
def test_a_run_of_two_processes(folder: Path) -> None:
    train = ["--data", "digits", "--epochs", "3", "--batch-size", "64", "--device", "cpu", "--json"]
    train += ["--train-macs", "0.6"]  # widths that fall meanwhile
    straight = torchrun("train", "straight.fxprune", *train, folder=folder)
    assert json.loads(straight.stdout)  # one process prints
    assert straight.stderr.count("epoch   1 ") == 1
    lines = (folder / "straight.fxprune" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["epoch"] for line in lines] == [1, 2, 3]

    first = torchrun("train", "resumed.fxprune", *train, "--minutes", "0", folder=folder)
    assert first.stderr.count("epoch   1 ") == 1
    torchrun("train", "resumed.fxprune", *train, folder=folder)
    one, two = (
        read_tensors(folder / f"{name}.fxprune" / "checkpoint.safetensors")[0]
        for name in ("straight", "resumed")
    )
    assert one.keys() == two.keys()
    assert [key for key in one if not torch.equal(one[key], two[key])] == []

    run("train", "straight.fxprune", "--epochs", "4", folder=folder)  # goes on alone
    lines = (folder / "straight.fxprune" / "metrics.jsonl").read_text().splitlines()
    assert len(lines) == 4
    run("export", "straight.fxprune", "--pt2", folder=folder)


@pytest.mark.slow
def test_two_processes_do_what_one_does(folder: Path) -> None:
    """They share the same batches with the same crops; without norms that is well defined."""
    (folder / "plain.py").write_text(re.sub(r"nn\.BatchNorm2d\(.*\)", "nn.Identity()", MODEL))
    run("instrument", "plain.py", "-o", "one.fxprune", folder=folder)
    shutil.copytree(folder / "one.fxprune", folder / "two.fxprune")
    Run.open(folder / "two.fxprune").record("spec", "plain.py")
    metrics = {}
    for name, start in (("one", run), ("two", torchrun)):
        train = ["--data", "digits", "--epochs", "1", "--batch-size", "64", "--device", "cpu"]
        start("train", f"{name}.fxprune", *train, folder=folder)
        metrics[name] = json.loads((folder / f"{name}.fxprune" / "metrics.jsonl").read_text())
    for key in ("train_loss", "train_accuracy", "val_loss", "val_accuracy"):
        assert metrics["two"][key] == pytest.approx(metrics["one"][key], rel=1e-4)
