"""Imports go down only, plug-ins are named nowhere, and three modules alone speak to ONNX.

The imports are read from the source with ast, so that imports inside functions and under
TYPE_CHECKING count as well.
"""

import ast
from collections.abc import Iterator
from pathlib import Path

import networkx as nx
import pytest

from tests.support.modules import MODULES

ROOT = Path(__file__).parents[2]

# Lowest first. A name is a package of fxprune with all its modules, or a module at the top.
# A module imports from its own floor and from lower ones.
FLOORS = (
    ("errors", "draws", "equivalence", "user_lines"),
    ("registry", "files", "formats", "data", "tracing"),
    ("channels", "groups"),
    ("rules", "policies", "budget", "bank"),
    ("analysis", "gated"),
    ("passes",),
    ("export",),
    ("api",),
    ("runs",),
    ("trainer",),
    ("",),  # the public names: fxprune/__init__.py
    ("report",),
    ("demo",),
    ("cli", "__main__"),
)
FLOOR = {name: number for number, names in enumerate(FLOORS) for name in names}
FOLDERS = ("rules", "policies", "passes")


def imported(path: Path) -> Iterator[tuple[str, int]]:
    """The absolute names that a file imports, each with its line; `from a import b` is `a.b`."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno} is a relative import"
            yield from ((f"{node.module}.{alias.name}", node.lineno) for alias in node.names)


def own(path: Path) -> Iterator[tuple[str, int]]:
    """The modules of fxprune that a file imports; a name inside a module counts as the module."""
    for name, line in imported(path):
        top, _, rest = name.partition(".")
        if top != "fxprune":
            continue
        while rest and rest not in MODULES:
            rest = rest.rpartition(".")[0]
        yield rest, line


def floor(module: str) -> int | None:
    return FLOOR.get(module.partition(".")[0])


def is_plugin(path: Path) -> bool:
    """A plug-in's module holds a class that gives `keys` a value."""
    classes = [
        node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.ClassDef)
    ]
    return any(
        isinstance(target, ast.Name) and target.id == "keys"
        for node in classes
        for item in node.body
        if isinstance(item, ast.Assign | ast.AnnAssign) and item.value is not None
        for target in (item.targets if isinstance(item, ast.Assign) else [item.target])
    )


PLUGINS = {
    name for name, path in MODULES.items() if name.partition(".")[0] in FOLDERS and is_plugin(path)
}


@pytest.mark.parametrize("module", MODULES, ids=lambda name: name or "fxprune")
def test_a_module_imports_only_from_its_floor_and_below(module: str) -> None:
    here = floor(module)
    assert here is not None, f"fxprune.{module} has no floor: put it into FLOORS"
    above = [
        f"{MODULES[module]}:{line} imports fxprune.{other}"
        for other, line in own(MODULES[module])
        if (there := floor(other)) is None or there > here
    ]
    assert above == []


def test_imports_have_no_cycle() -> None:
    graph = nx.DiGraph(
        (module, other)
        for module, path in MODULES.items()
        for other, _ in own(path)
        if module != other
    )
    assert [sorted(part) for part in nx.strongly_connected_components(graph) if len(part) > 1] == []


def test_nothing_outside_a_folder_names_one_of_its_plug_ins() -> None:
    named = [
        f"{path}:{line} names the plug-in fxprune.{other}"
        for module, path in MODULES.items()
        for other, line in own(path)
        if other in PLUGINS and other.partition(".")[0] != module.partition(".")[0]
    ]
    assert named == []


def test_only_three_modules_import_onnx() -> None:
    banned = {"onnx", "onnxruntime", "onnxscript", "onnx_ir"}
    users = {
        module
        for module, path in MODULES.items()
        for name, _ in imported(path)
        if name.partition(".")[0] in banned
    }
    assert users == {"export.onnx", "export.runtime", "export.low_precision"}


def test_the_reader_of_imports_sees_what_it_must(tmp_path: Path) -> None:
    path = tmp_path / "sample.py"
    path.write_text(
        "import torch.fx\n"
        "from fxprune import errors\n"
        "def f():\n"
        "    from fxprune.registry import collect, build\n"
        "class A:\n"
        "    keys = ('a',)\n"
    )
    assert list(own(path)) == [("errors", 2), ("registry", 4), ("registry", 4)]
    assert is_plugin(path)
    path.write_text("class A:\n    keys: tuple[str, ...]\n")
    assert not is_plugin(path)


def test_plug_ins_are_found_in_each_folder() -> None:
    assert {name.partition(".")[0] for name in PLUGINS} == set(FOLDERS)
