"""Convolutions, plain, grouped, depthwise and transposed.

    y[n, o] = sum over i in o's conv group of w[o, i] * x[n, i]        (transposed: w[i, o])

With G = 1 the weight's columns meet the input's channels and its rows make the output's. With
G > 1 a conv group is removed whole where the groups are many (depthwise: one channel each), so
that rows, columns and inputs of one conv group are one channel; where they are few and wide,
each loses the same positions, so that G stays.
"""

import math
from collections.abc import Hashable
from typing import Any, ClassVar

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
    operand,
    plain,
    set_argument,
)
from fxprune.rules.base import Call, Context, Family, Rule, goes_whole


class Convolution(Rule):
    """aten.convolution, in any number of spatial dimensions."""

    keys: ClassVar[tuple[Hashable, ...]] = (torch.ops.aten.convolution,)

    def __call__(self, context: Context, call: Call) -> None:
        x, weight, bias, groups = call["input"], call["weight"], call["bias"], call["groups"]
        out, transposed = call.out, call["transposed"]
        kept = [family for family in context.of(x) if family.dim != 1]
        for family in list(kept):
            if family.dim > 1 and not _stands_still(call, family.dim):
                kept.remove(family)
                context.pin(family.labels, "the convolution slides along this dimension")
                if out.shape[family.dim] == x.shape[family.dim]:
                    context.slides(family.labels, family.dim)
        for family in context.of(weight):
            if family.dim > 1:
                context.pin(family.labels, "a position of the kernel", structural=True)
        rows, columns = context.along(weight, 0), context.along(weight, 1)
        inputs = context.along(x, 1)
        if groups == 1:
            made, consumed = (columns, rows) if transposed else (rows, columns)
            context.meet(inputs, consumed, "the convolution reads a fixed number of channels")
            context.consumes(weight, 0 if transposed else 1)
            context.makes(weight, 1 if transposed else 0)
            if consumed is not None and not context.is_parametric(weight):
                context.mixes()  # a kernel that is computed from the input has no column to zero
        else:
            made = self._grouped(context, call, inputs, rows, columns)
        if bias is not None:
            context.meet(made, context.along(bias, 0), "the bias has fixed size")
        source = x.shape[1] if inputs is None else inputs
        context.convolves(weight, source, groups, transposed=transposed)
        context.carry(out, kept if made is None else [*kept, Family(1, made)])
        context.gate(out, (made, context.along(bias, 0)))
        self._count(context, call, rows, columns, made)

    def _grouped(
        self,
        context: Context,
        call: Call,
        inputs: Tensor | None,
        rows: Tensor | None,
        columns: Tensor | None,
    ) -> Tensor | None:
        """Couple a grouped convolution; return the labels of its output channels."""
        groups = call["groups"]
        whole = inputs is not None and (
            # each group may have a single channel in a compact network alone
            (len(inputs) == groups and not context.has_chosen())
            or bool(context.choose(goes_whole(inputs, groups)))
        )
        if call["transposed"]:
            return self._grouped_transposed(context, call, inputs, rows, columns, whole)
        if rows is None or inputs is None:
            for labels in (inputs, rows, columns):
                if labels is not None:
                    context.pin(labels, "a grouped convolution over channels of fixed number")
            return None
        if whole:
            lead = context.couple_within_rows(rows, groups)
            context.meet(context.couple_within_rows(inputs, groups), lead)
            if columns is not None:
                context.pin(columns, "a position within a conv group", structural=True)
            return rows
        context.meet(context.couple_rows(inputs, groups), columns)
        context.couple_rows(rows, groups)
        context.consumes(call["weight"], 1)
        context.makes(call["weight"], 0)
        return rows

    def _grouped_transposed(
        self,
        context: Context,
        call: Call,
        inputs: Tensor | None,
        rows: Tensor | None,
        columns: Tensor | None,
        whole: bool,
    ) -> Tensor | None:
        """Couple w[i, o of the group]: rows are inputs; conv groups share the outputs' labels."""
        groups = call["groups"]
        if whole and inputs is not None and rows is not None:
            context.meet(inputs, rows)
            lead = context.couple_within_rows(inputs, groups)
            if columns is not None:
                context.pin(columns, "a position within a conv group", structural=True)
            return lead.repeat_interleave(call.out.shape[1] // groups)
        context.meet(inputs, rows, "the convolution reads a fixed number of channels")
        if inputs is not None:
            context.couple_rows(inputs, groups)
        context.consumes(call["weight"], 0)
        context.makes(call["weight"], 1)
        return None if columns is None else columns.repeat(groups)

    def _count(
        self,
        context: Context,
        call: Call,
        rows: Tensor | None,
        columns: Tensor | None,
        made: Tensor | None,
    ) -> None:
        weight, x = call["weight"], call["input"]
        grid = x if call["transposed"] else call.out
        along = {family.dim: family.labels for family in context.of(call.out)}
        context.multiplies(
            math.prod(weight.shape[2:]),
            *(along.get(dim, grid.shape[dim]) for dim in range(grid.dim()) if dim != 1),
            weight.shape[0] if rows is None else rows,
            weight.shape[1] if columns is None else columns,
            made=made,
        )


class ConvolutionAttributes(ModuleSizes):
    """Channels and conv groups of a convolution."""

    keys = (nn.modules.conv._ConvNd,)

    def __call__(self, module: Any, sizes: Sizes) -> None:
        shape, name = sizes.of("weight"), sizes.name("weight")
        channels = sizes.channels
        known = channels.transposed_inputs if module.transposed else channels.conv_inputs
        computed = known.get(f"{sizes.path}.weight")
        if not name and computed is not None:  # by a parametrization, which knows its sizes itself
            inputs, groups = computed.length(sizes.widths), computed.blocks(sizes.widths)
            vars(module).update(in_channels=inputs, groups=groups)
            return
        if shape is None or name not in known:
            return
        source = known[name]
        # a network of width 1 may have a single conv group left, and must know that it had more
        if module.transposed:
            axis = sizes.channels.axes[name].get(0)
            groups = axis.blocks(source.groups, sizes.widths) if axis else source.groups
            inputs, outputs = shape[0], shape[1] * groups
        else:
            inputs, outputs = source.length(sizes.widths), shape[0]
            groups = inputs // shape[1]
        vars(module).update(in_channels=inputs, out_channels=outputs, groups=groups)


class ConvolutionSizes(CallSizes):
    """The number of conv groups; one that the batch is in (a kernel an example) stays a node."""

    keys = (
        F.conv1d,
        F.conv2d,
        F.conv3d,
    )

    def __call__(self, node: fx.Node, record: Record, widths: Widths) -> None:
        groups = argument(record, 6, "groups", 1)
        source, weight = operand(node, 0, "input"), operand(node, 1, "weight")
        if groups not in (1, None) and source is not None and weight is not None:
            set_argument(node, 6, "groups", source.at(widths)[1] // weight.at(widths)[1])


class TransposedConvolutionSizes(CallSizes):
    """The number of conv groups of a transposed convolution."""

    keys = (
        F.conv_transpose1d,
        F.conv_transpose2d,
        F.conv_transpose3d,
    )

    def __call__(self, node: fx.Node, record: Record, widths: Widths) -> None:
        groups, source = argument(record, 6, "groups", 1), operand(node, 0, "input")
        if groups not in (1, None) and source is not None and 1 in source.axes:
            set_argument(node, 6, "groups", source.axes[1].blocks(int(plain(groups)), widths))


def _stands_still(call: Call, dim: int) -> bool:
    """Tell whether the kernel has one position along a spatial dimension, and takes each once."""
    at = (call["weight"].shape[dim], call["stride"], call["padding"])
    single, stride, padding = (v if isinstance(v, int) else v[(dim - 2) % len(v)] for v in at)
    return (single, stride, padding) == (1, 1, 0)
