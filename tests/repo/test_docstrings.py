"""A docstring of a function begins with a verb in the imperative, as PEP 257 asks.

ruff's D401 knows many verbs in a wrong form, and lets any other word pass: "What is found." So the
words are listed here. Properties are left out: what they are is a noun.
"""

import ast
from collections.abc import Iterator

import pytest

from tests.support.modules import MODULES

VERBS = set(
    """
    Add Apply Ask Assert Attach Average Begin Bind Build Call Check Choose Clear Climb Close
    Collect Compare Compose Compute Convert Convolve Copy Count Couple Crop Cut Decay Decode
    Describe Detach Divide Download Draw Drop End Evaluate Execute Export Fetch Fill Find
    Finish Fix Flip Fold Follow Forget Format Freeze Gather Give Go Halve Hand Hash Hold
    Identify Ignore Import Index Instrument Join Keep Label Lay Leave Let Lift List Load Lock
    Log Make Map Match Measure Mix Move Name Note Open Pack Pad Parse Pin Plan Print Propagate
    Push Put Raise Read Refill Refuse Release Remember Remove Rename Render Reorder Replace
    Reset Resize Restore Return Rewrite Round Run Save Say Score Select Set Settle Shorten
    Show Shrink Silence Skip Solve Sort Split Stack Start Stash Stop Store Sum Summarise
    Suspend Take Tell Test Tie Time Trace Train Transform Turn Undo Unite Unpack Update Verify
    View Warn Watch Work Wrap Write Yield
    """.split()  # noqa: SIM905 - one word a line is a page
)

LATER = {"data", "gated", "report", "rules", "tracing"}
"""Folders and modules whose docstrings are not held to this yet; it only shrinks."""


def summaries(source: str) -> Iterator[tuple[str, int, str]]:
    """Each function's name, line and the first line of its docstring."""
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        marks = {getattr(mark, "id", getattr(mark, "attr", "")) for mark in node.decorator_list}
        text = ast.get_docstring(node)
        if text and not marks & {"property", "cached_property", "setter"}:
            yield node.name, node.lineno, text.splitlines()[0]


@pytest.mark.parametrize("module", [name for name in MODULES if name.split(".")[0] not in LATER])
def test_docstrings_begin_with_a_verb(module: str) -> None:
    wrong = [
        f"{MODULES[module]}:{line} {name}: {text}"
        for name, line, text in summaries(MODULES[module].read_text())
        if text.split()[0].strip(",;:") not in VERBS
    ]
    assert wrong == [], "begin with a verb, or add it to VERBS if it is one"


def test_the_reader_of_docstrings_sees_what_it_must() -> None:
    source = (
        "class A:\n"
        "    @property\n"
        "    def size(self):\n"
        "        '''The size.'''\n"
        "    def find(self):\n"
        "        '''What is found.\n\n        More.\n        '''\n"
        "def g():\n"
        "    pass\n"
    )
    assert list(summaries(source)) == [("find", 5, "What is found.")]
