"""Random networks keep the law; so do those that once did not.

`tools/fuzz.py` tries as many as wanted, and prints what to put into tests/found.
"""

from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, given, note, settings

from tests.support.random_nets import RandomNet, nets
from tests.support.trial import trial

FOUND = sorted((Path(__file__).parents[1] / "found").glob("[a-z]*.py"))


@pytest.mark.slow
@settings(
    derandomize=True,
    max_examples=100,
    database=None,
    phases=(Phase.generate, Phase.shrink),
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
@given(nets)
def test_random_nets(net: RandomNet) -> None:
    note(net.source)
    trial(net.source)


@pytest.mark.parametrize("path", FOUND, ids=lambda path: path.stem)
def test_found(path: Path) -> None:
    result = trial(path.read_text())
    assert result.graph is not None, f"all is pinned: {result.reasons}"
