"""Fake quantisation: numbers are rounded, with a scale for all of them or for each channel."""

import torch

from fxprune.rules.base import Call, Context, Rule

aten = torch.ops.aten


class FakeQuantise(Rule):
    """Rounding by a scale and a zero point, which may run along one dimension of x."""

    keys = (
        aten.fake_quantize_per_channel_affine_cachemask,
        aten.fake_quantize_per_tensor_affine_cachemask,
        aten._fake_quantize_per_tensor_affine_cachemask_tensor_qparams,
    )

    def __call__(self, context: Context, call: Call) -> None:
        x = call["self"]
        if "axis" in call.args:
            channels = context.along(x, call["axis"] % x.dim())
            for name in ("scale", "zero_point"):
                labels = context.along(call[name], 0)
                context.meet(channels, labels, "the quantisation has a fixed number of scales")
        for result in call.results():
            context.carry(result, context.of(x))


class ObserveAndQuantise(Rule):
    """The same, with the smallest and largest value seen: of each channel, or of all of x."""

    keys = (aten._fused_moving_avg_obs_fq_helper,)

    def __call__(self, context: Context, call: Call) -> None:
        x = call["self"]
        if call["per_row_fake_quant"]:
            channels = context.along(x, call["ch_axis"] % x.dim())
            for name in ("running_min", "running_max", "scale", "zero_point"):
                labels = context.along(call[name], 0)
                context.meet(channels, labels, "the quantisation has a fixed number of scales")
        elif context.of(x):
            context.mixes()
        for result in call.results():
            context.carry(result, context.of(x))
