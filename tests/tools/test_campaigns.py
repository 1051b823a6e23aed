"""The campaign of damaged runs, with fewer of them than the tool has."""

import os

import pytest

from tools.campaigns import mutants


@pytest.mark.slow
def test_no_damaged_run_is_taken_for_a_whole_one(tmp_path, monkeypatch):
    monkeypatch.setitem(os.environ, "XDG_STATE_HOME", str(tmp_path))
    counts = mutants.campaign(200, 20, seed=3, bases=5)
    assert {what: n for what, n in counts.items() if what not in mutants.RIGHT} == {}
    assert counts["valid: the same"] == 20
    assert counts["refused"] > 100
