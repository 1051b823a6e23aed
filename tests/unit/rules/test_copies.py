"""Numbers that a generator of the code's own draws: seeded, they are the same each time."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import fxprune
from tests.support.law import at_random, gap, zeroed

IMAGES = torch.randn(2, 3, 8, 8, dtype=torch.float64)


def seeded() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def for_each_channel(x: Tensor) -> Tensor:
    return x + torch.randn(x.shape[1], 1, 1, generator=seeded()).to(x)


def filled(x: Tensor) -> Tensor:
    return x + torch.empty_like(x[:1]).normal_(generator=seeded())


def for_each_position(x: Tensor) -> Tensor:
    return x * torch.rand(x.shape[2:], generator=seeded()).to(x)


class AfterASeed(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        torch.manual_seed(0)
        return x + torch.randn(x.shape[1], 1, 1).to(x)


class Draws(nn.Module):
    def __init__(self, drawn: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 12, 3), nn.Conv2d(12, 8, 3)
        self.c, self.drawn = nn.Conv2d(8, 4, 1), drawn

    def forward(self, x: Tensor) -> Tensor:
        return self.c(self.drawn(self.b(self.a(x).relu())))


@pytest.mark.parametrize(
    ("drawn", "sizes"),
    [
        (for_each_channel, (12,)),
        (filled, (12,)),
        (for_each_position, (12, 8)),
        (AfterASeed(), (12,)),
    ],
)
@torch.no_grad()
def test_they_stay_the_numbers_of_their_channels(
    drawn: Callable[[Tensor], Tensor], sizes: tuple[int, ...]
) -> None:
    model = Draws(drawn).double().eval()
    gated = fxprune.instrument(model, (IMAGES,), round_to=1).eval()
    assert gated.channels.layout.sizes == sizes
    for seed in range(3):
        chosen = at_random(gated.channels, seed)
        gated.settle(chosen)
        wanted = zeroed(model, gated, chosen)(IMAGES)
        assert gap(wanted, gated(IMAGES)) < 1e-10
        assert gap(wanted, fxprune.shrink(gated)(IMAGES)) < 1e-10
