"""Buffers that a forward writes to in evaluation are those of the channels that it shows."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from fxprune import attach, instrument, shrink
from tests.support.law import gap
from tests.support.training import sgd


def in_place(module: nn.Module, mean: Tensor) -> None:
    module.level.mul_(0.9).add_(0.1 * mean)


def by_assignment(module: nn.Module, mean: Tensor) -> None:
    module.level = 0.9 * module.level + 0.1 * mean


def through_data(module: nn.Module, mean: Tensor) -> None:
    module.level.data.mul_(0.9).add_(0.1 * mean)


def other_data(module: nn.Module, mean: Tensor) -> None:
    module.level.data = 0.9 * module.level + 0.1 * mean


def through_data_in_kept_code(module: nn.Module, mean: Tensor) -> None:
    if float(mean.detach().sum()) != 0.1234:
        module.level.data.mul_(0.9).add_(0.1 * mean)


class Level(nn.Module):
    def __init__(self, write: Callable[[nn.Module, Tensor], None]) -> None:
        super().__init__()
        self.register_buffer("level", torch.zeros(16))
        self.write = write

    def forward(self, x: Tensor) -> Tensor:
        self.write(self, x.detach().mean((0, 2, 3)))
        return x - self.level.view(1, -1, 1, 1)


@pytest.mark.parametrize(
    "write",
    [in_place, by_assignment, through_data, other_data, through_data_in_kept_code],
)
def test_the_compact_network_goes_on_as_the_gated_one(
    write: Callable[[nn.Module, Tensor], None],
) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 16, 3), Level(write), nn.ReLU(), nn.Conv2d(16, 4, 1))
    x = torch.randn(4, 3, 8, 8)
    gated = instrument(model, (x,), policy="random", budget="keep=0.5")
    optimizer = sgd(gated.parameters())
    attach(gated, optimizer)
    for _ in range(3):
        optimizer.zero_grad()
        gated(x).pow(2).mean().backward()
        optimizer.step()
    gated.eval()
    gated(x)
    before = gated.dense_state_dict()["1.level"].clone()
    compact = shrink(gated)
    assert torch.equal(gated.dense_state_dict()["1.level"], before)  # its check leaves nothing
    for _ in range(3):
        assert gap(gated(x).detach(), compact(x).detach()) < 1e-6
    assert not torch.equal(gated.dense_state_dict()["1.level"], before)
