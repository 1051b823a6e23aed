"""Optimisers and one training step, for tests of the one line in a user's loop."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fxprune import GatedModule, attach
from tests.support.nets import Net
from tests.support.oracle import loss_of

Tensors = dict[str, Tensor]


def sgd(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, 0.05, momentum=0.9, weight_decay=0.01)


def adamw(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.AdamW(parameters, 0.01, weight_decay=0.1)


def foreach_sgd(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, 0.05, momentum=0.9, weight_decay=0.01, foreach=True)


def fused_sgd(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, 0.05, momentum=0.9, weight_decay=0.01, fused=True)


def fused_adamw(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.AdamW(parameters, 0.01, weight_decay=0.1, fused=True)


def build(
    net: Net, make: Callable[[Any], torch.optim.Optimizer] = sgd, **settings: Any
) -> tuple[GatedModule, torch.optim.Optimizer]:
    gated = net.gated(**settings).train()
    optimizer = make(gated.parameters())
    attach(gated, optimizer)
    return gated, optimizer


def train_step(gated: GatedModule, optimizer: torch.optim.Optimizer, net: Net, step: int) -> None:
    optimizer.zero_grad()
    loss_of(gated, net, step).backward()
    optimizer.step()


def dense(gated: GatedModule) -> Tensors:
    """The dense tensors by their names in the gated network; copies."""
    return {name: tensor.detach().clone() for name, tensor in gated.dense_tensors().items()}
