"""The networks of the step benchmark, each with a factory that takes a width.

Written plainly after the papers, so that the narrow network of the comparison comes from the same
factory as the dense one: VGG-16 with batch norm for small images (one linear classifier, as in
most pruning papers), the CIFAR ResNets (`models.py`), DenseNet-40 with growth 12 and no bottleneck
(Huang et al., CVPR 2017), MobileNetV2 (Sandler et al., CVPR 2018) and ResNet-50 (He et al., CVPR
2016, stride in the 3x3 convolution). `width` multiplies every number of channels but those of the
images and the classes.
"""

from collections.abc import Callable
from dataclasses import dataclass

import _paths  # noqa: F401 - the tools that all share
import models
import torch
from models import scaled
from torch import Tensor, nn


@dataclass(frozen=True)
class Network:
    """A network of the benchmark.

    Attributes:
        build: from a width to the network.
        side: height and width of its images on a CPU.
        gpu_side: the same on a GPU.
        classes: how many it tells apart.
    """

    build: Callable[[float], nn.Module]
    side: int = 32
    gpu_side: int = 32
    classes: int = 10


def block(width_in: int, width: int, kernel: int, stride: int = 1, groups: int = 1) -> nn.Module:
    """Convolution and batch norm."""
    conv = nn.Conv2d(width_in, width, kernel, stride, kernel // 2, groups=groups, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(width))


def vgg16_bn(width: float = 1.0) -> nn.Module:
    """VGG-16 with batch norm: 14.7 million parameters."""
    layers: list[nn.Module] = []
    width_in = 3
    for count, channels in ((2, 64), (2, 128), (3, 256), (3, 512), (3, 512)):
        for _ in range(count):
            layers += [block(width_in, scaled(channels, width), 3), nn.ReLU(inplace=True)]
            width_in = scaled(channels, width)
        layers.append(nn.MaxPool2d(2))
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(width_in, 10))


class DenseLayer(nn.Module):
    """Norm, ReLU and convolution, whose output joins the input."""

    def __init__(self, width_in: int, growth: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(width_in)
        self.conv = nn.Conv2d(width_in, growth, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Maps [N, C, H, W] to [N, C + growth, H, W]."""
        return torch.cat([x, self.conv(torch.relu(self.norm(x)))], 1)


def densenet40(width: float = 1.0) -> nn.Module:
    """DenseNet-40 with growth 12: 1.0 million parameters."""
    growth, channels = scaled(12, width), scaled(16, width)
    layers: list[nn.Module] = [nn.Conv2d(3, channels, 3, padding=1, bias=False)]
    for stage in range(3):
        for _ in range(12):
            layers.append(DenseLayer(channels, growth))
            channels += growth
        layers += [nn.BatchNorm2d(channels), nn.ReLU(inplace=True)]
        if stage < 2:
            layers += [nn.Conv2d(channels, channels, 1, bias=False), nn.AvgPool2d(2)]
    pool = [nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    return nn.Sequential(*layers, *pool, nn.Linear(channels, 10))


class Residual(nn.Module):
    """A body, and the input or its projection added to what it returns."""

    def __init__(self, body: nn.Module, shortcut: nn.Module, last: nn.Module) -> None:
        super().__init__()
        self.body, self.shortcut, self.last = body, shortcut, last

    def forward(self, x: Tensor) -> Tensor:
        """Maps [N, C, H, W] to the body's shape."""
        return self.last(self.body(x) + self.shortcut(x))


def mobilenet_v2(
    width: float = 1.0, classes: int = 1000, strides: tuple[int, ...] = (2, 1, 2, 2, 2, 1, 2, 1)
) -> nn.Module:
    """MobileNetV2, for 1,000 classes with 3.5 million parameters.

    `strides` are those of the first convolution and of each stage.
    """
    channels = scaled(32, width)
    layers: list[nn.Module] = [block(3, channels, 3, strides[0]), nn.ReLU6(inplace=True)]
    rows = ((1, 16, 1), (6, 24, 2), (6, 32, 3), (6, 64, 4), (6, 96, 3), (6, 160, 3), (6, 320, 1))
    for (expansion, out, count), first_stride in zip(rows, strides[1:], strict=True):
        for number in range(count):
            stride = first_stride if number == 0 else 1
            hidden, narrow = expansion * channels, scaled(out, width)
            parts: list[nn.Module] = []
            if expansion > 1:
                parts += [block(channels, hidden, 1), nn.ReLU6(inplace=True)]
            parts += [block(hidden, hidden, 3, stride, groups=hidden), nn.ReLU6(inplace=True)]
            body = nn.Sequential(*parts, block(hidden, narrow, 1))
            same = stride == 1 and channels == narrow and number > 0
            layers.append(Residual(body, nn.Identity(), nn.Identity()) if same else body)
            channels = narrow
    layers += [block(channels, scaled(1280, width), 1), nn.ReLU6(inplace=True)]
    pool = [nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    return nn.Sequential(*layers, *pool, nn.Linear(scaled(1280, width), classes))


def resnet50(width: float = 1.0) -> nn.Module:
    """ResNet-50 for 1,000 classes: 25.6 million parameters."""
    channels = scaled(64, width)
    layers: list[nn.Module] = [block(3, channels, 7, 2), nn.ReLU(inplace=True)]
    layers.append(nn.MaxPool2d(3, 2, 1))
    for planes, count in ((64, 3), (128, 4), (256, 6), (512, 3)):
        inner, out = scaled(planes, width), scaled(4 * planes, width)
        for number in range(count):
            stride = 2 if number == 0 and planes > 64 else 1
            body = nn.Sequential(
                *(block(channels, inner, 1), nn.ReLU(inplace=True)),
                *(block(inner, inner, 3, stride), nn.ReLU(inplace=True)),
                block(inner, out, 1),
            )
            shortcut = block(channels, out, 1, stride) if number == 0 else nn.Identity()
            layers.append(Residual(body, shortcut, nn.ReLU(inplace=True)))
            channels = out
    pool = [nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    return nn.Sequential(*layers, *pool, nn.Linear(channels, 1000))


NETWORKS = {
    "vgg16_bn": Network(vgg16_bn),
    "resnet20": Network(lambda width: models.resnet20(width=width)),
    "resnet56": Network(lambda width: models.resnet56(width=width)),
    "densenet40": Network(densenet40),
    "mobilenet_v2": Network(mobilenet_v2, side=96, gpu_side=224, classes=1000),
    "resnet50": Network(resnet50, side=96, gpu_side=224, classes=1000),
}
