"""What a network computes is told apart from others at any widths; see also test_run.py."""

import pytest
import torch
from torch import nn

from fxprune import instrument
from fxprune.runs.operations import computes_something_else, operations
from tests.support.nets import NETS, Net


@pytest.mark.parametrize("net", NETS, ids=lambda net: net.name)
def test_a_network_is_the_same_at_any_widths(net: Net) -> None:
    narrow, wide = net.gated(budget="keep=0.3"), net.gated(budget="keep=0.8")
    assert narrow.widths != wide.widths or not narrow.channels.groups
    assert operations(narrow) == operations(wide)


def test_what_an_older_version_recorded_is_not_compared() -> None:
    gated = NETS[0].gated()
    recorded = operations(gated)
    other = recorded[:-1] + ("0" if recorded[-1] != "0" else "1")
    assert not computes_something_else(recorded, gated)
    assert computes_something_else(other, gated)
    assert not computes_something_else(other.partition(":")[2], gated), "as it was before"
    assert not computes_something_else(None, gated)


def test_an_option_may_be_a_tensor() -> None:
    layers = nn.Sequential(nn.Conv2d(3, 8, 3), nn.LeakyReLU(), nn.Conv2d(8, 4, 1))
    gated = instrument(layers, (torch.zeros(2, 3, 9, 9),))
    recorded = operations(gated)
    gated.get_submodule("1").negative_slope = torch.tensor([2.0, 2.0])
    assert operations(gated) != recorded
