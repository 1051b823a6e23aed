"""Seeded faults: are they caught by the tests that stand beside what they break?

    python tools/faults.py --n 100 --seed 0 --json build/faults.json

Each fault changes one operator, constant or condition of a module that has a test file of its own
(`fxprune/budget/layers.py` and `tests/unit/budget/test_layers.py`), and the tests of that file that
are not slow are run on a copy of the repository. A fault that they let through is printed with its
line: either it changes nothing, or a test is missing.
"""

import argparse
import ast
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

ROOT = Path(__file__).parent.parent

SWAPS: dict[type[ast.AST], type[ast.AST]] = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.FloorDiv,
    ast.Div: ast.Mult,
    ast.FloorDiv: ast.Mult,
    ast.Lt: ast.LtE,
    ast.LtE: ast.Lt,
    ast.Gt: ast.GtE,
    ast.GtE: ast.Gt,
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot,
    ast.IsNot: ast.Is,
    ast.In: ast.NotIn,
    ast.NotIn: ast.In,
    ast.And: ast.Or,
    ast.Or: ast.And,
}


@dataclass(frozen=True)
class Fault:
    """A change of one line, and whether a test fails by it."""

    module: str
    line: int
    before: str
    after: str
    caught: bool | None = None


def pairs() -> Iterator[tuple[Path, Path]]:
    """Each module that has a test file of its own, with that file; relative to the repository."""
    for module in sorted((ROOT / "fxprune").rglob("*.py")):
        inner = module.relative_to(ROOT / "fxprune")
        test = Path("tests/unit") / inner.parent / f"test_{inner.name}"
        if (ROOT / test).is_file():
            yield Path("fxprune") / inner, test


def sites(tree: ast.AST) -> list[ast.AST]:
    """The nodes of a module that a fault can change, in order."""
    texts = {
        id(node.value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
    }
    return [node for node in ast.walk(tree) if id(node) not in texts and _is_site(node)]


def _is_site(node: ast.AST) -> bool:
    if isinstance(node, ast.Compare):
        return type(node.ops[0]) in SWAPS
    if isinstance(node, ast.BinOp):
        return type(node.op) in SWAPS and not isinstance(node.left, ast.Constant | ast.JoinedStr)
    if isinstance(node, ast.BoolOp | ast.If):
        return True
    return isinstance(node, ast.Constant) and type(node.value) in (bool, int, float)


def change(node: ast.AST) -> None:
    """Change a node in place."""
    if isinstance(node, ast.Compare):
        node.ops[0] = SWAPS[type(node.ops[0])]()  # type: ignore[assignment]
    elif isinstance(node, ast.BinOp | ast.BoolOp):
        node.op = SWAPS[type(node.op)]()  # type: ignore[assignment]
    elif isinstance(node, ast.If):
        node.test = ast.UnaryOp(ast.Not(), node.test)
    elif isinstance(node, ast.Constant):
        value = node.value
        node.value = not value if isinstance(value, bool) else value + 1  # type: ignore[operator]


def seeded(n: int, seed: int) -> Iterator[tuple[Fault, str, Path]]:
    """Draw faults: each with the module's source with it, and the test file."""
    draw = random.Random(seed)
    known = list(pairs())
    while n:
        module, test = draw.choice(known)
        tree = ast.parse((ROOT / module).read_text())
        places = sites(tree)
        if not places:
            continue
        node = draw.choice(places)
        before = ast.unparse(node).splitlines()[0]
        change(node)
        ast.fix_missing_locations(tree)
        after = ast.unparse(node).splitlines()[0]
        yield Fault(str(module), node.lineno, before, after), ast.unparse(tree), test  # type: ignore[attr-defined]
        n -= 1


def caught(copy: Path, fault: Fault, source: str, test: Path, seconds: int) -> bool:
    """Run the tests with the fault in a copy of the repository, and take it out again."""
    whole = (copy / fault.module).read_text()
    (copy / fault.module).write_text(source)
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-n", "0", "-m", "not slow", str(test)]
    environment = {**os.environ, "PYTHONPATH": str(copy)}
    try:
        done = subprocess.run(
            command, cwd=copy, env=environment, capture_output=True, timeout=seconds
        )
        return done.returncode != 0
    except subprocess.TimeoutExpired:
        return True
    finally:
        (copy / fault.module).write_text(whole)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--n", type=int, default=100, help="faults")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seconds", type=int, default=600, help="a fault that hangs is caught")
    parser.add_argument("--json", type=Path, help="what became of each fault")
    args = parser.parse_args()
    results: list[Fault] = []
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "repository"
        copy.mkdir()
        for name in ("fxprune", "passes", "tests", "tools", "docs"):
            shutil.copytree(ROOT / name, copy / name, symlinks=True)
        for name in ("pyproject.toml", "README.md", "CHANGELOG.md"):
            shutil.copy(ROOT / name, copy / name)
        for fault, source, test in seeded(args.n, args.seed):
            found = caught(copy, fault, source, test, args.seconds)
            results.append(Fault(fault.module, fault.line, fault.before, fault.after, found))
            said = "caught" if found else "MISSED"
            print(f"{said} {fault.module}:{fault.line}  {fault.before}  ->  {fault.after}")
            sys.stdout.flush()
            if args.json:
                args.json.write_text(json.dumps([asdict(one) for one in results], indent=2))
    print(f"{sum(bool(one.caught) for one in results)} of {len(results)} caught")


if __name__ == "__main__":
    main()
