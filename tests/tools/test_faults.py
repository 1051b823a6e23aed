"""Seeded faults are drawn the same way each time, change something, and are caught."""

import ast
from pathlib import Path

import pytest

from tools.faults import ROOT, Fault, caught, change, pairs, seeded, sites


def test_modules_stand_beside_their_tests() -> None:
    assert (Path("fxprune/registry.py"), Path("tests/unit/test_registry.py")) in list(pairs())


def test_each_kind_of_site_is_changed() -> None:
    source = "if a < 1 and b:\n    c = d + True\n"
    changed = set()
    for number in range(len(sites(ast.parse(source)))):
        tree = ast.parse(source)
        change(sites(tree)[number])
        changed.add(ast.unparse(ast.fix_missing_locations(tree)))
    assert changed == {
        "if not (a < 1 and b):\n    c = d + True",
        "if a < 1 or b:\n    c = d + True",
        "if a <= 1 and b:\n    c = d + True",
        "if a < 2 and b:\n    c = d + True",
        "if a < 1 and b:\n    c = d - True",
        "if a < 1 and b:\n    c = d + False",
    }


def test_faults_are_seeded() -> None:
    first, again, other = ([fault for fault, *_ in seeded(5, seed)] for seed in (1, 1, 2))
    assert first == again != other
    assert all(fault.before != fault.after for fault in first)


@pytest.mark.slow
def test_a_fault_is_caught_and_taken_out(tmp_path: Path) -> None:
    (tmp_path / "fxprune").mkdir()
    (tmp_path / "fxprune" / "__init__.py").write_text("")
    (tmp_path / "fxprune" / "one.py").write_text("ONE = 1\n")
    test = tmp_path / "test_one.py"
    test.write_text("from fxprune.one import ONE\n\n\ndef test():\n    assert ONE == 1\n")
    fault = Fault("fxprune/one.py", 1, "1", "2")
    assert caught(tmp_path, fault, "ONE = 2\n", test, 60)
    assert not caught(tmp_path, fault, "ONE = 1  # no fault\n", test, 60)
    assert (tmp_path / "fxprune" / "one.py").read_text() == "ONE = 1\n"
    assert ROOT.is_dir()
