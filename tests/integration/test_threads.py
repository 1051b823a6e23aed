"""Another thread copies or saves a network while it trains: each copy is of one whole selection."""

import copy
import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from fxprune import GatedModule
from tests.support.nets import BY_NAME
from tests.support.training import build, dense, train_step

NET = BY_NAME["resnet_projection"]

READERS: dict[str, Callable[[GatedModule], dict[str, Tensor]]] = {
    "dense tensors": lambda gated: gated.dense_state_dict(),
    "a copy": lambda gated: dense(copy.deepcopy(gated)),
    "a state": lambda gated: {
        key.removeprefix("dense/"): tensor for key, tensor in gated.training_state().items()
    },
}


def standing(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, 0.0, momentum=0.9)


@pytest.mark.parametrize("reader", READERS)
def test_what_a_thread_reads_is_whole(reader: str) -> None:
    """Nothing is learnt at learning rate 0, so that all that is read equals the first."""
    gated, optimizer = build(NET, standing, policy="random")
    first = dense(gated)
    found: list[dict[str, Tensor]] = []
    thread = threading.Thread(
        target=lambda: found.extend(READERS[reader](gated) for _ in range(15)), daemon=True
    )
    thread.start()
    step = 0
    while thread.is_alive():
        train_step(gated, optimizer, NET, step := step + 1)
    assert len(found) == 15
    for read in found:
        for name, _ in gated.named_parameters():
            assert torch.equal(read[name], first[name]), name
