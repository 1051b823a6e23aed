"""What the tests of `fit` share: a small network for the digits, options that are quick, bits."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from fxprune.data import DataSet, load
from fxprune.trainer.options import TrainOptions

FAST = TrainOptions(epochs=2, lr=0.05, batch_size=64, recalibrate=5, device="cpu", seed=3)


@pytest.fixture(scope="session")
def digits() -> DataSet:
    """The data that the trainer's tests train on."""
    return load("digits")


def small_net(seed: int = 0) -> nn.Sequential:
    """Two convolutions, the same ones for the same seed."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(
            *(nn.Conv2d(1, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU()),
            *(nn.Conv2d(8, 16, 3, 2, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU()),
            *(nn.Flatten(), nn.Dropout(0.2), nn.Linear(256, 10)),
        )


def same_bits(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    """Whether two states have the same tensors."""
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def stopped_after(steps: int) -> Callable[[], bool]:
    """Asks to stop when so many questions were answered: one a step, then one a batch."""
    left = iter(range(steps))
    return lambda: next(left, None) is None
