"""Batch norms measure the statistics of the network as it is at the end of a run."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.optim.swa_utils import update_bn

from fxprune.data import Batch
from fxprune.trainer.placement import Placement
from fxprune.trainer.task import call


def recalibrate(model: nn.Module, batches: Iterable[Batch], placement: Placement) -> None:
    """Measure the statistics of all batch norms anew, over whole batches.

    Args:
        model: the network; its running statistics are replaced.
        batches: inputs and targets; of no batches, the statistics stay.
        placement: where and in which precision the network runs.
    """
    precision = placement.amp
    with torch.autocast(placement.device.type, precision, enabled=precision is not None):
        update_bn((_Inputs(placement.prepare(inputs)) for inputs, _ in batches), _Called(model))


@dataclass(frozen=True)
class _Inputs:
    """The inputs of a batch as one thing: torch's update_bn would take the first of several."""

    of_batch: Any


class _Called(nn.Module):
    """Calls a network with `_Inputs`."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, inputs: _Inputs) -> Any:
        return call(self.network, inputs.of_batch)
