"""Tests import no tests, read what the package offers, and are named for a module of it."""

import ast
import re
from collections import Counter
from pathlib import Path

import pytest

from tests.support.modules import MODULES, ROOT

TESTS = sorted((ROOT / "tests").rglob("*.py"))

OTHERS = {"_dynamo", "_assert", "_pytree", "_metadata", "_forward_hooks", "_repr_html_"}
OTHERS |= {"_non_persistent_buffers_set"}
"""Of PyTorch, which has no public ones for these, and of Jupyter."""


def private(source: str) -> set[str]:
    """The private names that a source reads of others than `self`, `cls` and its own modules."""
    return {
        node.attr
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Attribute)
        and re.match(r"_[a-z]", node.attr)
        and not (isinstance(node.value, ast.Name) and node.value.id in ("self", "cls"))
    } | {
        alias.name
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
        if re.match(r"_[a-z]", alias.name)
    }


@pytest.mark.parametrize("path", TESTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_tests_read_no_private_name(path: Path) -> None:
    assert private(path.read_text()) - OTHERS == set()


def test_tests_import_from_support_alone() -> None:
    wrong: Counter[str] = Counter()
    for path in TESTS:
        for node in ast.walk(ast.parse(path.read_text())):
            module = node.module or "" if isinstance(node, ast.ImportFrom) else ""
            if module.startswith("tests") and not module.startswith("tests.support"):
                wrong[str(path.relative_to(ROOT))] += 1
    assert not wrong


def test_a_unit_test_is_named_for_its_module() -> None:
    """What takes several modules is in another folder; a contract is of all plug-ins of a kind."""
    unit = ROOT / "tests" / "unit"
    odd = [
        path.relative_to(unit).as_posix()
        for path in unit.rglob("test_*.py")
        if ".".join((*path.relative_to(unit).parts[:-1], path.stem.removeprefix("test_")))
        not in MODULES
    ]
    kinds = ("passes", "policies", "rules")
    contracts = [f"{kind}/test_contract.py" for kind in kinds]
    assert sorted(odd) == sorted([*contracts, "policies/test_controls.py"])


def test_the_reader_of_private_names_sees_what_it_must() -> None:
    source = "from a import _b\nx._c.d\nself._e\nx.__f__\n_g = 1\n"
    assert private(source) == {"_b", "_c"}
