"""Examples of `fxprune.rules.joins`."""

import torch
from torch import Tensor
from torch.nn import functional as F

from fxprune.rules.joins import Concatenate, ConstantPad, Stack
from tests.support.rule_examples.base import Example


def fixed(x: Tensor) -> Tensor:
    """Return a tensor of 8 channels, each with its own number."""
    return torch.arange(x.shape[2] + 2).view(8, 1, 1) * x.new_ones(x.shape[0], 1, 6, 6)


EXAMPLES: tuple[Example, ...] = (
    Example(
        Concatenate,
        "with itself",
        lambda x: torch.cat([x, x.tanh()], dim=1),
        16,
    ),
    Example(Concatenate, "with no images", lambda x: torch.cat([x[:0], x[:1].tanh(), x[1:]])),
    Example(Concatenate, "in space", lambda x: torch.cat([x, x.tanh()], dim=2)),
    Example(
        Concatenate,
        "with a tensor of fixed size",
        lambda x: torch.cat([x, x.mean(1, keepdim=True)], dim=1),
        9,
        pinned=("the concatenated tensor has a fixed size",),
        mixes=True,
    ),
    Example(
        Concatenate,
        "in space with a tensor of fixed size",
        lambda x: torch.cat([x, fixed(x)[..., :1, :]], dim=2),
        groups=(4,),
        pinned=("another tensor of the concatenation has a fixed size",),
    ),
    Example(Stack, "summed", lambda x: torch.stack([x, x.tanh()], dim=1).sum(1)),
    Example(Stack, "in a new last dimension", lambda x: torch.stack((x, x.tanh()), dim=-1)),
    Example(
        Stack,
        "with a tensor of fixed size",
        lambda x: torch.stack([x, fixed(x)]).sum(0),
        groups=(4,),
        pinned=("another tensor of the stack has a fixed size",),
    ),
    Example(ConstantPad, "in space", lambda x: F.pad(x, (1, 0, 2, -1), value=0.3)),
    Example(
        ConstantPad, "one channel", lambda x: F.pad(x, (0, 0, 0, 0, 0, 1), value=0.3), 9, (8, 4, 1)
    ),
    Example(
        ConstantPad,
        "negative",
        lambda x: F.pad(x, (0, 0, 0, 0, -1, -1)),
        6,
        (4,),
        ("padding by a negative amount cuts channels off",),
    ),
)
