"""Recurrent layers that an example shows a single step of, whose weights other tensors make."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize, weight_norm

from fxprune import instrument, shrink
from tests.support.law import at_random, gap, zeroed


class Flipped(nn.Module):
    """Makes a weight whose rows are those of another from the last to the first."""

    def forward(self, weight: Tensor) -> Tensor:
        return weight.flip(0)


class Reader(nn.Module):
    """Reads the pixels of an image one by one."""

    def __init__(self, layer: nn.Module, width: int) -> None:
        super().__init__()
        self.conv, self.layer, self.out = nn.Conv2d(3, 12, 1), layer, nn.Linear(width, 5)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.conv(x).relu().flatten(2).transpose(1, 2)
        found: Tensor = self.out(self.layer(tokens)[0].mean(1))
        return found


def flipped(layer: nn.Module, name: str) -> None:
    parametrize.register_parametrization(layer, name, Flipped())


@pytest.mark.filterwarnings("ignore:.*weight_norm. is deprecated")
@pytest.mark.parametrize(
    "make", [parametrizations.weight_norm, parametrizations.spectral_norm, weight_norm, flipped]
)
@pytest.mark.parametrize(
    ("kind", "width"), [(nn.RNN, {}), (nn.GRU, {}), (nn.LSTM, {"proj_size": 6})]
)
@torch.no_grad()
def test_longer_sequences_than_the_example(
    kind: Callable[..., nn.Module], width: dict[str, int], make: Callable[[nn.Module, str], Any]
) -> None:
    torch.manual_seed(0)
    layer = kind(12, 8, batch_first=True, **width)
    make(layer, "weight_hh_l0")
    model = Reader(layer, width.get("proj_size", 8)).double().eval()
    gated = instrument(model, torch.randn(2, 3, 1, 1).double()).eval()
    gated.settle(chosen := at_random(gated.channels, 1))
    dense, compact = zeroed(model, gated, chosen), shrink(gated)
    for x in (torch.randn(2, 3, 1, 1).double(), torch.randn(2, 3, 2, 2).double()):
        wanted = copy.deepcopy(dense)(x)
        assert gap(wanted, gated(x)) < 1e-10
        assert gap(wanted, compact(x)) < 1e-10
