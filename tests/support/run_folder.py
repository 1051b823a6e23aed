"""Fixtures: a folder with a small model and a run of it, and commands that are called there."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from fxprune.cli import commands
from fxprune.runs.run import Run
from tests.support.cli import MODEL

ODD = """\
from torch import nn


class Raises(nn.Module):
    def forward(self, x):
        if x.dim() == 4:
            raise ValueError("no images")
        return x


def broken():
    return nn.Conv2d(3, 5, 3, groups=2)


def pinned():
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
"""


def command(patch: pytest.MonkeyPatch, *arguments: str, folder: Path) -> object:
    """Runs the command line in this process; returns its exit code."""
    patch.chdir(folder)
    patch.setattr(sys, "path", list(sys.path))
    patch.setattr(sys, "argv", ["fxprune", *arguments])
    known = set(sys.modules)
    try:
        commands.main()
    except SystemExit as end:
        return end.code or 0
    finally:
        for name in sys.modules.keys() - known:  # the folder's own, of which others have namesakes
            if str(getattr(sys.modules[name], "__file__", None)).startswith(str(folder)):
                del sys.modules[name]
    return 0


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with model.py and an instrumented model.fxprune."""
    folder = tmp_path_factory.mktemp("cli")
    (folder / "model.py").write_text(MODEL)
    (folder / "odd.py").write_text(ODD)
    with pytest.MonkeyPatch.context() as patch:
        code = command(patch, "instrument", "model.py", folder=folder)
    assert code == 0
    return folder


@pytest.fixture
def here(folder: Path, tmp_path: Path) -> Path:
    """A fresh folder with copies of what is in `folder`."""
    for path in folder.rglob("*"):
        if path.is_file() and "__pycache__" not in path.parts:
            copy = tmp_path / path.relative_to(folder)
            copy.parent.mkdir(exist_ok=True)
            copy.write_bytes(path.read_bytes())
    made = Run.open(tmp_path / "model.fxprune")
    made.record("spec", made.spec)
    return tmp_path


@pytest.fixture
def call(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., subprocess.CompletedProcess[str]]:
    """What `run` does, in this process: for tests that do not depend on one of their own."""

    def called(
        *arguments: str, folder: Path, exit_code: int = 0
    ) -> subprocess.CompletedProcess[str]:
        code = command(monkeypatch, *arguments, folder=folder)
        out, err = capsys.readouterr()
        assert code == exit_code, out + err
        return subprocess.CompletedProcess(arguments, exit_code, out, err)

    return called
