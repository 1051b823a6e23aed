"""What README and docs say is run: each python block, and the recipes as files in their folders."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

import fxprune
from tests.support.docs_blocks import ROOT, Block, blocks, pages, run

README = (ROOT / "README.md").read_text()
PAGES = [page for page in pages() if blocks(page)]


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_python_block_of_a_page_runs(page: Path, tmp_path: Path) -> None:
    printed = run(page, tmp_path)
    if page.name == "README.md":
        assert re.search(r"^\d+ parameters, largest difference \d\.\de-0[5-9]$", printed, re.M)
        assert (tmp_path / "compact.onnx").exists()


def test_there_is_a_recipe_for_each_kind_of_plug_in() -> None:
    found = [block.plugin for page in PAGES for block in blocks(page) if block.plugin]
    assert {path.parent.name for path in found} == {"rules", "policies", "passes"}
    assert len(found) == len(set(found))


@pytest.mark.parametrize(
    "block",
    [block for page in PAGES for block in blocks(page) if block.plugin],
    ids=lambda block: str(block.plugin),
)
def test_a_recipe_is_as_make_lint_wants_it(block: Block) -> None:
    assert block.plugin is not None
    inside = block.plugin.parts[0] != "passes"
    name = str(Path("fxprune") / block.plugin if inside else block.plugin)
    for command in (("check",), ("format", "--diff")):
        done = subprocess.run(
            [sys.executable, "-m", "ruff", *command, "--stdin-filename", name, "-"],
            input=block.text,
            cwd=ROOT,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stdout + done.stderr


def test_the_op_of_the_first_recipe_has_no_rule_yet() -> None:
    class Rows(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv1, self.conv2 = nn.Conv2d(3, 16, 3), nn.Conv2d(16, 8, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            out: torch.Tensor = self.conv2(self.conv1(x).logcumsumexp(dim=3))
            return out

    graph = fxprune.analyze(Rows(), (torch.zeros(1, 3, 16, 16),))
    assert not graph.groups
    assert "there is no rule for aten.logcumsumexp" in {pinned.reason for pinned in graph.pinned}


@pytest.mark.parametrize("word", ["fxprune instrument model.py", "fxprune export --onnx"])
def test_the_readme_names_the_two_commands(word: str) -> None:
    assert word in README


def test_every_public_name_stands_on_the_reference_page() -> None:
    text = (ROOT / "docs" / "reference" / "api.md").read_text()
    assert [name for name in fxprune.__all__ if f":: fxprune.{name}\n" not in text] == []
