"""Two processes train as one: tests/ranks.py says what they do, and checks it there."""

from pathlib import Path

import pytest

from tests import ranks


@pytest.fixture(scope="module")
def failures(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """One pair of processes runs all cases, since starting them takes the longest."""
    folder: Path = tmp_path_factory.mktemp("ranks")
    return ranks.run_all(folder)


@pytest.mark.parametrize("name", ranks.CASES)
@pytest.mark.xdist_group("ranks")
def test_two_ranks(failures: dict[str, str], name: str) -> None:
    assert failures[name] == ""
