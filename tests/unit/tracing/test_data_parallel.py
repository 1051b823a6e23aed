"""A part of a model in `nn.DataParallel` is traced through, as on a machine without GPUs."""

import torch
from torch import nn

import fxprune
from tests.support.law import at_random, gap, zeroed


@torch.no_grad()
def test_it_is_as_if_it_were_not_there() -> None:
    features = nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 24, 3))
    model = nn.Sequential(nn.DataParallel(features), nn.ReLU(), nn.Conv2d(24, 4, 1))
    model = model.double().eval()
    x = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    gated = fxprune.instrument(model, (x,), round_to=1).eval()
    assert sorted(group.size for group in gated.channels.groups) == [16, 24]
    chosen = at_random(gated.channels, 1)
    gated.settle(chosen)
    assert gap(gated(x), fxprune.shrink(gated)(x)) < 1e-12
    assert gap(gated(x), zeroed(model, gated, chosen)(x)) < 1e-12
