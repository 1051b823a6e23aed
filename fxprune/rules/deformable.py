"""Deformable convolutions, an op of torchvision."""

from fxprune.rules.base import Call, Context
from fxprune.rules.convolution import Convolution


class DeformableConvolution(Convolution):
    """A convolution whose kernel positions move by offsets [N, 2 K K for each offset group, …].

    The number of offset groups is that of the offsets, which stay: each loses the same positions.
    """

    keys = ("torchvision::deform_conv2d",)

    def __call__(self, context: Context, call: Call) -> None:
        for tensor in (call["offset"], call["mask"]):
            for family in context.of(tensor):
                if family.dim == 1:
                    context.pin(family.labels, "the channels move the positions of a kernel")
        inputs = context.along(call["input"], 1)
        if inputs is not None:
            context.couple_rows(inputs, call["offset_groups"])
        window = {
            name: [call[f"{short}_h"], call[f"{short}_w"]]
            for name, short in (("stride", "stride"), ("padding", "pad"))
        }
        args = {**call.args, **window, "transposed": False}
        super().__call__(context, Call(call.op, args, call.out, call.positional, call.keywords))
