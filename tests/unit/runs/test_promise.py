"""What a run's latency budget promised."""

from pathlib import Path

import pytest

from fxprune.errors import RunError
from fxprune.runs.promise import FILE, Promise


def test_a_run_without_a_measured_budget_promises_nothing(tmp_path: Path) -> None:
    assert Promise.read(tmp_path) is None


def test_a_link_to_nothing_is_damage(tmp_path: Path) -> None:
    (tmp_path / FILE).symlink_to("nowhere")
    with pytest.raises(RunError, match=FILE):
        Promise.read(tmp_path)
