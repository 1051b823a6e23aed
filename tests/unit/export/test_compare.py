"""What an exported network is checked against."""

from pathlib import Path

import pytest
import torch
from torch import nn

from fxprune import export_onnx, instrument, shrink, zeroed
from fxprune.errors import ParityError
from fxprune.export.reference import reference_of
from tests.support.law import at_random, gap
from tests.support.nets import BY_NAME, NETS, Net


@pytest.mark.sampled(9)
@pytest.mark.parametrize("net", NETS, ids=lambda net: net.name)
@torch.no_grad()
def test_the_reference_is_the_users_module_where_it_can_be(net: Net) -> None:
    gated = net.gated()
    gated.settle(at_random(gated.channels, 3))
    reference = reference_of(gated, net.model(seed=7))  # its own values do not matter
    assert (reference is gated) == bool(gated.channels.mixing)
    assert gap(reference(*net.inputs(3)), shrink(gated)(*net.inputs(3))) < 1e-12


@torch.no_grad()
def test_a_norm_that_is_frozen_is_so_in_the_reference() -> None:
    convs = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8)
    model, inputs = nn.Sequential(*convs).double(), (torch.randn(4, 3, 9, 9).double(),)
    gated = instrument(model, inputs).train()
    gated.settle(at_random(gated.channels, 3))
    gated.get_submodule("1").eval()
    reference = zeroed(gated, model)
    assert [name for name, part in reference.named_modules() if not part.training] == ["1"]
    assert gap(reference(*inputs), gated(*inputs)) < 1e-12


def test_a_column_that_is_not_zero_is_found(tmp_path: Path) -> None:
    net = BY_NAME["vgg_bn"]
    model, inputs = net.model(torch.float32), net.inputs(dtype=torch.float32)
    gated = instrument(model, inputs).eval()
    wrong = zeroed(gated, model)
    member = gated.channels.groups[0].consumers[0]
    with torch.no_grad():
        wrong.get_parameter(member.parameter).select(member.dim, -1).add_(0.1)
        wrong.get_parameter(member.parameter).select(member.dim, 0).add_(0.1)
    with pytest.raises(ParityError, match="would not compute"):
        export_onnx(shrink(gated), inputs, tmp_path / "net.onnx", reference=wrong)
    assert not list(tmp_path.iterdir())
