"""Code of the user's that ends the process has not done the command's work."""

from pathlib import Path

import pytest

from tests.support.cli import Call

LOSSES = """

def leaves(outputs, targets):
    raise SystemExit({code})
"""


@pytest.mark.parametrize("code", [0, 7])
def test_a_loss_that_ends_the_process(code: int, here: Path, call: Call) -> None:
    (here / "losses.py").write_text(LOSSES.replace("{code}", str(code)))
    arguments = ("train", "--data", "digits", "--loss", "losses.py:leaves", "--epochs", "1")
    said = call(*arguments, folder=here, exit_code=2).stderr
    assert f"it raised SystemExit({code})" in said
    assert "losses.py:4" in said
