"""The commands in README and docs: each is read by the command line, those of the guides run."""

import sys
from pathlib import Path

import pytest
import safetensors.torch
import typer
from typer.testing import CliRunner

from fxprune.cli.commands import app
from fxprune.demo import build_model
from tests.support.cli import PLAIN_MODEL
from tests.support.docs_blocks import ROOT, commands, files, pages
from tests.support.images import make_folder

PAGES = [page for page in pages() if commands(page)]
GUIDES = ROOT / "docs" / "guides"
PASSES = """
from dataclasses import dataclass

from fxprune.passes import Pass


@dataclass(frozen=True)
class DropDropout(Pass):
    def requires(self, program):
        pass

    def run(self, program):
        return program

    def ensures(self, before, after):
        pass
"""
BEFORE = {
    "export": (("instrument", "model.py", "--input", "1x8x8"),),
    "formats": (
        ("instrument", "model.py", "--input", "1x8x8", "-o", "digits.fxprune"),
        ("train", "--data", "digits", "--epochs", "2"),
    ),
    "own-data": (("instrument", "model.py", "--input", "3x16x16"),),
    "recipe": (("instrument", "model.py", "--input", "1x8x8"),),
}
"""What a reader has done before the commands of a page."""


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_command_of_a_page_is_one(page: Path) -> None:
    root = typer.main.get_command(app)
    for name, *words in commands(page):
        root.commands[name].make_context(name, [*words])  # type: ignore[attr-defined]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["choose-layers", "own-data", "recipe", "export", "formats"])
def test_the_commands_of_a_guide_run_as_they_stand(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    page = GUIDES / f"{name}.md"
    model = PLAIN_MODEL.replace("Conv2d(1,", "Conv2d(3,") if name == "own-data" else PLAIN_MODEL
    texts = {"model.py": model, "my_passes.py": PASSES} | files(page)
    make_folder(tmp_path / "images")
    Path("images/train").rename("photos")
    for file, text in texts.items():
        Path(file).write_text(text)
    for words in (*BEFORE.get(name, ()), *commands(page)):
        done = CliRunner().invoke(app, [*words], catch_exceptions=False)
        assert done.exit_code == 0, done.output


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:the dense network is right on")  # it is not trained
def test_the_run_of_the_guide_to_trained_networks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    safetensors.torch.save_file(build_model().state_dict(), "dense.safetensors")
    (words,) = (w for w in commands(GUIDES / "trained-network.md") if "digits" in w)
    done = CliRunner().invoke(app, [*words, "--epochs", "1"], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    assert Path("half.onnx").exists()
