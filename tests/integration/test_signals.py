"""A signal ends a command with one line and its exit code, whatever it is at."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import safetensors.torch

from fxprune.cli.spec import resolve
from fxprune.runs.run import Run
from tests.support.cli import PLAIN_MODEL

KILLS = """
import os, signal, sys

signal.signal({number}, signal.SIG_DFL)


class Kill:
    def find_spec(self, name, path=None, target=None):
        if name == "torch":
            {kill}

    def __set_name__(self, owner, name):  # Python makes a RuntimeError of what is raised here
        os.kill(os.getpid(), {number})


sys.meta_path.insert(0, Kill())
sys.argv = ["fxprune", "inspect", "torchvision:resnet18"]
from fxprune.__main__ import main
main()
"""


PASS = """
import os
from dataclasses import dataclass

from fxprune.passes import Pass


@dataclass(frozen=True)
class Kill(Pass):
    def requires(self, program):
        pass

    def run(self, program):
        os.kill(os.getpid(), 15)
        return program

    def ensures(self, before, after):
        pass
"""

DATA = """
import os

import fxprune.data


def digits():
    return fxprune.data.load("digits")


def loss(outputs, targets):
    from torch.nn.functional import cross_entropy

    loss.calls += 1
    if loss.calls == int(os.environ.get("KILL_AT", 0)):
        os.kill(os.getpid(), int(os.environ["KILL_BY"]))
    return cross_entropy(outputs, targets)


loss.calls = 0
"""


def python(
    code: str | list[str], folder: Path, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Run a text as a program, or `fxprune` with words."""
    words = ["-c", code] if isinstance(code, str) else ["-m", "fxprune", *code]
    own = {"PYTHONPATH": str(Path(__file__).parents[2]), "TMPDIR": str(folder / "tmp")}
    (folder / "tmp").mkdir(exist_ok=True)
    return subprocess.run(
        [sys.executable, *words],
        cwd=folder,
        env=os.environ | own | {"XDG_STATE_HOME": str(folder)} | environment,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )


@pytest.mark.sampled(2)
@pytest.mark.parametrize(
    ("number", "code", "line"),
    [(15, 143, "terminated"), (2, 130, "interrupted"), (1, 129, "hung up")],
)
@pytest.mark.parametrize("kill", ["self.__set_name__(None, '')", "type('A', (), {'a': self})"])
def test_amid_the_imports(tmp_path: Path, number: int, code: int, line: str, kill: str) -> None:
    done = python(KILLS.format(number=number, kill=kill), tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (code, "", f"{line}\n")


def test_after_the_work_is_done(tmp_path: Path) -> None:
    done = python(
        "import atexit, os, sys; atexit.register(os.kill, os.getpid(), 15);"
        "sys.argv = ['fxprune', '--version']; from fxprune.__main__ import main; main()",
        tmp_path,
    )
    assert done.returncode == 0
    assert done.stdout.startswith("fxprune ")


@pytest.mark.slow
def test_amid_a_step_and_amid_an_export(tmp_path: Path) -> None:
    (tmp_path / "model.py").write_text(PLAIN_MODEL)
    (tmp_path / "mine.py").write_text(DATA)
    (tmp_path / "passes_of_mine.py").write_text(PASS)
    made = python(["instrument", "model.py", "--input", "1x8x8", "-o", "a.fxprune"], tmp_path)
    assert made.returncode == 0, made.stderr
    train = ["train", "a.fxprune", "--data", "mine.py:digits", "--loss", "mine.py:loss"]
    train += ["--epochs", "2", "--device", "cpu"]
    done = python(train, tmp_path, KILL_AT="4", KILL_BY="15")
    assert done.returncode == 143
    assert done.stderr.splitlines()[-1] == (
        "stopped; fxprune train a.fxprune goes on after the last step"
    )
    assert "Traceback" not in done.stderr
    assert Run.open(tmp_path / "a.fxprune").standing().stopped
    done = python(train, tmp_path)
    assert done.returncode == 0, done.stderr
    assert len(Run.open(tmp_path / "a.fxprune").metrics()) == 2

    weights = resolve(str(tmp_path / "model.py"), "1x8x8").model.state_dict()
    safetensors.torch.save_file(weights, tmp_path / "w.safetensors")
    prune = ["prune", *train[2:], "model.py", "--input", "1x8x8", "--macs", ".5"]
    prune += ["--weights", "w.safetensors", "-o", "b.fxprune"]
    done = python(prune, tmp_path, KILL_AT="20", KILL_BY="2")
    assert (done.returncode, done.stdout) == (130, "")
    assert done.stderr.splitlines()[-1] == (
        "stopped; fxprune train b.fxprune goes on from the last whole epoch, then "
        "fxprune export b.fxprune"
    )
    done = python(["train", "b.fxprune"], tmp_path)
    assert done.returncode == 0, done.stderr

    measure = ["--latency-command", "sh -c 'kill -TERM $PPID; echo 1 {model}'"]
    done = python([*prune[:-1], "c.fxprune", *measure], tmp_path)
    assert (done.returncode, done.stdout) == (143, "")
    assert done.stderr.splitlines()[-1] == (
        "stopped; it is trained, and fxprune export c.fxprune writes the file"
    )
    (tmp_path / "c.onnx").unlink()

    done = python(["export", "a.fxprune", "--passes", "passes_of_mine:Kill"], tmp_path)
    assert (done.returncode, done.stdout) == (143, "")
    assert done.stderr.splitlines()[-1] == "terminated"
    assert not list(tmp_path.glob("*.onnx"))
    assert not list((tmp_path / "tmp").glob("*fxprune*"))
