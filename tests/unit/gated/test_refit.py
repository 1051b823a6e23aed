"""Refit: what removed channels contributed goes into the kept ones, and nothing else changes."""

import pytest
import torch
from torch import nn

import fxprune
from fxprune.bank.exchange import Selection
from fxprune.errors import GateError
from fxprune.gated.refit import refit


def network() -> nn.Sequential:
    """Two convolutions, of which the first makes each channel twice; and a classifier."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=2, padding=1, dilation=1),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 6, (3, 2), padding=(2, 1), dilation=2, bias=True),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(6, 2),
    )
    with torch.no_grad():
        for layer in model[:2]:
            for tensor in layer.state_dict().values():
                if tensor.dim():
                    tensor[4:] = tensor[:4]
    return model.eval()


def settled(model: nn.Module) -> fxprune.GatedModule:
    """Without the second half of the first convolution."""
    gated = fxprune.instrument(model, (torch.zeros(2, 3, 9, 8),), "fixed{choice=first}", "keep=1")
    gated.settle(Selection(torch.tensor([0, 1, 2, 3, 8, 9, 10, 11, 12, 13]), (4, 6)))
    return gated


@pytest.mark.parametrize("training", [True, False])
def test_what_copies_carried_is_not_lost(training):
    model = network()
    gated = settled(model).train(training)
    compact = fxprune.shrink(gated).eval()
    images = torch.randn(64, 3, 9, 8)
    lost = (compact(images) - model(images)).abs().max()
    names = refit(gated, compact, model, images, ridge=1e-9)
    assert names == ("0", "3", "7")
    assert not model.training
    assert gated.training is training
    unseen = torch.randn(32, 3, 9, 8)
    assert (compact(unseen) - model(unseen)).abs().max() < 1e-3 * lost
    again = fxprune.shrink(gated.eval())
    torch.testing.assert_close(again(unseen), compact(unseen), atol=1e-5, rtol=1e-5)


def test_a_whole_network_stays_what_it_is():
    model = network()
    gated = fxprune.instrument(model, (torch.zeros(2, 3, 9, 8),), "fixed", "keep=1")
    gated.settle()
    compact = fxprune.shrink(gated).eval()
    images = torch.randn(64, 3, 9, 8)
    refit(gated, compact, model, images)
    torch.testing.assert_close(compact(images), model(images), atol=1e-4, rtol=1e-4)


def test_layers_that_run_twice_and_groups_stay():
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Conv2d(3, 8, 1)
            self.shared = nn.Conv2d(8, 8, 1)
            self.depthwise = nn.Conv2d(8, 8, 3, groups=8)
            self.last = nn.Conv2d(8, 2, 1)

        def forward(self, x):
            x = self.shared(self.shared(self.first(x)).relu()).relu()
            return self.last(self.depthwise(x)).mean((2, 3))

    model = Twice().eval()
    gated = fxprune.instrument(model, (torch.zeros(2, 3, 8, 8),), "fixed", "keep=0.5")
    gated.settle()
    compact = fxprune.shrink(gated).eval()
    names = refit(gated, compact, model, torch.randn(32, 3, 8, 8))
    assert set(names) == {"first", "last"}


def test_a_network_that_still_chooses_is_refused():
    model = network()
    gated = fxprune.instrument(model, (torch.zeros(2, 3, 9, 8),))
    with pytest.raises(GateError, match=r"gated\.settle\(\)"):
        refit(gated, fxprune.shrink(gated), model, torch.randn(8, 3, 9, 8))
