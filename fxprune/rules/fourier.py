"""Fourier transforms along space, and complex numbers as pairs."""

import torch

from fxprune.rules.base import Call, Context, Rule

aten = torch.ops.aten


class Fourier(Rule):
    """Transforms along some dimensions; channels along others stay by themselves."""

    keys = (aten._fft_r2c, aten._fft_c2r, aten._fft_c2c)

    def __call__(self, context: Context, call: Call) -> None:
        x = call["self"]
        along = {dim % x.dim() for dim in call["dim"]}
        carried = []
        for family in context.of(x):
            if family.dim in along:
                context.pin(family.labels, "a Fourier transform runs along this dimension")
            else:
                carried.append(family)
        context.carry(call.out, carried)


class Pairs(Rule):
    """Complex numbers to pairs in a new last dimension, and back."""

    keys = (aten.view_as_real, aten.view_as_complex)

    def __call__(self, context: Context, call: Call) -> None:
        x, carried = call["self"], []
        for family in context.of(x):
            if family.dim < call.out.dim():
                carried.append(family)
            else:
                context.pin(family.labels, "the channels are the two parts of complex numbers")
        context.carry(call.out, carried)
