"""Examples of `fxprune.rules.reduction`."""

import torch
from torch import nn
from torch.nn import functional as F

from fxprune.rules.reduction import InOrder, Reduction, Softmax
from tests.support.rule_examples.base import Example, one, tokens

EXAMPLES: tuple[Example, ...] = (
    Example(Reduction, "spread in space", lambda x: x / x.std((2, 3), keepdim=True)),
    Example(Reduction, "largest in a row", lambda x: x.max(dim=3).values + x.amax(2)),
    Example(Reduction, "over the channels", lambda x: x * x.mean(1, keepdim=True), mixes=True),
    Example(
        Reduction,
        "normalised channels",
        lambda x: x / torch.linalg.vector_norm(x, dim=1, keepdim=True),
        mixes=True,
    ),
    Example(
        Reduction,
        "normalised channels, expanded",
        lambda x: F.normalize(x, dim=1),
        mixes=True,
    ),
    Example(
        Reduction,
        "over everything",
        lambda x: x / x.square().sum((1, 2, 3), keepdim=True),
        mixes=True,
    ),
    Example(
        Reduction,
        "deviation of the channels",
        lambda x: (x - x.mean(1, keepdim=True)) / x.std(1, keepdim=True),
        groups=(7, 4),
        pinned=("a variance over channels needs two of them",),
        mixes=True,
    ),
    Example(
        Reduction,
        "deviation of the channels, biased",
        lambda x: x / (x.var(1, correction=0, keepdim=True) + 1),
        mixes=True,
    ),
    Example(Softmax, "over space", lambda x: torch.softmax(x.flatten(2), dim=2)),
    Example(
        Softmax,
        "over the channels",
        lambda x: torch.softmax(x, dim=1),
        mixes=True,
    ),
    Example(
        Softmax,
        "over channels that all stay",
        lambda x: torch.softmax(x + torch.logcumsumexp(x, 1), dim=1),
        groups=(4,),
        pinned=("there is no rule for aten.logcumsumexp",),
    ),
    Example(
        Reduction,
        "root mean square",
        lambda x, n: n(tokens(x)).transpose(1, 2),
        layers=one(nn.RMSNorm, 8),
        mixes=True,
    ),
    Example(
        Reduction,
        "root mean square, by function",
        lambda x: F.rms_norm(tokens(x), (8,)).transpose(1, 2),
        mixes=True,
    ),
    Example(
        Reduction,
        "the number of the largest",
        lambda x: x + x.max(1, keepdim=True).indices,
        groups=(4,),
        pinned=("the code uses the numbers of channels",),
    ),
    Example(
        InOrder,
        "places in space",
        lambda x: x + x.topk(2, 3).values.sum(3, keepdim=True) + x.argmax(2, keepdim=True) * 0.1,
    ),
    Example(
        InOrder,
        "in front of the channels",
        lambda x: x.movedim(1, 3).median(1).values.movedim(2, 1) + x.cummax(2)[0].kthvalue(3, 2)[0],
    ),
    Example(
        InOrder,
        "sorted along space",
        lambda x: x.sort(3).values + x.argsort(2) * 0.1,
    ),
    Example(
        InOrder,
        "of the channels",
        lambda x: x + x.argmax(1, keepdim=True),
        groups=(4,),
        pinned=("argmax runs over the channels",),
    ),
    Example(
        InOrder,
        "of all numbers",
        lambda x: x + x.argmax(),
        groups=(4,),
        pinned=("argmax runs over the channels",),
    ),
    Example(
        InOrder,
        "added up along space",
        lambda x: x.cumsum(2) + x.cumprod(3) + x.clone().cumsum_(3),
    ),
    Example(
        InOrder,
        "added up along the channels",
        lambda x: x + x.cumsum(1),
        groups=(4,),
        pinned=("cumsum runs over the channels",),
    ),
    Example(
        Reduction,
        "from the least to the largest",
        lambda x: (x - x.aminmax(dim=2, keepdim=True).min) / x.aminmax(dim=3, keepdim=True).max,
    ),
)
