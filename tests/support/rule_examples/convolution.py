"""Examples of `fxprune.rules.convolution`."""

from torch import Tensor, nn
from torch.nn import functional as F

from fxprune.rules.convolution import Convolution
from tests.support.rule_examples.base import Example, one, run


def dynamic(x: Tensor, layer: nn.Module) -> Tensor:
    """Correlation with a template computed from the first example."""
    template = layer(x[:1].mean((2, 3)))[:, :, None, None]
    return F.conv2d(x, template).expand(-1, 4, -1, -1)


def kernel_each(x: Tensor, layer: nn.Module) -> Tensor:
    """Kernels computed from each example, in a convolution with a conv group an example."""
    n, c, height, width = x.shape
    kernels = layer(x.mean((2, 3))).view(-1, c, 1, 1)
    out = F.conv2d(x.reshape(1, -1, height, width), kernels, groups=n)
    return out.view(n, 4, out.shape[2], out.shape[3])


EXAMPLES: tuple[Example, ...] = (
    Example(
        Convolution,
        "strided and dilated",
        run,
        6,
        (8, 6, 4),
        layers=one(nn.Conv2d, 8, 6, 3, stride=2, dilation=2, padding=2),
    ),
    Example(
        Convolution,
        "padded by reflection",
        run,
        6,
        (8, 6, 4),
        layers=one(nn.Conv2d, 8, 6, 3, padding=1, padding_mode="reflect"),
    ),
    Example(
        Convolution,
        "one output channel",
        lambda x, gate: x * gate(x).sigmoid(),
        layers=one(nn.Conv2d, 8, 1, 3, padding=1),
    ),
    Example(
        Convolution,
        "transposed",
        run,
        6,
        (8, 6, 4),
        layers=one(nn.ConvTranspose2d, 8, 6, 2, stride=2),
    ),
    Example(
        Convolution,
        "depthwise transposed",
        run,
        layers=one(nn.ConvTranspose2d, 8, 8, 2, stride=2, groups=8),
    ),
    Example(
        Convolution,
        "transposed of few conv groups",
        run,
        6,
        (4, 3, 4),
        layers=one(nn.ConvTranspose2d, 8, 6, 2, groups=2),
    ),
    Example(
        Convolution,
        "by function, transposed of few conv groups",
        lambda x, layer: F.conv_transpose2d(x, layer.weight, layer.bias, groups=2),
        6,
        (4, 3, 4),
        layers=one(nn.ConvTranspose2d, 8, 6, 2, groups=2),
    ),
    Example(
        Convolution,
        "by function, grouped",
        lambda x, layer: F.conv2d(x, layer.weight, layer.bias, 1, 0, 1, 2),
        6,
        (4, 3, 4),
        layers=one(nn.Conv2d, 8, 6, 3, groups=2),
    ),
    Example(
        Convolution,
        "by function, depthwise, by keywords",
        lambda x, layer: F.conv2d(x, weight=layer.weight, groups=8, padding=1),
        layers=one(nn.Conv2d, 8, 8, 3, groups=8),
    ),
    Example(
        Convolution,
        "by a kernel of each example",
        dynamic,
        4,
        (8, 4, 4),
        mixes=True,
        layers=one(nn.Linear, 8, 8),
    ),
    Example(
        Convolution,
        "with a conv group an example",
        kernel_each,
        4,
        (4,),
        ("a grouped convolution over channels of fixed number",) * 2,
        layers=one(nn.Linear, 8, 32),
    ),
)
