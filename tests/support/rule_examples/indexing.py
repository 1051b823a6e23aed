"""Examples of `fxprune.rules.indexing`."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fxprune.rules.indexing import (
    Embedding,
    Gather,
    GatherAlong,
    GridOfAffine,
    GridSample,
    Index,
    Scatter,
)
from tests.support.rule_examples.base import Example, one


class Places(nn.Module):
    """A buffer of numbers, one a channel."""

    def __init__(self, *numbers: int) -> None:
        super().__init__()
        self.register_buffer("numbers", torch.tensor(numbers))


def conditional(x: Tensor, table: nn.Module) -> Tensor:
    """A scale from a table, by numbers."""
    return x * table(torch.zeros(x.shape[0], dtype=torch.int64))[:, :, None, None].sigmoid()


def warped(x: Tensor, layer: nn.Module) -> Tensor:
    """A spatial transformer."""
    theta = layer(x.mean((2, 3))).view(-1, 2, 3)
    return F.grid_sample(x, F.affine_grid(theta, x.shape, False), align_corners=False)


EXAMPLES: tuple[Example, ...] = (
    Example(
        Gather,
        "from channels",
        lambda x, places: x.index_select(1, places.numbers),
        3,
        (4,),
        ("channels are chosen by their numbers",) * 2,  # and the numbers stay as well
        layers=one(Places, 5, 0, 5),
    ),
    Example(
        Gather,
        "from a fixed number of positions",
        lambda x, places: x.flatten(2).index_select(2, places.numbers),
        layers=one(Places, 30, 2, 2, 8, 0),
    ),
    Example(
        Scatter,
        "into a fixed number of channels",
        lambda x, places: x.new_zeros(x.shape[0], 9, 6, 6).index_copy(1, places.numbers, x),
        9,
        layers=one(Places, 8, 3, 0, 1, 4, 5, 7, 6),
        mixes=True,
    ),
    Example(
        GatherAlong,
        "along space, other places for each channel",
        lambda x: x.flatten(2).gather(2, (x > 0).long().flatten(2)[:, :, :3]),
    ),
    Example(
        GatherAlong,
        "along space, the same for all channels",
        lambda x: x.flatten(2).gather(2, torch.tensor([[[2, 0]]]).repeat(*x.shape[:2], 1)),
    ),
    Example(
        GatherAlong,
        "channels",
        lambda x: x.gather(
            1, torch.arange(x.shape[2] // 2).view(3, 1, 1) + x.new_zeros(x.shape[0], 1, 6, 6).long()
        ),
        3,
        (4,),
        ("channels are chosen by their numbers",),
    ),
    Example(Index, "by a list", lambda x: x[:, [6, 1, 1, 4]].tanh(), 4, (5, 1, 2, 4)),
    Example(
        Index,
        "by a list, turned",
        lambda x: x[:, [4, 5, 6, 7, 0, 1, 2, 3]] + x,
        groups=(4, 4),
    ),
    Example(
        Index,
        "by a buffer",
        lambda x, places: x[:, places.numbers],
        3,
        (4, 3),  # the numbers themselves can go
        ("channels are chosen by their numbers",),
        layers=one(Places, 5, 0, 5),
    ),
    Example(
        Index,
        "in space, by a buffer",
        lambda x, places: x[:, :, places.numbers],
        layers=one(Places, 5, 0),
    ),
    Example(Embedding, "a scale for each class", conditional, layers=one(nn.Embedding, 5, 8)),
    Example(
        GridSample,
        "by offsets",
        lambda x, conv: F.grid_sample(x, conv(x).tanh().permute(0, 2, 3, 1), align_corners=False),
        8,
        (8, 4),
        ("the channels are coordinates",),
        layers=one(nn.Conv2d, 8, 2, 1),
    ),
    Example(
        GridOfAffine,
        "a spatial transformer",
        warped,
        8,
        (8, 4),
        ("the channels are the numbers of an affine map",),
        layers=one(nn.Linear, 8, 6),
    ),
)
