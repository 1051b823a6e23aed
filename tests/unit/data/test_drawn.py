"""Processes that load batches."""

import os
import signal

import pytest
import torch
from torch import Tensor
from torch.utils.data import Dataset

from fxprune.data.drawn import Drawn


class Processes(Dataset[int]):
    """Each example is the process that loads it."""

    def __getitem__(self, index: int) -> int:
        return os.getpid()


def batch(examples: list[int]) -> Tensor:
    return torch.tensor(examples)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_processes_that_load_outlive_a_signal_to_the_group(number: signal.Signals) -> None:
    index = [[i] for i in range(12)]
    batches = iter(Drawn(Processes(), batch, 0).batches(index, None, workers=2))
    process = int(next(batches))
    assert process != os.getpid()
    os.kill(process, number)
    rest = [int(loaded) for loaded in batches]
    assert len(rest) == 11
    assert rest.count(process) == 5  # they take turns
