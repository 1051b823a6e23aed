"""The classics: VGG, ResNets, DenseNet, MobileNetV2, U-Net."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.support.topologies.base import Net, along, group, makes, makes_biased, norms, takes


class Vgg(nn.Module):
    """Convolutions with a bias, two by two positions before the classifier."""

    def __init__(self, norm: bool) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for n, k in ((3, 4), (4, 6)):
            layers += [nn.Conv2d(n, k, 3, padding=1)]
            layers += [nn.BatchNorm2d(k)] if norm else []
            layers += [nn.ReLU(inplace=True), nn.MaxPool2d(2)]
        self.features = nn.Sequential(*layers)
        self.avgpool = nn.AdaptiveAvgPool2d(2)
        self.classifier = nn.Sequential(
            nn.Linear(6 * 4, 7), nn.ReLU(True), nn.Dropout(), nn.Linear(7, 5)
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.avgpool(self.features(x))
        x = torch.flatten(x, 1)
        return self.classifier(x)


def _conv(n: int, k: int, size: int = 3, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(n, k, size, stride, padding=size // 2, bias=False)


class Basic(nn.Module):
    """Two convolutions and a shortcut: the identity, a projection, or padding (option A)."""

    def __init__(self, n: int, k: int, stride: int = 1, option: str = "projection") -> None:
        super().__init__()
        self.conv1, self.bn1 = _conv(n, k, 3, stride), nn.BatchNorm2d(k)
        self.conv2, self.bn2 = _conv(k, k), nn.BatchNorm2d(k)
        self.stride, self.extra = stride, k - n
        self.shortcut = None
        if option == "projection" and (stride > 1 or n != k):
            self.shortcut = nn.Sequential(_conv(n, k, 1, stride), nn.BatchNorm2d(k))

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        if self.shortcut is not None:
            x = self.shortcut(x)
        elif self.extra:
            half = self.extra // 2
            x = F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, half, half))
        out += x
        return F.relu(out)


class Bottleneck(nn.Module):
    """1x1, 3x3, 1x1 and a shortcut, with the module's own relu used three times."""

    def __init__(self, n: int, k: int, out: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1, self.bn1 = _conv(n, k, 1), nn.BatchNorm2d(k)
        self.conv2, self.bn2 = _conv(k, k, 3, stride), nn.BatchNorm2d(k)
        self.conv3, self.bn3 = _conv(k, out, 1), nn.BatchNorm2d(out)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = None
        if stride > 1 or n != out:
            self.downsample = nn.Sequential(_conv(n, out, 1, stride), nn.BatchNorm2d(out))

    def forward(self, x: Tensor) -> Tensor:
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.relu(self.bn2(self.conv2(out)))
        out = self.bn3(self.conv3(out))
        identity = x if self.downsample is None else self.downsample(x)
        return self.relu(out + identity)


class ResNet(nn.Module):
    """A stem, blocks, and a linear classifier."""

    def __init__(self, stem: int, blocks: list[nn.Module], last: int) -> None:
        super().__init__()
        self.conv, self.bn = _conv(3, stem), nn.BatchNorm2d(stem)
        self.blocks = nn.Sequential(*blocks)
        self.fc = nn.Linear(last, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.blocks(F.relu(self.bn(self.conv(x))))
        x = F.avg_pool2d(x, x.size()[3])
        x = x.view(x.size(0), -1)
        return self.fc(x)


class DenseLayer(nn.Module):
    """Norm, relu, convolution; the result is appended to the input."""

    def __init__(self, n: int, growth: int) -> None:
        super().__init__()
        self.norm, self.conv = nn.BatchNorm2d(n), _conv(n, growth)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x, self.conv(F.relu(self.norm(x)))], 1)


class DenseNet(nn.Module):
    """Two dense layers, a transition, another dense layer, a norm."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = _conv(3, 4)
        self.a, self.b = DenseLayer(4, 3), DenseLayer(7, 3)
        self.transition = nn.Sequential(
            nn.BatchNorm2d(10), nn.ReLU(), _conv(10, 5, 1), nn.AvgPool2d(2)
        )
        self.c, self.norm = DenseLayer(5, 3), nn.BatchNorm2d(8)
        self.fc = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.transition(self.b(self.a(self.stem(x))))
        x = F.relu(self.norm(self.c(x)))
        return self.fc(F.adaptive_avg_pool2d(x, (1, 1)).flatten(1))


class Inverted(nn.Module):
    """MobileNetV2's block: expand, depthwise, project; a shortcut where the shape stays."""

    def __init__(self, n: int, hidden: int, k: int, stride: int) -> None:
        super().__init__()
        self.use_res_connect = stride == 1 and n == k
        self.conv = nn.Sequential(
            _conv(n, hidden, 1),
            nn.BatchNorm2d(hidden),
            nn.ReLU6(inplace=True),
            nn.Conv2d(hidden, hidden, 3, stride, padding=1, groups=hidden, bias=False),
            nn.BatchNorm2d(hidden),
            nn.ReLU6(inplace=True),
            _conv(hidden, k, 1),
            nn.BatchNorm2d(k),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv(x) if self.use_res_connect else self.conv(x)


class MobileNet(nn.Module):
    """A stem and three inverted residuals, one of them with a shortcut."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(_conv(3, 4, stride=2), nn.BatchNorm2d(4), nn.ReLU6())
        self.a, self.b = Inverted(4, 8, 6, 1), Inverted(6, 12, 6, 1)
        self.c = Inverted(6, 10, 8, 2)
        self.classifier = nn.Sequential(nn.Dropout(0.2), nn.Linear(8, 5))

    def forward(self, x: Tensor) -> Tensor:
        x = self.c(self.b(self.a(self.stem(x))))
        return self.classifier(x.mean([2, 3]))


class UNet(nn.Module):
    """One level down and up again, a transposed convolution, the skip concatenated."""

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU())
        self.deep = nn.Sequential(nn.Conv2d(4, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU())
        self.up = nn.ConvTranspose2d(6, 5, 2, stride=2)
        self.bn = nn.BatchNorm2d(5)
        self.merge = nn.Sequential(nn.Conv2d(9, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU())
        self.head = nn.Conv2d(4, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        skip = self.down(x)
        x = self.deep(F.max_pool2d(skip, 2))
        x = F.relu(self.bn(self.up(x)))
        x = self.merge(torch.cat((skip, x), dim=1))
        return self.head(F.interpolate(x, scale_factor=0.5, mode="bilinear"))


NETS = (
    Net(
        "vgg",
        lambda: Vgg(norm=False),
        (
            group(4, makes_biased("features.0"), takes("features.3")),
            group(6, makes_biased("features.3"), takes("classifier.0", times=4)),
            group(7, makes_biased("classifier.0"), takes("classifier.3")),
        ),
    ),
    Net(
        "vgg_bn",
        lambda: Vgg(norm=True),
        (
            group(4, makes_biased("features.0"), norms("features.1"), takes("features.4")),
            group(
                6,
                makes_biased("features.4"),
                norms("features.5"),
                takes("classifier.0", times=4),
            ),
            group(7, makes_biased("classifier.0"), takes("classifier.3")),
        ),
    ),
    Net(
        "resnet_projection",
        lambda: ResNet(4, [Basic(4, 4), Basic(4, 6, stride=2), Basic(6, 6)], 6),
        (
            group(
                4,
                makes("conv", "blocks.0.conv2"),
                norms("bn", "blocks.0.bn2"),
                takes("blocks.0.conv1", "blocks.1.conv1", "blocks.1.shortcut.0"),
            ),
            group(4, makes("blocks.0.conv1"), norms("blocks.0.bn1"), takes("blocks.0.conv2")),
            group(6, makes("blocks.1.conv1"), norms("blocks.1.bn1"), takes("blocks.1.conv2")),
            group(
                6,
                makes("blocks.1.conv2", "blocks.1.shortcut.0", "blocks.2.conv2"),
                norms("blocks.1.bn2", "blocks.1.shortcut.1", "blocks.2.bn2"),
                takes("blocks.2.conv1", "fc"),
            ),
            group(6, makes("blocks.2.conv1"), norms("blocks.2.bn1"), takes("blocks.2.conv2")),
        ),
    ),
    Net(
        "resnet_option_a",
        lambda: ResNet(4, [Basic(4, 4), Basic(4, 8, stride=2, option="A")], 8),
        (
            # the shortcut lies on the middle four of the eight channels of the second stage
            group(
                4,
                makes("conv", "blocks.0.conv2", "blocks.1.conv2"),
                norms("bn", "blocks.0.bn2", "blocks.1.bn2"),
                takes("blocks.0.conv1", "blocks.1.conv1", "fc"),
            ),
            group(4, makes("blocks.0.conv1"), norms("blocks.0.bn1"), takes("blocks.0.conv2")),
            group(8, makes("blocks.1.conv1"), norms("blocks.1.bn1"), takes("blocks.1.conv2")),
            group(4, makes("blocks.1.conv2"), norms("blocks.1.bn2"), takes("fc")),
        ),
    ),
    Net(
        "resnet_bottleneck",
        lambda: ResNet(4, [Bottleneck(4, 3, 8), Bottleneck(8, 3, 8, stride=2)], 8),
        (
            group(
                4,
                makes("conv"),
                norms("bn"),
                takes("blocks.0.conv1", "blocks.0.downsample.0"),
            ),
            group(3, makes("blocks.0.conv1"), norms("blocks.0.bn1"), takes("blocks.0.conv2")),
            group(3, makes("blocks.0.conv2"), norms("blocks.0.bn2"), takes("blocks.0.conv3")),
            group(
                8,
                makes("blocks.0.conv3", "blocks.0.downsample.0"),
                norms("blocks.0.bn3", "blocks.0.downsample.1"),
                takes("blocks.1.conv1", "blocks.1.downsample.0"),
            ),
            group(3, makes("blocks.1.conv1"), norms("blocks.1.bn1"), takes("blocks.1.conv2")),
            group(3, makes("blocks.1.conv2"), norms("blocks.1.bn2"), takes("blocks.1.conv3")),
            group(
                8,
                makes("blocks.1.conv3", "blocks.1.downsample.0"),
                norms("blocks.1.bn3", "blocks.1.downsample.1"),
                takes("fc"),
            ),
        ),
    ),
    Net(
        "densenet",
        DenseNet,
        (
            group(
                4,
                makes("stem"),
                norms("a.norm", "b.norm", "transition.0"),
                takes("a.conv", "b.conv", "transition.2"),
            ),
            group(
                3, makes("a.conv"), norms("b.norm", "transition.0"), takes("b.conv", "transition.2")
            ),
            group(3, makes("b.conv"), norms("transition.0"), takes("transition.2")),
            group(5, makes("transition.2"), norms("c.norm", "norm"), takes("c.conv", "fc")),
            group(3, makes("c.conv"), norms("norm"), takes("fc")),
        ),
    ),
    Net(
        "mobilenet",
        MobileNet,
        (
            group(4, makes("stem.0"), norms("stem.1"), takes("a.conv.0")),
            group(
                8,
                makes("a.conv.0"),
                norms("a.conv.1", "a.conv.4"),
                along("a.conv.3.weight"),
                takes("a.conv.6"),
            ),
            group(
                6,
                makes("a.conv.6", "b.conv.6"),
                norms("a.conv.7", "b.conv.7"),
                takes("b.conv.0", "c.conv.0"),
            ),
            group(
                12,
                makes("b.conv.0"),
                norms("b.conv.1", "b.conv.4"),
                along("b.conv.3.weight"),
                takes("b.conv.6"),
            ),
            group(
                10,
                makes("c.conv.0"),
                norms("c.conv.1", "c.conv.4"),
                along("c.conv.3.weight"),
                takes("c.conv.6"),
            ),
            group(8, makes("c.conv.6"), norms("c.conv.7"), takes("classifier.1")),
        ),
    ),
    Net(
        "unet",
        UNet,
        (
            group(4, makes_biased("down.0"), norms("down.1"), takes("deep.0", "merge.0")),
            group(6, makes_biased("deep.0"), norms("deep.1"), ("up.weight[0] in",)),
            group(5, ("up.weight[1] out",), along("up.bias"), norms("bn"), takes("merge.0")),
            group(4, makes_biased("merge.0"), norms("merge.1"), takes("head")),
        ),
    ),
)
