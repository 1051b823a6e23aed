"""Examples of `fxprune.rules.deformable`."""

import torchvision
from torch import Tensor, nn

from fxprune.rules.deformable import DeformableConvolution
from tests.support.rule_examples.base import Example


def deformed(x: Tensor, offsets: nn.Module, conv: nn.Module) -> Tensor:
    """A deformable convolution with offsets of two groups."""
    return torchvision.ops.deform_conv2d(x, offsets(x), conv.weight, conv.bias)


EXAMPLES: tuple[Example, ...] = (
    Example(
        DeformableConvolution,
        "two groups of offsets",
        deformed,
        6,
        (4, 6, 4),
        ("the channels move the positions of a kernel",),
        layers=lambda: (nn.Conv2d(8, 36, 3), nn.Conv2d(8, 6, 3)),
    ),
    Example(
        DeformableConvolution,
        "depthwise",
        deformed,
        8,
        (8, 4),
        ("the channels move the positions of a kernel",),
        layers=lambda: (nn.Conv2d(8, 18, 3), nn.Conv2d(8, 8, 3, groups=8)),
    ),
)
