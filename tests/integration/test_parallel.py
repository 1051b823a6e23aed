"""Two processes train as one: tests/support/ranks.py says what they do, and checks it there."""

from pathlib import Path

import pytest

from tests.support import ranks


@pytest.mark.slow
def test_two_ranks(tmp_path: Path) -> None:
    """All cases in one pair of processes, since starting them takes the longest."""
    assert len(ranks.CASES) > 12
    assert ranks.run_all(tmp_path) == {}
