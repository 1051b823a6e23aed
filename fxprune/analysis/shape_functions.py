"""Shape functions: what common calls return, so that meta tensors need not run through them.

An optional part, which `label_mode` alone calls: without it an analysis finds the same, later.
(Only for fake quantisation there is no other way: PyTorch cannot run it on meta tensors.)

A common layer or function is one ATen call, and shape, strides and dtype of its result follow from
its operands where these are regular: for a convolution of x [2, 3, 8, 8] by w [16, 3, 3, 3] without
padding they are those of a contiguous [2, 16, 6, 6]. All other calls run in PyTorch.
`aten.linear` counts as one call, though PyTorch makes several of it: it has a rule as a whole.
"""

import operator
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

aten = torch.ops.aten

AtenCall = tuple[Any, tuple[Any, ...]]
"""An ATen op and its arguments."""

Look = tuple[torch.Size | tuple[int, ...], tuple[int, ...], torch.dtype]
"""A tensor's shape, strides and dtype."""

ResultForm = int | Look
"""How to make a result without its op: the argument that it is, or the look of a new tensor."""


SIZED = frozenset({aten.native_layer_norm.default})
"""Ops with sizes among their arguments, which have to be changed with the widths."""


def made(form: ResultForm, args: tuple[Any, ...]) -> Any:
    """Make the result that a form describes."""
    if isinstance(form, int):
        return args[form]
    shape, stride, dtype = form
    return torch.empty_strided(shape, stride, dtype=dtype, device="meta")


# --- which call ------------------------------------------------------------------------------


def call_of(target: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> AtenCall | None:
    """Return the one ATen call that a layer in evaluation mode, or a function, makes.

    A method counts as a function, such as `Tensor.relu`. Of an op that returns several tensors the
    layer returns the first. None for other layers and functions.
    """
    if isinstance(target, nn.Module):
        known = _LAYERS.get(type(target))
        if known is None or kwargs or len(args) != 1 or not isinstance(args[0], Tensor):
            return None
        hooked = target._forward_hooks or target._forward_pre_hooks or "forward" in vars(target)
        return None if hooked else known(target, args[0])
    if target is torch.cat:
        given = (*args, *kwargs.values())
        plain = args and isinstance(args[0], (list, tuple)) and kwargs.keys() <= {"dim"}
        tensors = plain and len(given) < 3 and all(isinstance(x, Tensor) for x in args[0])
        return (aten.cat.default, given) if tensors else None
    op = _FUNCTIONS.get(target)
    if op is None or kwargs or not isinstance(args[0], Tensor):
        return None
    numbers = all(isinstance(value, Tensor) or type(value) in (int, float) for value in args)
    return (op, args) if numbers else None


def _convolution(layer: Any, x: Tensor) -> AtenCall | None:
    if layer.padding_mode != "zeros" or isinstance(layer.padding, str):
        return None
    window = (layer.stride, layer.padding, layer.dilation, False, layer.output_padding)
    return aten.convolution.default, (x, layer.weight, layer.bias, *window, layer.groups)


def _batch_norm(*dims: int) -> Callable[[Any, Tensor], AtenCall | None]:
    def call(layer: Any, x: Tensor) -> AtenCall | None:
        if x.dim() not in dims or layer.running_mean is None or layer.training:
            return None
        statistics = (layer.running_mean, layer.running_var, False, layer.momentum or 0.0)
        args = (x, layer.weight, layer.bias, *statistics, layer.eps)
        return aten.native_batch_norm.default, args

    return call


def _linear(layer: Any, x: Tensor) -> AtenCall:
    return aten.linear.default, (x, layer.weight, layer.bias)


def _layer_norm(layer: Any, x: Tensor) -> AtenCall:
    args = (x, layer.normalized_shape, layer.weight, layer.bias, layer.eps)
    return aten.native_layer_norm.default, args


def _pooled(layer: Any, x: Tensor) -> AtenCall | None:
    whole = layer.output_size in (1, (1, 1)) and x.dim() == 4
    return (aten.mean.dim, (x, [-1, -2], True)) if whole else None


def _activation(op: Any, *options: str) -> Callable[[Any, Tensor], AtenCall]:
    in_place = getattr(aten, f"{op.overloadpacket.__name__}_")

    def call(layer: Any, x: Tensor) -> AtenCall:
        own = in_place.default if getattr(layer, "inplace", False) else op
        return own, (x, *[getattr(layer, name) for name in options])

    return call


_LAYERS: Mapping[type[nn.Module], Callable[[Any, Tensor], AtenCall | None]] = MappingProxyType(
    {
        nn.Conv1d: _convolution,
        nn.Conv2d: _convolution,
        nn.Conv3d: _convolution,
        nn.BatchNorm1d: _batch_norm(2, 3),
        nn.BatchNorm2d: _batch_norm(4),
        nn.BatchNorm3d: _batch_norm(5),
        nn.AdaptiveAvgPool2d: _pooled,
        nn.Hardsigmoid: _activation(aten.hardsigmoid.default),
        nn.Hardswish: _activation(aten.hardswish.default),
        nn.LayerNorm: _layer_norm,
        nn.LeakyReLU: _activation(aten.leaky_relu.default, "negative_slope"),
        nn.Linear: _linear,
        nn.ReLU: _activation(aten.relu.default),
        nn.ReLU6: _activation(aten.hardtanh.default, "min_val", "max_val"),
        nn.Sigmoid: _activation(aten.sigmoid.default),
        nn.SiLU: _activation(aten.silu.default),
        nn.Tanh: _activation(aten.tanh.default),
    }
)

_FUNCTIONS: Mapping[Any, Any] = MappingProxyType(
    {
        operator.add: aten.add.Tensor,
        operator.iadd: aten.add_.Tensor,
        operator.mul: aten.mul.Tensor,
        operator.imul: aten.mul_.Tensor,
        torch.add: aten.add.Tensor,
        torch.mul: aten.mul.Tensor,
        torch.relu: aten.relu.default,
        torch.sigmoid: aten.sigmoid.default,
        Tensor.add: aten.add.Tensor,
        Tensor.add_: aten.add_.Tensor,
        Tensor.mul: aten.mul.Tensor,
        Tensor.mul_: aten.mul_.Tensor,
        Tensor.relu: aten.relu.default,
        Tensor.relu_: aten.relu_.default,
        Tensor.sigmoid: aten.sigmoid.default,
    }
)


# --- which results ---------------------------------------------------------------------------


def known_results(func: Any, args: tuple[Any, ...]) -> tuple[bool, list[ResultForm]] | None:
    """Describe the results of an ATen call on meta tensors; None where PyTorch has to run it.

    Known are element-wise floating-point ops among operands that agree in dtype, or are
    Python numbers, where one operand without gaps is as large as the result; and convolutions,
    norms, linear layers, concatenations and global pooling of tensors that fit.

    Returns:
        Whether the op returns a tuple, and a form for each result.
    """
    known = _RESULTS.get(func.overloadpacket)
    return None if known is None else known(args)


Results = tuple[bool, list[ResultForm]] | None


def _same(args: tuple[Any, ...]) -> Results:
    largest = _largest(args)
    if largest is None or not _alike(args, largest):
        return None
    return False, [(largest.shape, largest.stride(), largest.dtype)]


def _quantised(args: tuple[Any, ...]) -> Results:
    """Describe fake quantisation: x and a mask. PyTorch has no function for it on meta tensors."""
    x = args[0]
    if not x.is_meta:
        return None
    return True, [(x.shape, x.stride(), x.dtype), (x.shape, x.stride(), torch.bool)]


def _in_place(args: tuple[Any, ...]) -> Results:
    return (False, [0]) if _largest(args) is args[0] else None


def _largest(args: tuple[Any, ...]) -> Tensor | None:
    """Return the tensor that the others are broadcast to; None where there is none."""
    tensors = [value for value in args if isinstance(value, Tensor)]
    largest = max(tensors, key=Tensor.numel)
    real = largest.dtype.is_floating_point and not any(type(value) is complex for value in args)
    if not largest.is_meta or not real:
        return None
    for tensor in tensors:
        if tensor is not largest:
            fits = tensor.is_meta and tensor.dtype is largest.dtype
            sizes = zip(reversed(tensor.shape), reversed(largest.shape), strict=False)
            if not fits or tensor.dim() > largest.dim() or any(n not in (1, m) for n, m in sizes):
                return None
    return largest


def _alike(args: tuple[Any, ...], largest: Tensor) -> bool:
    """Tell whether the result lies in memory like the largest operand, which has no gaps."""
    if largest.is_contiguous():
        return True
    if not largest.is_contiguous(memory_format=torch.channels_last):
        return False
    # of the others' strides PyTorch minds those along two dimensions and more
    return all(
        value.stride() == largest.stride() if value.shape == largest.shape else _is_line(value)
        for value in args
        if isinstance(value, Tensor)
    )


def _is_line(tensor: Tensor) -> bool:
    return sum(size > 1 for size in tensor.shape) < 2


def _normed(args: tuple[Any, ...]) -> Results:
    x, *rest = (value for value in args if isinstance(value, Tensor))
    if not x.is_meta or not x.is_contiguous() or x.dim() < 2:
        return None
    if any(tensor.shape != x.shape[1:2] for tensor in rest):
        return None
    statistics = (x.shape[1:2], (1,), x.dtype)
    return True, [(x.shape, x.stride(), x.dtype), statistics, statistics]


def _convolved(args: tuple[Any, ...]) -> Results:
    x, weight, bias, stride, padding, dilation, transposed, _, groups = args
    tensors = (x, weight) if bias is None else (x, weight, bias)
    spatial = x.dim() - 2
    if (
        transposed
        or not len(stride) == len(padding) == len(dilation) == spatial == weight.dim() - 2
    ):
        return None
    rows, columns, *kernel = weight.shape
    batch, inputs, *image = x.shape
    fits = inputs == columns * groups and rows % groups == 0 and min(x.shape) > 0 < rows
    if not fits or (bias is not None and bias.shape != (rows,)) or not _agree(tensors):
        return None
    sizes = tuple(
        (size + 2 * pad - step * (width - 1) - 1) // hop + 1
        for size, width, hop, pad, step in zip(
            image, kernel, stride, padding, dilation, strict=True
        )
    )
    return _new((batch, rows, *sizes), x) if min(sizes) > 0 else None


def _multiplied(args: tuple[Any, ...]) -> Results:
    x, weight, bias = args
    tensors = (x, weight) if bias is None else (x, weight, bias)
    if weight.dim() != 2 or x.dim() < 2 or min(x.shape) == 0 or not _agree(tensors):
        return None
    rows, columns = weight.shape
    fits = x.shape[-1] == columns and (bias is None or bias.shape == (rows,))
    return _new((*x.shape[:-1], rows), x) if fits else None


def _layer_normed(args: tuple[Any, ...]) -> Results:
    x, shape, weight, bias, _ = args
    tensors = [tensor for tensor in (x, weight, bias) if tensor is not None]
    inner = tuple(shape)
    if x.shape[x.dim() - len(inner) :] != inner or not _agree(tensors):
        return None
    if any(tensor.shape != inner for tensor in tensors[1:]):
        return None
    outer = (*x.shape[: x.dim() - len(inner)], *[1] * len(inner))
    return True, [_form(x.shape, x), *[_form(outer, x)] * 2]


def _concatenated(args: tuple[Any, ...]) -> Results:
    tensors, dim = args[0], args[1] if len(args) > 1 else 0
    if not tensors:
        return None
    first = tensors[0]
    if not isinstance(dim, int) or not -first.dim() <= dim < first.dim() or not _dense(tensors):
        return None
    dim %= first.dim()
    rest = {(*tensor.shape[:dim], *tensor.shape[dim + 1 :]) for tensor in tensors}
    if len(rest) > 1 or any(tensor.dim() != first.dim() for tensor in tensors):
        return None
    size = sum(tensor.shape[dim] for tensor in tensors)
    return _new((*first.shape[:dim], size, *first.shape[dim + 1 :]), first)


def _averaged(args: tuple[Any, ...]) -> Results:
    """Describe the mean over the last two dimensions, which stay, as global pooling takes it."""
    x = args[0]
    if args[1:] != ([-1, -2], True) or x.dim() < 3 or not _dense((x,)):
        return None
    return _new((*x.shape[:-2], 1, 1), x)


def _agree(tensors: Sequence[Tensor]) -> bool:
    """Tell whether all are meta tensors of one floating-point dtype."""
    dtype = tensors[0].dtype
    return dtype.is_floating_point and all(t.is_meta and t.dtype is dtype for t in tensors)


def _dense(tensors: Sequence[Tensor]) -> bool:
    """Tell whether they agree, and are contiguous."""
    return _agree(tensors) and all(tensor.is_contiguous() for tensor in tensors)


def _new(shape: tuple[int, ...], like: Tensor) -> Results:
    return False, [_form(shape, like)]


def _form(shape: tuple[int, ...], like: Tensor) -> Look:
    stride, step = [], 1
    for size in reversed(shape):
        stride.append(step)
        step *= max(size, 1)
    return shape, tuple(reversed(stride)), like.dtype


_RESULTS: Mapping[Any, Callable[[tuple[Any, ...]], Results]] = MappingProxyType(
    {
        aten.add: _same,
        aten.add_: _in_place,
        aten.cat: _concatenated,
        aten.convolution: _convolved,
        aten.div: _same,
        aten.fake_quantize_per_channel_affine_cachemask: _quantised,
        aten.fake_quantize_per_tensor_affine_cachemask: _quantised,
        aten._fake_quantize_per_tensor_affine_cachemask_tensor_qparams: _quantised,
        aten.gelu: _same,
        aten.hardsigmoid: _same,
        aten.hardsigmoid_: _in_place,
        aten.hardswish: _same,
        aten.hardswish_: _in_place,
        aten.hardtanh: _same,
        aten.hardtanh_: _in_place,
        aten.leaky_relu: _same,
        aten.leaky_relu_: _in_place,
        aten.linear: _multiplied,
        aten.mean: _averaged,
        aten.mul: _same,
        aten.mul_: _in_place,
        aten.native_batch_norm: _normed,
        aten.native_layer_norm: _layer_normed,
        aten.relu: _same,
        aten.relu_: _in_place,
        aten.sigmoid: _same,
        aten.silu: _same,
        aten.silu_: _in_place,
        aten.sub: _same,
        aten.tanh: _same,
    }
)
