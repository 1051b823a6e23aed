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
    Add Align Allow Apply Ask Assert Attach Average Await Begin Bind Break Bring Build Call Check
    Choose Clean Clear Climb Clip Close Collect Combine Compare Compile Complete Compose
    Compute Connect Consume Convert Convolve Copy Count Couple Create Crop Cut Decay Decode
    Delete Describe
    Detach Detect Disable Divide Download Draw Drop Enable End Evaluate Exchange Execute
    Expand Export Extend Fetch Fill Filter Find Finish Fix Flip Fold Follow Forget Format
    Forward Free Freeze Gather Give Go Guard Halve Hand Handle Hash Hold Identify Ignore
    Import Index Initialise Insert Install Instrument Join Keep Label Lay Leave Let Lift Link
    List Load Locate Lock Log Make Map Mark Mask Match Measure Merge Mix Move Name Normalise
    Note Number Observe Open Order Pack Pad Parse Pass Pin Plan Plot Prepare Print Propagate
    Prune Push Put Quantise Raise Rank Read Recompute Record Refill Refuse Register Release
    Remember Remove Rename Render Reorder Repeat Replace Request Reset Resize Resolve Respect
    Restore Return Revert Rewrite Round Run Save Say Scale Score Select Send Serve Set Settle
    Shorten Show Shrink Silence Skip Solve Sort Split Stack Start Stash Stop Store Sum Summarise
    Suspend Swap Sweep Switch Take Tell Test Tie Time Trace Track Train Transform Turn Undo
    Unite Unpack Unwrap Update Use Validate Verify View Walk Warm Warn Watch Work Wrap Write
    Yield Zero
    """.split()  # noqa: SIM905 - one word a line is a page
)


def summaries(source: str) -> Iterator[tuple[str, int, str]]:
    """Each function's name, line and the first line of its docstring."""
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        marks = {getattr(mark, "id", getattr(mark, "attr", "")) for mark in node.decorator_list}
        text = ast.get_docstring(node)
        if text and not marks & {"property", "cached_property", "setter"}:
            yield node.name, node.lineno, text.splitlines()[0]


@pytest.mark.parametrize("module", MODULES)
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
