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
)
