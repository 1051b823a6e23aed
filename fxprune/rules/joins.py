"""Joins: tensors one after the other, beside each other, or with constants around them."""

import numpy as np
import torch
from torch import Tensor, fx
from torch.nn import functional as F

from fxprune.channels.graph import Widths
from fxprune.channels.records import Record
from fxprune.channels.sizes import CallSizes, argument, input_of
from fxprune.rules.base import Call, Context, Family, Rule

aten = torch.ops.aten


class Concatenate(Rule):
    """cat: along its dimension the labels follow each other; along others they meet."""

    keys = (aten.cat,)

    def __call__(self, context: Context, call: Call) -> None:
        out, dim = call.out, call.args.get("dim", 0) % call.out.dim()
        tensors = [t for t in call["tensors"] if t.dim() == out.dim() and t.shape[dim]]
        parts = [context.along(tensor, dim) for tensor in tensors]
        families = []
        if any(part is not None for part in parts):
            families.append(Family(dim, self._joined(context, tensors, parts, dim)))
        for other in range(out.dim()):
            if other != dim:
                families += context.overlay(
                    [(tensor, other) for tensor in tensors],
                    other,
                    "another tensor of the concatenation has a fixed size",
                )
        context.carry(out, families)

    def _joined(
        self, context: Context, tensors: list[Tensor], parts: list[Tensor | None], dim: int
    ) -> Tensor:
        found = []
        for tensor, part in zip(tensors, parts, strict=True):
            labels = context.fresh(tensor.shape[dim]) if part is None else part
            if part is None:
                context.pin(labels, "the concatenated tensor has a fixed size")
            found.append(labels)
        joined = torch.cat(found)
        if len(np.unique(joined.numpy())) == len(joined):
            return joined
        for at, labels in enumerate(found[1:], 1):  # what is repeated can be told apart later
            if torch.isin(labels, torch.cat(found[:at])).any():
                found[at] = context.fresh(len(labels))
                context.repeats(found[at])
                context.meet(labels, found[at])
        return torch.cat(found)


class Stack(Rule):
    """stack: every dimension meets; the new one has a fixed size."""

    keys = (aten.stack,)

    def __call__(self, context: Context, call: Call) -> None:
        out, tensors = call.out, call["tensors"]
        new = call["dim"] % out.dim()
        families: list[Family] = []
        for dim in range(out.dim() - 1):
            families += context.overlay(
                [(tensor, dim) for tensor in tensors],
                dim if dim < new else dim + 1,
                "another tensor of the stack has a fixed size",
            )
        context.carry(out, families)


class ConstantPad(Rule):
    """Padding with a constant: the new indices may go with the channels that they meet."""

    keys = (aten.constant_pad_nd,)

    def __call__(self, context: Context, call: Call) -> None:
        x, pad = call["self"], call["pad"]
        families = []
        for family in context.of(x):
            at = 2 * (x.dim() - 1 - family.dim)
            left, right = pad[at : at + 2] if at < len(pad) else (0, 0)
            if left < 0 or right < 0:
                context.pin(family.labels, "padding by a negative amount cuts channels off")
                continue
            labels = family.labels
            if left or right:
                labels = torch.cat([context.fresh(left), labels, context.fresh(right)])
            families.append(Family(family.dim, labels))
        context.carry(call.out, families)


class PadSizes(CallSizes):
    """How many positions a padding puts beside the channels."""

    keys = (F.pad,)

    def __call__(self, node: fx.Node, record: Record, widths: Widths) -> None:
        source, amounts = input_of(node), argument(record, 1, "pad", ())
        literal = amounts is not None and all(isinstance(amount, int) for amount in amounts)
        if source is None or not literal:
            return
        new = list(amounts)
        for dim, axis in record.result.axes.items():
            at = 2 * (len(source.sizes) - 1 - dim)
            if at < len(amounts) and any(amounts[at : at + 2]):
                kept = axis.template(widths)
                left, right = amounts[at], amounts[at] + source.sizes[dim]
                new[at] = int((kept < left).sum())
                new[at + 1] = int((kept >= right).sum())
        node.args = (node.args[0], tuple(new), *node.args[2:])
        node.kwargs = {name: value for name, value in node.kwargs.items() if name != "pad"}
