"""Triangles of matrices: rows and columns are told apart by their numbers."""

import torch

from fxprune.rules.base import Call, Context, Rule

aten = torch.ops.aten


class Triangle(Rule):
    """tril and triu, over the last two dimensions."""

    keys = (aten.tril, aten.triu)

    def __call__(self, context: Context, call: Call) -> None:
        x = call["self"]
        for family in context.of(x):
            if family.dim >= x.dim() - 2:
                context.pin(family.labels, "a triangle of a matrix is taken here")
        context.carry(call.out, context.of(x))
