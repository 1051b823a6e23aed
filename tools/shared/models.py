"""Networks that the benchmarks and the tests share: the CIFAR ResNets.

He, Zhang, Ren & Sun, "Deep Residual Learning for Image Recognition", section 4.2: a 3x3
convolution, three stages of n basic blocks with 16, 32 and 64 channels, global average pooling
and a linear classifier; depth = 6 n + 2.

`width` multiplies every number of channels, as a uniform budget does.
"""

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

Shortcut = Literal["pad", "projection"]


class PadShortcut(nn.Module):
    """Option A: every other pixel, and zeros for the channels that the stage adds."""

    def __init__(self, width_in: int, width_out: int) -> None:
        super().__init__()
        self.extra = width_out - width_in

    def forward(self, x: Tensor) -> Tensor:
        """Maps [N, C, H, W] to [N, C + extra, H / 2, W / 2]."""
        before = self.extra // 2
        return functional.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, before, self.extra - before))


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut."""

    def __init__(self, width_in: int, width: int, stride: int, shortcut: Shortcut) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width_in, width, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 and shortcut == "pad":
            self.shortcut = PadShortcut(width_in, width)
        elif stride != 1:
            self.shortcut = nn.Sequential(
                nn.Conv2d(width_in, width, 1, stride, bias=False), nn.BatchNorm2d(width)
            )

    def forward(self, x: Tensor) -> Tensor:
        """Maps [N, C, H, W] to [N, width, H / stride, W / stride]."""
        y = self.relu(self.bn1(self.conv1(x)))
        return self.relu(self.bn2(self.conv2(y)) + self.shortcut(x))


class CifarResNet(nn.Module):
    """A residual network for small images."""

    def __init__(
        self,
        depth: int,
        classes: int = 10,
        shortcut: Shortcut = "pad",
        widths: tuple[int, int, int] = (16, 32, 64),
    ) -> None:
        super().__init__()
        blocks = (depth - 2) // 6
        self.conv = nn.Conv2d(3, widths[0], 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(widths[0])
        self.relu = nn.ReLU(inplace=True)
        stages: list[nn.Module] = []
        width_in = widths[0]
        for stage, width in enumerate(widths):
            for block in range(blocks):
                stride = 2 if stage > 0 and block == 0 else 1
                stages.append(BasicBlock(width_in, width, stride, shortcut))
                width_in = width
        self.blocks = nn.Sequential(*stages)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(width_in, classes)
        initialised(self)

    def forward(self, x: Tensor) -> Tensor:
        """Maps images [N, 3, H, W] to logits [N, classes]."""
        x = self.blocks(self.relu(self.bn(self.conv(x))))
        return self.fc(torch.flatten(self.pool(x), 1))


def initialised(model: nn.Module) -> nn.Module:
    """Draws all parameters anew: He's normal ones for convolutions, else each module's own."""
    for module in model.modules():
        reset = getattr(module, "reset_parameters", None)
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif reset is not None:
            reset()
    return model


def scaled(channels: int, width: float) -> int:
    """A number of channels times `width`, at least 1."""
    return max(1, int(channels * width + 1e-9))


def _stages(width: float) -> tuple[int, int, int]:
    return scaled(16, width), scaled(32, width), scaled(64, width)


def resnet20(classes: int = 10, shortcut: Shortcut = "pad", width: float = 1.0) -> CifarResNet:
    """ResNet-20: 0.27 million parameters."""
    return CifarResNet(20, classes, shortcut, _stages(width))


def resnet32(classes: int = 10, shortcut: Shortcut = "pad", width: float = 1.0) -> CifarResNet:
    """ResNet-32: 0.46 million parameters."""
    return CifarResNet(32, classes, shortcut, _stages(width))


def resnet56(classes: int = 10, shortcut: Shortcut = "pad", width: float = 1.0) -> CifarResNet:
    """ResNet-56: 0.85 million parameters."""
    return CifarResNet(56, classes, shortcut, _stages(width))


def vgg6(classes: int = 10) -> nn.Sequential:
    """Six convolutions with batch norm, as in VGG, for images of 32 pixels: 38 million macs."""
    layers: list[nn.Module] = []
    width_in = 3
    for width in (32, 64, 128):
        for _ in range(2):
            layers += [nn.Conv2d(width_in, width, 3, padding=1, bias=False)]
            layers += [nn.BatchNorm2d(width), nn.ReLU(inplace=True)]
            width_in = width
        layers.append(nn.MaxPool2d(2))
    return nn.Sequential(
        *layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width_in, classes)
    )
