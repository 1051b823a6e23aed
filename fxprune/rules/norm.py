"""Normalisations: statistics over some dimensions, then a scale and a shift along the channels.

Batch norm takes its statistics per channel, so a channel's removal leaves the others as they
are. Group norm does so per group of channels; layer norm over channels mixes them all.
"""

from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from fxprune.channels.graph import Widths
from fxprune.channels.records import Record
from fxprune.channels.sizes import (
    CallSizes,
    ModuleSizes,
    Sizes,
    argument,
    input_of,
    plain,
    set_argument,
)
from fxprune.rules.base import Call, Context, Rule, goes_whole

aten = torch.ops.aten


class BatchNorm(Rule):
    """Scale, shift and running statistics run along dimension 1 of the input."""

    keys = (
        aten.native_batch_norm,
        aten.cudnn_batch_norm,
        aten.miopen_batch_norm,
        aten._native_batch_norm_legit,
        aten._native_batch_norm_legit_no_training,
        aten._batch_norm_with_update,
        aten._batch_norm_no_update,
    )

    def __call__(self, context: Context, call: Call) -> None:
        x, out = call["input"], call.results()[0]
        channels = context.along(x, 1)
        for name in ("weight", "bias", "running_mean", "running_var"):
            _meet(context, call, name, channels)
        if any(family.dim != 1 for family in context.of(x)):
            context.mixes()  # weight standardisation: the statistics of each kernel
        context.carry(out, context.of(x))
        affine = [context.along(call[name], 0) for name in ("weight", "bias")]
        context.gate(out, affine, norm_of=x)


class WeightNorm(Rule):
    """Divides a weight's direction by its norm over all dimensions but one, by PyTorch's own op.

    A slice that is zero adds nothing to the norm, so that removing it is the same. Along the
    output channels of a transposed convolution, too, it is the norm that needs the zeros.
    """

    keys = (aten._weight_norm_interface,)

    def __call__(self, context: Context, call: Call) -> None:
        direction, size, dim = call["v"], call["g"], call["dim"]
        reason = "the norm of its weights has fixed size"
        context.meet(context.along(direction, dim), context.along(size, dim), reason)
        for family in context.of(direction):
            if family.dim != dim % direction.dim():
                context.consumes(direction, family.dim)
        weight, norms = call.results()
        context.carry(weight, context.of(direction))
        context.carry(norms, context.of(size))


class LayerNorm(Rule):
    """Statistics over the last dimensions; scale and shift have their shape."""

    keys = (aten.native_layer_norm,)

    def __call__(self, context: Context, call: Call) -> None:
        x, out = call["input"], call.results()[0]
        first = x.dim() - len(call["normalized_shape"])
        for dim in range(first, x.dim()):
            channels = context.along(x, dim)
            for name in ("weight", "bias"):
                scale = call.args.get(name)
                labels = context.along(scale, dim - first)
                if scale is not None:
                    context.meet(channels, labels, "the norm is over a dimension of fixed size")
            if channels is not None:
                context.mixes(channels)
        context.carry(out, context.of(x))


class GroupNorm(Rule):
    """Statistics per group of channels; groups go whole, or all lose the same positions."""

    keys = (aten.native_group_norm,)

    def __call__(self, context: Context, call: Call) -> None:
        x, out, groups = call["input"], call.results()[0], call["group"]
        channels = context.along(x, 1)
        for name in ("weight", "bias"):
            _meet(context, call, name, channels)
        if channels is not None:
            settable = context.normalises(channels, groups, call["weight"])
            if settable and context.choose(goes_whole(channels, groups)):
                context.couple_within_rows(channels, groups)
            else:  # the channels of each group are thinned alike, which changes its statistics
                context.couple_rows(channels, groups)
                context.mixes(channels)
        context.carry(out, context.of(x))


def _meet(context: Context, call: Call, name: str, channels: Tensor | None) -> None:
    """Couple the channels of a norm's input with a tensor [C] of the norm, if it is given one."""
    tensor = call.args.get(name)
    if tensor is not None:
        reason = "the norm is over a fixed number of channels"
        if channels is not None:
            reason = f"the norm's {name} has fixed size"
        context.meet(channels, context.along(tensor, 0), reason)


class ChannelAttributes(ModuleSizes):
    """The channels of a batch norm, an instance norm or a group norm, and the latter's groups."""

    keys = (nn.modules.batchnorm._NormBase, nn.GroupNorm)

    def __call__(self, module: Any, sizes: Sizes) -> None:
        known = sizes.channels.norm_inputs.get(sizes.path)
        if known is not None:
            module.num_groups = known.blocks(sizes.widths)
            module.num_channels = known.length(sizes.widths)
        attribute = "num_channels" if isinstance(module, nn.GroupNorm) else "num_features"
        for parameter in ("weight", "bias", "running_mean"):
            shape = sizes.of(parameter)
            if shape is not None:
                setattr(module, attribute, shape[0])
                return


class LayerNormAttributes(ModuleSizes):
    """The sizes that a layer norm normalises over."""

    keys = (nn.LayerNorm, nn.RMSNorm)

    def __call__(self, module: Any, sizes: Sizes) -> None:
        shape = sizes.of("weight") or sizes.of("bias")
        if shape is not None:
            module.normalized_shape = shape


class GroupNormSizes(CallSizes):
    """The number of groups, where they are removed whole."""

    keys = (F.group_norm,)

    def __call__(self, node: fx.Node, record: Record, widths: Widths) -> None:
        source, groups = input_of(node), plain(argument(record, 1, "num_groups", None))
        if source is not None and 1 in source.axes and isinstance(groups, int):
            set_argument(node, 1, "num_groups", source.axes[1].blocks(groups, widths))


class LayerNormSizes(CallSizes):
    """The sizes that a layer norm normalises over."""

    keys = (F.layer_norm, F.rms_norm)

    def __call__(self, node: fx.Node, record: Record, widths: Widths) -> None:
        dense = argument(record, 1, "normalized_shape", ())
        if dense is None:  # another node gives it, such as the shape of the weight
            return
        set_argument(node, 1, "normalized_shape", record.result.at(widths)[-len(dense) :])


class Renorm(Rule):
    """Each slice along a dimension, scaled down where its norm is too large (EEGNet).

    In the norm of a weight's slice a zero column counts for nothing, as in weight norm.
    """

    keys = (aten.renorm,)

    def __call__(self, context: Context, call: Call) -> None:
        x = call["self"]
        for family in context.of(x):
            if family.dim != call["dim"] % x.dim():
                if context.is_parametric(x):
                    context.consumes(x, family.dim)
                else:
                    context.mixes()
        context.carry(call.out, context.of(x))
