"""Examples of `fxprune.rules.distances`."""

import torch
from torch.nn import functional as F

from fxprune.rules.distances import Loss, PairwiseDistances
from tests.support.rule_examples.base import Example, tokens

EXAMPLES: tuple[Example, ...] = (
    Example(Loss, "of each element", lambda x: x * F.mse_loss(x.tanh(), x, reduction="none")),
    Example(Loss, "their mean", lambda x: x * F.mse_loss(x.detach().tanh(), x), mixes=True),
    Example(Loss, "their sum", lambda x: x + F.huber_loss(x, x.cos(), reduction="sum"), mixes=True),
    Example(
        PairwiseDistances,
        "of positions to each other",
        lambda x: x * torch.cdist(tokens(x), tokens(x)).mean((1, 2))[:, None, None, None],
        mixes=True,
    ),
    Example(
        PairwiseDistances,
        "of channels to each other, by another norm",
        lambda x: x + torch.cdist(x.flatten(2), x.flatten(2), p=1.0).mean(2)[..., None, None],
        mixes=True,
    ),
)
