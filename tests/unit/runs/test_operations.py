"""What a network computes is told apart from others at any widths; see also test_run.py."""

import pytest

from fxprune.runs.operations import operations
from tests.support.nets import NETS, Net


@pytest.mark.parametrize("net", NETS, ids=lambda net: net.name)
def test_a_network_is_the_same_at_any_widths(net: Net) -> None:
    narrow, wide = net.gated(budget="keep=0.3"), net.gated(budget="keep=0.8")
    assert narrow.widths != wide.widths or not narrow.channels.groups
    assert operations(narrow) == operations(wide)
