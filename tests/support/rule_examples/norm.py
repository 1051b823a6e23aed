"""Examples of `fxprune.rules.norm`."""

import torch
from torch import nn
from torch.nn import functional as F

from fxprune.rules.norm import BatchNorm, GroupNorm, LayerNorm, Renorm, WeightNorm
from tests.support.rule_examples.base import Example, Rows, one, run, tokens

EXAMPLES: tuple[Example, ...] = (
    Example(
        WeightNorm,
        "of a convolution",
        run,
        6,
        (8, 6, 4),
        layers=lambda: (nn.utils.parametrizations.weight_norm(nn.Conv2d(8, 6, 3)),),
    ),
    Example(BatchNorm, "affine", run, layers=one(nn.BatchNorm2d, 8)),
    Example(BatchNorm, "without scale", run, layers=one(nn.BatchNorm2d, 8, affine=False)),
    Example(
        BatchNorm,
        "of the batch's statistics",
        run,
        layers=one(nn.BatchNorm2d, 8, track_running_stats=False),
    ),
    Example(BatchNorm, "of each instance", run, layers=one(nn.InstanceNorm2d, 8, affine=True)),
    Example(
        LayerNorm,
        "over the channels",
        lambda x, norm: norm(tokens(x)).transpose(1, 2),
        layers=one(nn.LayerNorm, 8),
        mixes=True,
    ),
    Example(
        LayerNorm,
        "by function, over the channels",
        lambda x: F.layer_norm(tokens(x), (8,)).transpose(1, 2),
        mixes=True,
    ),
    Example(
        LayerNorm,
        "by function, over as many as the weight has",
        lambda x, norm: F.layer_norm(tokens(x), norm.weight.shape, norm.weight).transpose(1, 2),
        layers=one(nn.LayerNorm, 8, bias=False),
        mixes=True,
    ),
    Example(LayerNorm, "over space", lambda x: F.layer_norm(x, (6, 6))),
    Example(GroupNorm, "of two groups", run, 8, (4, 4), layers=one(nn.GroupNorm, 2, 8), mixes=True),
    Example(GroupNorm, "a group for each channel", run, layers=one(nn.GroupNorm, 8, 8)),
    Example(GroupNorm, "groups of two channels", run, 8, (4, 4), layers=one(nn.GroupNorm, 4, 8)),
    Example(
        GroupNorm,
        "groups that go whole, without a scale",
        run,
        8,
        (4, 4),
        layers=one(nn.GroupNorm, 4, 8, affine=False),
    ),
    Example(GroupNorm, "by function", lambda x: F.group_norm(x, 4), 8, (4, 4)),
    Example(
        GroupNorm,
        "by function, with a scale of fixed size",
        lambda x, norm: F.group_norm(x, 8, torch.fft.fft(norm.weight).real),
        groups=(4,),
        pinned=(
            "a Fourier transform runs along this dimension",
            "the norm's weight has fixed size",
        ),
        layers=one(nn.LayerNorm, 8, bias=False),
    ),
    Example(GroupNorm, "of one group", run, layers=one(nn.GroupNorm, 1, 8), mixes=True),
    Example(
        Renorm,
        "of a weight",
        run,
        6,
        (8, 6, 4),
        layers=lambda: (Rows(lambda w: w.renorm(2, 0, 1.0), 6, 8, 3, 3),),
    ),
    Example(Renorm, "of an activation", lambda x: x.renorm(2, 0, 1.0), mixes=True),
)
