"""Element-wise ops: broadcast operands meet index by index.

PyTorch tags them (`torch.Tag.pointwise`); the other keys are element-wise without saying so.
"""

import torch
from torch import Tensor

from fxprune.rules.base import Call, Context, Family, Rule

aten = torch.ops.aten


class Pointwise(Rule):
    """Any number of operands, broadcast against each other."""

    keys = (
        torch.Tag.pointwise,
        aten.copy_,
        aten.where,
        aten.masked_fill,
        aten.lerp,
        aten.prelu,
        aten._prelu_kernel,
    )

    def __call__(self, context: Context, call: Call) -> None:
        results = call.results()
        out = results[0]
        operands = [tensor for tensor in call.tensors() if tensor.dim()]
        carried = []
        for dim in range(out.dim()):
            spanning = [tensor for tensor in operands if _size(tensor, out, dim) > 1]
            found = [context.along(tensor, dim - out.dim() + tensor.dim()) for tensor in spanning]
            known = next((labels for labels in found if labels is not None), None)
            if known is None:
                continue
            for labels in found:
                context.meet(known, labels, "it is combined with a tensor of fixed size")
            carried.append(Family(dim, known))
        for result in results:
            context.carry(result, carried)


def _size(tensor: Tensor, out: Tensor, dim: int) -> int:
    """The operand's length along a dimension of the result; 1 where it has none."""
    own = dim - out.dim() + tensor.dim()
    return tensor.shape[own] if own >= 0 else 1
