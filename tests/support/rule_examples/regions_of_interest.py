"""Examples of `fxprune.rules.regions_of_interest`."""

import torch
import torchvision  # noqa: F401 - whose ops these are
from torch import Tensor

from fxprune.rules.regions_of_interest import PositionRegionPool, RegionPool
from tests.support.rule_examples.base import Example

ops = torch.ops.torchvision


def boxes(x: Tensor) -> Tensor:
    """A box in each image: [N, 5]."""
    corners = torch.tensor([[0.0, 1.0, 4.0, 5.0]], dtype=x.dtype).expand(x.shape[0], 4)
    return torch.cat([torch.arange(x.shape[0], dtype=x.dtype)[:, None], corners], 1)


def by_boxes(x: Tensor, pooled: Tensor) -> Tensor:
    """Scale each channel by what was pooled from its box."""
    return x * pooled.mean((1, 2, 3))[:, None, None]


def box_of_each_channel(x: Tensor) -> Tensor:
    """A box in the first image for each channel, as large as the channel says: [C, 5]."""
    size = x.mean((0, 2, 3)).sigmoid() + 3
    return torch.stack([size * 0, size * 0, size * 0 + 1, size, size + 1], 1)


EXAMPLES: tuple[Example, ...] = (
    Example(RegionPool, "align", lambda x: ops.roi_align(x, boxes(x), 1.0, 3, 3, -1, False)),
    Example(RegionPool, "pool", lambda x: ops.roi_pool(x, boxes(x), 1.0, 3, 3)[0]),
    Example(
        PositionRegionPool,
        "align",
        lambda x: ops.ps_roi_align(x, boxes(x), 1.0, 2, 2, -1)[0],
        2,
        (2, 4),
    ),
    Example(
        PositionRegionPool,
        "pool",
        lambda x: ops.ps_roi_pool(x, boxes(x), 1.0, 2, 2)[0],
        2,
        (2, 4),
    ),
    Example(
        RegionPool,
        "a box for each channel",
        lambda x: by_boxes(x, ops.roi_align(x, box_of_each_channel(x), 1.0, 3, 3, -1, False)),
        mixes=True,
    ),
    Example(
        PositionRegionPool,
        "a box for each channel",
        lambda x: by_boxes(x, ops.ps_roi_align(x, box_of_each_channel(x), 1.0, 2, 2, -1)[0]),
        8,
        (2, 4),
        mixes=True,
    ),
)
