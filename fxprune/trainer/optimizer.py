"""The optimiser of the built-in trainer, and its learning rate over a run."""

import math

import torch
from torch import nn

from fxprune.trainer.options import TrainOptions


def learning_rate(options: TrainOptions, share: float) -> float:
    """Compute the learning rate after `share` (0 to 1) of the run."""
    if share < options.lr_warmup:
        return options.lr * share / options.lr_warmup
    if options.schedule == "step":
        return options.lr * options.decay ** sum(share >= at for at in options.milestones)
    rest = (share - options.lr_warmup) / max(1 - options.lr_warmup, 1e-12)
    return options.lr * (1 + math.cos(math.pi * rest)) / 2


def make_optimizer(model: nn.Module, options: TrainOptions) -> torch.optim.Optimizer:
    """Make the optimiser over all of the model's parameters."""
    if options.optimizer == "adamw":
        return torch.optim.AdamW(
            model.parameters(), lr=options.lr, weight_decay=options.weight_decay
        )
    return torch.optim.SGD(
        model.parameters(),
        lr=options.lr,
        momentum=options.momentum,
        weight_decay=options.weight_decay,
    )
