"""What is built is what is there."""

import importlib.metadata
import tomllib
from pathlib import Path

import fxprune

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


def test_every_folder_of_python_files_is_packaged() -> None:
    package = ROOT / "fxprune"
    found = {path.parent.relative_to(ROOT) for path in package.rglob("*.py")}
    names = {".".join(folder.parts) for folder in found} | {"fxprune.passes"}
    assert set(PROJECT["tool"]["setuptools"]["packages"]) == names


def test_passes_is_one_folder_under_two_names() -> None:
    link = ROOT / "fxprune" / "passes"
    assert link.is_symlink()
    assert link.resolve() == ROOT / "passes"


def test_there_is_one_version() -> None:
    assert importlib.metadata.version("fxprune") == fxprune.__version__
    assert "version" in PROJECT["project"]["dynamic"]


def test_the_version_stands_in_the_changelog_and_the_citation() -> None:
    assert f"\n## {fxprune.__version__} - " in (ROOT / "CHANGELOG.md").read_text()
    assert f"\nversion: {fxprune.__version__}\n" in (ROOT / "CITATION.cff").read_text()
