"""How far tensors are from each other: the losses of a forward, and pairwise distances.

A loss that is a mean or a sum, and a distance, run over channels: where some are gone it is
another number, so these mix.
"""

import torch

from fxprune.rules.base import Call, Context, Family, Rule
from fxprune.rules.pointwise import Pointwise

aten = torch.ops.aten


class Loss(Rule):
    """A number for each pair of elements of two tensors, their mean, or their sum."""

    keys = (
        *(aten.mse_loss, aten.smooth_l1_loss, aten.huber_loss, aten.soft_margin_loss),
        aten.binary_cross_entropy,
    )

    def __call__(self, context: Context, call: Call) -> None:
        if call["reduction"] == 0:
            Pointwise()(context, call)
            return
        places = [tensor for tensor in call.tensors() if tensor.dim()]
        rank = max((tensor.dim() for tensor in places), default=0)
        for dim in range(rank):
            spanning = [
                (tensor, own)
                for tensor in places
                if (own := dim - rank + tensor.dim()) >= 0 and tensor.shape[own] > 1
            ]
            for family in context.overlay(spanning, dim, "another operand has a fixed size"):
                context.mixes(family.labels)
        context.carry(call.out, ())


class PairwiseDistances(Rule):
    """cdist: [.., P, D] and [.., R, D] to the distance [.., P, R] of each pair."""

    keys = (aten._euclidean_dist, aten._cdist_forward)

    def __call__(self, context: Context, call: Call) -> None:
        left, right = call["x1"], call["x2"]
        out, reason = call.out, "the distances are of points of a fixed size"
        carried: list[Family] = []
        for dim in range(out.dim() - 2):
            carried += context.overlay([(left, dim), (right, dim)], dim, reason)
        for point, dim in ((left, out.dim() - 2), (right, out.dim() - 1)):
            labels = context.along(point, out.dim() - 2)
            carried += [] if labels is None else [Family(dim, labels)]
        for family in context.overlay(
            [(left, left.dim() - 1), (right, right.dim() - 1)], 0, reason
        ):
            context.mixes(family.labels)
        context.carry(out, carried)
