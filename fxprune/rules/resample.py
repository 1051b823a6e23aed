"""Pooling and resizing: each channel by itself, over the trailing spatial dimensions."""

import torch

from fxprune.rules.base import Call, Context, Family, Rule

aten = torch.ops.aten


class Resample(Rule):
    """Windows and grids over the last one, two or three dimensions, as the op's name says."""

    keys = (
        aten.avg_pool1d,
        aten.avg_pool2d,
        aten.avg_pool3d,
        aten.max_pool1d,
        aten.max_pool2d_with_indices,
        aten.max_pool3d_with_indices,
        aten._adaptive_avg_pool2d,
        aten._adaptive_avg_pool3d,
        aten.adaptive_avg_pool1d,
        aten.adaptive_max_pool2d,
        aten.adaptive_max_pool3d,
        aten.upsample_nearest1d,
        aten.upsample_nearest2d,
        aten.upsample_nearest3d,
        aten._upsample_nearest_exact1d,
        aten._upsample_nearest_exact2d,
        aten._upsample_nearest_exact3d,
        aten.upsample_linear1d,
        aten.upsample_bilinear2d,
        aten._upsample_bilinear2d_aa,
        aten.upsample_trilinear3d,
        aten.upsample_bicubic2d,
        aten._upsample_bicubic2d_aa,
    )

    def __call__(self, context: Context, call: Call) -> None:
        x = call.tensors()[0]
        name = str(call.op.overloadpacket)
        spatial = next(n for n in (1, 2, 3) if f"{n}d" in name)
        carried = []
        for family in context.of(x):
            own = family.dim - x.dim() + spatial
            if own < 0:
                carried.append(family)
                continue
            context.pin(family.labels, "resampling runs along this dimension")
            if own == 0 and family.dim == 2 and _slides(call, own):  # local response norm
                size = call.out.shape[family.dim]
                begin = (x.shape[family.dim] - size + 1) // 2
                context.slides(family.labels[begin : begin + size], 1)
        for result in call.results():
            context.carry(result, carried)


class Patches(Rule):
    """im2col and back: a channel is as many as a window has positions, one after the other."""

    keys = (aten.im2col, aten.col2im)

    def __call__(self, context: Context, call: Call) -> None:
        x, out = call["self"], call.out
        own = max(x.dim(), out.dim()) - 3
        often = max(out.shape[own] // x.shape[own], 1)
        carried = []
        for family in context.of(x):
            if family.dim > own:
                context.pin(family.labels, "windows slide along this dimension")
            elif family.dim == own:  # back, the positions of a window are summed up
                labels = context.couple_within_rows(family.labels, out.shape[own] // often)
                carried.append(Family(own, labels.repeat_interleave(often)))
            else:
                carried.append(family)
        context.carry(out, carried)


def _slides(call: Call, own: int) -> bool:
    """Tell whether a mean is taken over a window that moves by one position along a dimension."""
    if call.op.overloadpacket not in (aten.avg_pool2d, aten.avg_pool3d):
        return False

    def of(name: str, default: int) -> int:
        value = call.args.get(name) or [default]
        return int(value[own % len(value)])

    width = of("kernel_size", 1)
    return width > 1 and of("stride", width) == 1 and of("padding", 0) == 0


class MaxUnpool(Rule):
    """Values go back to where a max pool found them."""

    keys = (aten.max_unpool2d, aten.max_unpool3d)

    def __call__(self, context: Context, call: Call) -> None:
        x, indices = call["self"], call["indices"]
        outer = x.dim() - len(call["output_size"])
        carried = []
        for dim in range(x.dim()):
            if dim < outer:
                reason = "the unpooling has a fixed number of positions"
                carried += context.overlay([(x, dim), (indices, dim)], dim, reason)
            elif (labels := context.along(x, dim)) is not None:
                context.pin(labels, "resampling runs along this dimension")
        context.carry(call.out, carried)
