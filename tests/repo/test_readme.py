"""What the README says is run: its loop, and its three recipes as files in their folders.

One process does all of it. A block that begins with `# path/of/a/plug-in.py` is put into a folder
that the package looks into beside its own; the other blocks are executed as they stand.
"""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

import fxprune

TEXT = (Path(__file__).parents[2] / "README.md").read_text()
BLOCKS = re.findall(r"^```python\n(.*?)^```", TEXT, re.MULTILINE | re.DOTALL)
PLUGIN = re.compile(r"# (?:fxprune/)?(rules|policies|passes)/(\w+)\.py\n")

RUNNER = """
import importlib, json, sys
for folder in ("rules", "policies", "passes"):
    importlib.import_module(f"fxprune.{folder}").__path__.append(folder)
for block in json.load(sys.stdin):
    space = {"__name__": "readme"}
    exec(compile(block, "README.md", "exec"), space)
"""


def test_the_readme_has_a_loop_and_three_recipes() -> None:
    plugins = [match.group(1) for block in BLOCKS if (match := PLUGIN.match(block))]
    assert plugins == ["rules", "policies", "passes"]
    assert len(BLOCKS) == 9


def test_every_python_block_runs(tmp_path: Path) -> None:
    programs = []
    for block in BLOCKS:
        match = PLUGIN.match(block)
        if match is None:
            programs.append(block)
            continue
        path = tmp_path / match.group(1) / f"{match.group(2)}.py"
        path.parent.mkdir()
        path.write_text(block)
    done = subprocess.run(
        [sys.executable, "-c", RUNNER],
        input=json.dumps(programs),
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=250,
    )
    assert done.returncode == 0, done.stderr
    assert re.search(r"^\d+ parameters, largest difference \d\.\de-0[5-9]$", done.stdout, re.M)
    assert (tmp_path / "compact.onnx").exists()


def test_the_op_of_the_first_recipe_has_no_rule_yet() -> None:
    class Rows(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv1, self.conv2 = nn.Conv2d(3, 16, 3), nn.Conv2d(16, 8, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            out: torch.Tensor = self.conv2(self.conv1(x).cumsum(dim=3))
            return out

    graph = fxprune.analyze(Rows(), (torch.zeros(1, 3, 16, 16),))
    assert not graph.groups
    assert "there is no rule for aten.cumsum" in {pinned.reason for pinned in graph.pinned}


@pytest.mark.parametrize("word", ["fxprune instrument model.py", "fxprune export --onnx"])
def test_the_readme_names_the_two_commands(word: str) -> None:
    assert word in TEXT
