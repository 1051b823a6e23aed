"""Elements that are taken or put by their numbers, which are themselves a tensor."""

import torch

from fxprune.rules.base import Call, Context, Family, Rule

aten = torch.ops.aten


class Gather(Rule):
    """index_select by labelled places: what is taken goes along with the place it is taken from."""

    keys = (aten.index_select,)

    def __call__(self, context: Context, call: Call) -> None:
        x, index = call["self"], call["index"]
        dim = call["dim"] % x.dim()
        if context.along(x, dim) is not None:
            context.pin_all([x, index], "its channels are chosen by their numbers")
            return
        kept = [family for family in context.of(x) if family.dim != dim]
        context.carry(call.out, [*kept, *(f.at(dim) for f in context.of(index))])


class Scatter(Rule):
    """index_copy by labelled places: what is put meets its places; the result has them all."""

    keys = (aten.index_copy,)

    def __call__(self, context: Context, call: Call) -> None:
        x, index, source = call["self"], call["index"], call["source"]
        dim = call["dim"] % x.dim()
        fixed = context.along(x, dim)
        if fixed is not None:
            context.pin(fixed, "its channels are chosen by their numbers")
        if (labels := context.along(source, dim)) is not None:
            context.meet(labels, context.along(index, 0), "it is put to places of fixed number")
            context.mixes()
        carried: list[Family] = []
        for other in range(x.dim()):
            if other != dim:
                reason = "it is put into a tensor of fixed size"
                carried += context.overlay([(x, other), (source, other)], other, reason)
        context.carry(call.out, carried)
