"""What a forward changes in its modules, it changes in every step of the gated network."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fxprune import instrument
from fxprune.tracing.trace import trace
from tests.support.law import choose
from tests.support.untouched import changes, described


class Schedules(nn.Module):
    """Counts its steps in training, and changes what it does later on."""

    def __init__(self, part: bool) -> None:
        super().__init__()
        self.conv, self.drop, self.head = nn.Conv2d(3, 8, 1), nn.Dropout(0.5), nn.Conv2d(8, 4, 1)
        self.steps, self.part = 0, part

    def forward(self, x: Tensor) -> Tensor:
        if self.part:
            self.drop.p = 0.0
        elif self.training:
            self.steps += 1
        x = self.conv(x)
        y: Tensor = self.head(self.drop(x) if self.part else x.tanh() if self.steps > 2 else x)
        return y


@pytest.mark.parametrize("part", [False, True], ids=["later", "an option of a layer"])
def test_a_forward_that_changes_numbers_does_so_in_every_step(part: bool) -> None:
    model, x = Schedules(part), torch.randn(2, 3, 4, 4)
    before = described(model)
    gated = instrument(model, (x,))
    assert changes(before, described(model)) == []
    gated.settle(choose(gated.channels, (8,)))
    for mode in (False, True):
        model.train(mode), gated.train(mode)
        for _ in range(4):
            torch.testing.assert_close(gated(x), model(x))


class SetsModes(nn.Module):
    """Sets the mode of a part in forward, as of one that is not to be trained."""

    def __init__(self, put: Callable[[nn.Module], Any]) -> None:
        super().__init__()
        self.conv, self.norm, self.head = nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8), nn.Conv2d(8, 4, 1)
        self.put = put

    def forward(self, x: Tensor) -> Tensor:
        self.put(self.norm)
        y: Tensor = self.head(self.norm(self.conv(x)))
        return y


@pytest.mark.parametrize(
    ("put", "keeps"),
    [
        (lambda part: part.eval(), True),
        (lambda part: part.train(), True),
        (lambda part: setattr(part, "training", False), True),
        (lambda part: part.train(part.training), False),
    ],
    ids=["eval", "train", "attribute", "as it is"],
)
def test_a_forward_that_sets_modes_does_so_in_every_step(
    put: Callable[[nn.Module], Any], keeps: bool
) -> None:
    model, x = SetsModes(put), torch.randn(4, 3, 4, 4)
    before = described(model)
    gated = instrument(model, (x,))
    assert changes(before, described(model)) == []
    assert trace(model, (x,)).keeps_code == keeps
    gated.settle(choose(gated.channels, (8,)))
    for mode in (True, False):
        wanted = copy.deepcopy(model).train(mode)
        network = copy.deepcopy(gated).train(mode)
        for y in (x, x + 1):
            torch.testing.assert_close(network(y), wanted(y))
