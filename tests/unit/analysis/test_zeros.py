"""Which computed weights keep a removed channel's zeros, and what `zeroed` says of the others."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations

from fxprune import instrument, reference_of, shrink, zeroed
from fxprune.errors import GateError
from tests.support.law import gap
from tests.support.topologies.base import randomised


class Own(nn.Module):
    """A 3x3 convolution from 16 to 12 channels with a weight that it computes."""

    def __init__(self, weight: Callable[["Own"], Tensor]) -> None:
        super().__init__()
        self.weight = weight
        self.w = nn.Parameter(torch.randn(12, 16, 3, 3))
        self.u, self.v = nn.Parameter(torch.randn(12, 2)), nn.Parameter(torch.randn(2, 144))
        self.b, self.one = nn.Parameter(torch.randn(1, 16, 1, 1)), nn.Parameter(torch.randn(12))
        self.lone = nn.Parameter(torch.randn(12, 1, 3, 3))
        self.register_buffer("mask", torch.randint(2, (12, 16, 3, 3)).double())
        self.register_buffer("fixed", torch.randn(12, 16, 3, 3), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.weight(self), padding=1)


KEEP: dict[str, Callable[[Own], Tensor]] = {
    "itself": lambda s: s.w,
    "tanh": lambda s: s.w.tanh(),
    "sign": lambda s: s.w.sign(),
    "low rank": lambda s: s.w + (s.u @ s.v).view(12, 16, 3, 3),
    "sum with a row of the inputs": lambda s: s.w + s.b,
    "masked": lambda s: s.w * s.mask,
    "scaled by exp": lambda s: s.w * s.one.exp().view(-1, 1, 1, 1),
    "where of its sign": lambda s: torch.where(s.w > 0, s.w, 0.1 * s.w),
    "clamped around zero": lambda s: s.w.clamp(-0.5, 0.5),
    "its norm over the inputs": lambda s: s.w / s.w.flatten(1).norm(dim=1).view(-1, 1, 1, 1),
    "normalised": lambda s: F.normalize(s.w, dim=1),
    "normalised over the outputs": lambda s: F.normalize(s.w, dim=0),
    "flipped": lambda s: s.w.flip(3),
}
LOSE: dict[str, Callable[[Own], Tensor]] = {
    "exp": lambda s: s.w.exp() / 50,
    "sigmoid": lambda s: s.w.sigmoid(),
    "softplus": lambda s: F.softplus(s.w),
    "plus a number": lambda s: s.w + 0.1,
    "plus a column of the outputs": lambda s: s.w + s.one.view(-1, 1, 1, 1),
    "softmax": lambda s: s.w.flatten(2).softmax(2).view(12, 16, 3, 3),
    "where of constants": lambda s: torch.where(s.w > 0, s.w * 0 + 1.0, s.w * 0 - 1.0),
    "clamped from below": lambda s: s.w.clamp(min=0.01),
    "expanded": lambda s: s.lone.expand(12, 16, 3, 3),
    "repeated": lambda s: s.lone.repeat(1, 16, 1, 1),
    "not in the state dict": lambda s: s.fixed * 1.0,
    "a constant": lambda _: torch.linspace(-1, 1, 192, dtype=torch.float64).view(12, 16, 1, 1),
    "standardised": lambda s: s.w - s.w.mean((1, 2, 3), keepdim=True),
    "its norm over the outputs": lambda s: s.w / s.w.square().sum((0, 2, 3), True).sqrt(),
}


def network(layer: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    layers = nn.Conv2d(3, 16, 3), nn.ReLU(), layer, nn.ReLU(), nn.Conv2d(12, 5, 1)
    return randomised(nn.Sequential(*layers)).double().eval()


def transposed_weight_norm() -> nn.Module:
    return parametrizations.weight_norm(nn.ConvTranspose2d(16, 12, 3, padding=1), dim=0)


X = torch.randn(2, 3, 9, 9, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("name", KEEP)
@torch.no_grad()
def test_zeros_arrive(name: str) -> None:
    model = network(Own(KEEP[name]))
    gated = instrument(model, (X,), policy="fixed", budget="keep=0.5", round_to=1).eval()
    assert gated.channels.mixing == ()
    assert gated.widths[:2] == (8, 6)
    assert gap(gated(X), shrink(gated)(X)) < 1e-12
    assert gap(gated(X), zeroed(gated, model)(X)) < 1e-12


@pytest.mark.parametrize("name", [*LOSE, "weight norm of a transposed convolution"])
@torch.no_grad()
def test_zeros_are_lost(name: str) -> None:
    model = network(Own(LOSE[name]) if name in LOSE else transposed_weight_norm())
    gated = instrument(model, (X,), policy="fixed", budget="keep=0.5", round_to=1).eval()
    assert gated.widths[0] == 8
    assert gap(gated(X), shrink(gated)(X)) < 1e-12
    with pytest.raises(GateError) as caught:
        zeroed(gated, model)
    assert "test_zeros.py" in caught.value.at or "weight norm" in name
    assert "reference_of" in caught.value.do
    assert reference_of(gated, model) is gated


def test_random_numbers_are_left_where_a_weight_is_dropped_out() -> None:
    class Dropped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.weight = nn.Conv2d(3, 6, 1), nn.Parameter(torch.randn(4, 6, 1, 1))

        def forward(self, x: Tensor) -> Tensor:
            return F.conv2d(self.conv(x), F.dropout(self.weight, 0.5))

    model, before = Dropped(), torch.random.get_rng_state()
    instrument(model, (torch.zeros(2, 3, 4, 4),))
    assert torch.equal(torch.random.get_rng_state(), before)


def test_a_count_that_training_goes_on_with_stays() -> None:
    """Weights are computed once more to look for zeros, and with them what is written in place."""

    class Counting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.own = nn.Conv2d(3, 16, 3), Own(lambda s: s.fixed * 1.0)
            self.register_buffer("steps", torch.zeros((), dtype=torch.int64))

        def forward(self, x: Tensor) -> Any:
            if self.training:
                self.steps.add_(1)
            return self.own(self.first(x))

    model = Counting()
    instrument(model, (torch.randn(2, 3, 8, 8),))
    assert int(model.steps) == 0
