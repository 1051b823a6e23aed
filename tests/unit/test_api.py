"""Instrumenting warns where pins keep more than a budget of channels lets expect."""

import warnings

import pytest
import torch
from torch import Tensor, nn

import fxprune


class Fixed(nn.Module):
    """Has a large layer whose channels are summed up one by one, which pins them."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 8, 1), nn.Conv2d(3, 64, 3, padding=1)
        self.c, self.d = nn.Conv2d(64, 64, 3, padding=1), nn.Conv2d(8, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.cumsum(self.c(torch.cumsum(self.b(x), 1)), 1)
        return self.d(self.a(x)) + y.sum(1, keepdim=True)


def test_pins_that_keep_the_macs_are_warned_of() -> None:
    with pytest.warns(UserWarning, match="of the macs stay with keep=0.5, because .* aten.cumsum"):
        fxprune.instrument(Fixed(), (torch.randn(2, 3, 8, 8),))


def test_nothing_is_said_where_the_channels_go() -> None:
    model = nn.Sequential(nn.Conv2d(3, 32, 3), nn.ReLU(), nn.Conv2d(32, 32, 3), nn.Conv2d(32, 4, 1))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fxprune.instrument(model, (torch.randn(2, 3, 8, 8),))
