"""Examples of `fxprune.rules.movement`."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fxprune.rules.movement import ChannelShuffle, Movement
from tests.support.rule_examples.base import Example, one, run


def swap_halves(x: Tensor) -> Tensor:
    """The second half of the channels first."""
    a, b = x.chunk(2, dim=1)
    return torch.cat([b, a], dim=1)


def reshaped(x: Tensor) -> Tensor:
    """The mean of each channel, whose dimensions are changed in place."""
    mean = x.mean((2, 3)).t_()
    mean.transpose_(0, 1)
    return x * mean.unsqueeze_(2).unsqueeze_(3)


EXAMPLES: tuple[Example, ...] = (
    Example(
        Movement,
        "images and channels in one",
        lambda x: x.view(x.shape[0] * 8, 36).softmax(1).reshape((x.shape[0] * 8, 6, 6)).view_as(x),
    ),
    Example(Movement, "in place", reshaped),
    Example(
        Movement, "channels last", lambda x: x.permute(0, 2, 3, 1).flatten(1).unsqueeze(2), 288
    ),
    Example(Movement, "flip", lambda x: x.flip(1)),
    Example(Movement, "flip and roll in space", lambda x: x.roll(1, 3).flip(2)),
    Example(Movement, "roll", lambda x: x.roll(3, 1)),
    Example(
        Movement, "roll back, by keywords", lambda x: torch.roll(x, shifts=(-3, 1), dims=(1, 2))
    ),
    Example(Movement, "turned", lambda x: torch.rot90(x, 1, (2, 3))),
    Example(Movement, "roll and add", lambda x: x.roll(2, 1).tanh() + x, groups=(2, 4)),
    Example(Movement, "swap halves", swap_halves, groups=(4, 4, 4)),
    Example(Movement, "repeat", lambda x: x.repeat(1, 2, 1, 1), 16),
    Example(
        Movement,
        "interleaved, with the length",
        lambda x: x.repeat_interleave(2, dim=1, output_size=2 * x.shape[1]),
        16,
    ),
    Example(
        Movement,
        "two filters of each channel",
        lambda x, k: F.conv2d(x, k.weight.repeat(x.shape[1], 1, 1, 1), groups=x.shape[1]),
        16,
        layers=one(nn.Conv2d, 1, 2, 3),
    ),
    Example(
        Movement,
        "two filters of each channel, eight literally",
        lambda x, k: F.conv2d(x, k.weight.repeat(8, 1, 1, 1), groups=x.shape[1]),
        16,
        layers=one(nn.Conv2d, 1, 2, 3),
    ),
    Example(
        Movement,
        "filters that two halves share",
        lambda x, k: F.conv2d(x, k.weight.repeat(2, 1, 1, 1)),
        16,
        (8, 8, 4),
        layers=one(nn.Conv2d, 8, 8, 3),
    ),
    Example(
        Movement,
        "expand to literal sizes",
        lambda x: x.mean((2, 3), keepdim=True).expand(x.shape[0], 8, 6, 6),
    ),
    Example(
        Movement,
        "one channel beside all of them",
        lambda x: x * x.select(1, 6).unsqueeze(1) + torch.select(x, -3, -5).unsqueeze(1),
        groups=(6, 4),
        pinned=("a single channel fills the whole dimension",) * 2,
    ),
    Example(
        Movement,
        "squeezed of what is 1",
        lambda x: x.mean((2, 3), keepdim=True).squeeze()[..., None] * x.squeeze(1).flatten(2),
    ),
    Example(
        Movement,
        "unflattened to the sizes of another",
        lambda x: x.flatten(2).tanh().unflatten(2, x.shape[2:]),
    ),
    Example(Movement, "one position", lambda x: x[:, :, 2]),
    Example(Movement, "narrow", lambda x: x.narrow(1, 2, 4), 4, (4, 4, 4)),
    Example(Movement, "unflatten", lambda x: x.unflatten(1, (2, 4)).sum(1), 4, (4, 4)),
    Example(
        Movement,
        "unflatten module",
        lambda x, m: m(x).sum(2),
        4,
        (4, 4),
        layers=one(nn.Unflatten, 1, (4, 2)),
    ),
    Example(Movement, "pixel unshuffle", lambda x: F.pixel_unshuffle(x, 2), 32),
    Example(ChannelShuffle, "module", run, 8, (4, 4), layers=one(nn.ChannelShuffle, 2)),
    Example(ChannelShuffle, "function", lambda x: F.channel_shuffle(x, 4), 8, (2, 4)),
    Example(Movement, "reflection pad", lambda x: F.pad(x, (1, 1, 2, 2), mode="reflect")),
    Example(Movement, "replication pad", lambda x: F.pad(x, (1, 1, 2, 2), mode="replicate")),
    Example(Movement, "unbind in space", lambda x: x.unbind(3)[1] + x.unbind(3)[2]),
    Example(Movement, "split at once", lambda x: torch.unsafe_split(x, 4, 1)[1], 4, (4, 4, 4)),
    Example(Movement, "chunked at once", lambda x: sum(x.unsafe_chunk(2, 1)), 4, (4, 4)),
)
