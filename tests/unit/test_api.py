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
    with pytest.warns(UserWarning, match="of the macs stay with keep=0.5, because .* cumsum runs"):
        fxprune.instrument(Fixed(), (torch.randn(2, 3, 8, 8),))


class Bilinear(nn.Module):
    """Multiplies all channels with all, which makes one of them."""

    def __init__(self) -> None:
        super().__init__()
        self.b, self.head = nn.Conv2d(3, 32, 3), nn.Linear(1024, 4)

    def forward(self, x: Tensor) -> Tensor:
        y = self.b(x).flatten(2)
        return self.head((y @ y.transpose(1, 2)).flatten(1))


def test_channels_that_go_together_are_named_where_they_keep_the_macs() -> None:
    text = "because the channels of b go all together or not at all"
    with pytest.warns(UserWarning, match=f"of the macs stay with keep=0.5, {text}"):
        fxprune.instrument(Bilinear(), (torch.randn(2, 3, 8, 8),))


def test_nothing_is_said_where_the_channels_go() -> None:
    model = nn.Sequential(nn.Conv2d(3, 32, 3), nn.ReLU(), nn.Conv2d(32, 32, 3), nn.Conv2d(32, 4, 1))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fxprune.instrument(model, (torch.randn(2, 3, 8, 8),))
