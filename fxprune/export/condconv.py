"""Convolutions with a kernel for each example, in a form that ONNX can hold.

Such a layer (CondConv, arXiv 1904.04971) moves the batch into the channels and gives each example
a convolution group of its own. ONNX's Conv has a fixed number of groups, and with a dynamic batch
torch.export sees a symbolic one. While `BatchedConvs` is active, such a convolution is written as a
matrix product of its kernels with the patches of the image.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

_ARGUMENTS = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")


class BatchedConvs(TorchFunctionMode):
    """Writes 2-d convolutions with a symbolic number of groups as matrix products."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: Sequence[Any] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        del types
        kwargs = kwargs or {}
        if func is torch.conv2d:
            given = dict(zip(_ARGUMENTS, args)) | kwargs
            if isinstance(given.get("groups"), torch.SymInt):
                return _product(**given)
        return func(*args, **kwargs)


def _product(
    input: Tensor,  # noqa: A002 - torch's own names
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] = 0,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
) -> Tensor:
    """Convolve input [n, groups * c, h, w] by weight [groups * o, c, kh, kw]."""
    c, size = weight.shape[1], tuple(weight.shape[2:])
    steps = [(x, x) if isinstance(x, int) else tuple(x) for x in (padding, dilation, stride)]
    image = input.shape[2:]
    patches = F.unfold(input.reshape(-1, c, *image), size, steps[1], steps[0], steps[2])
    rows = patches.shape[1]  # c * kh * kw
    out = weight.reshape(groups, -1, rows) @ patches.reshape(-1, groups, rows, patches.shape[2])
    across = zip(image, size, *steps, strict=True)
    lengths = ((n + 2 * p - d * (k - 1) - 1) // s + 1 for n, k, p, d, s in across)
    out = out.reshape(-1, weight.shape[0], *lengths)
    return out if bias is None else out + bias.view(-1, 1, 1)
