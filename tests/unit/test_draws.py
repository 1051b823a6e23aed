"""Random numbers of a model's own generators are drawn in every step, by each network alike."""

import copy
import itertools
import random
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fxprune import instrument, reference_of, shrink
from tests.support.untouched import changes, described


class DrawsOfItsOwn(nn.Module):
    """Uses a layer or leaves it out, as its own generator says."""

    def __init__(self, generator: Any) -> None:
        super().__init__()
        self.conv, self.other = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 1)
        self.head, self.generators = nn.Conv2d(8, 4, 1), {"branch": generator}

    def forward(self, x: Tensor) -> Tensor:
        x, own = self.conv(x), self.generators["branch"]
        drawn = torch.rand(1, generator=own) if isinstance(own, torch.Generator) else own.random()
        y: Tensor = self.head(self.other(x) if drawn > 0.5 else x)
        return y


class Named(random.Random):
    """Draws as its parent does, and has a name."""

    name = "branch"


class OfBits(np.random.PCG64):
    """Draws numbers from the bits that it generates."""

    def random(self) -> float:
        return float(np.random.Generator(self).random())


@pytest.mark.parametrize(
    "generator",
    [
        torch.Generator(),
        Named(0),
        OfBits(0),
        random.Random(0),
        np.random.RandomState(0),
        np.random.default_rng(0),
        np.random.Generator(np.random.MT19937(0)),
    ],
    ids=lambda generator: type(generator).__qualname__,
)
def test_random_numbers_of_a_models_own_generator_are_drawn_in_every_step(generator: Any) -> None:
    model, x = DrawsOfItsOwn(generator).eval(), torch.randn(2, 3, 4, 4)
    before = described(model)
    gated = instrument(model, (x,))
    assert changes(before, described(model)) == []
    assert gated.channels.layout.sizes == (8,)
    networks = shrink(gated), copy.deepcopy(gated), reference_of(gated, model)
    runs = [[network(x).detach() for _ in range(20)] for network in networks]
    for ours, theirs in itertools.pairwise(runs):
        assert len({float(y.sum()) for y in ours}) == 2
        torch.testing.assert_close(ours, theirs)


class OfTheirClass(DrawsOfItsOwn):
    """Draws from a generator that all networks of the class have, the compact ones too."""

    shared = random.Random(0)

    def __init__(self) -> None:
        super().__init__(None)

    def forward(self, x: Tensor) -> Tensor:
        self.generators["branch"] = self.shared
        return super().forward(x)


def test_a_generator_that_networks_share_is_left_as_it_was() -> None:
    model = OfTheirClass().eval()
    before = model.shared.getstate()
    gated = instrument(model, (torch.randn(2, 3, 4, 4),)).eval()
    for _ in range(4):  # which would draw another number in half of the cases
        shrink(gated)
        assert model.shared.getstate() == before
        model.shared.random()
        before = model.shared.getstate()
