"""Element-wise ops: broadcast operands meet index by index.

PyTorch tags them (`torch.Tag.pointwise`); the other keys are element-wise without saying so.
"""

from typing import Any

import torch
from torch import Tensor, nn

from fxprune.channels.sizes import ModuleSizes, Sizes
from fxprune.rules.base import Call, Context, Family, Rule, tensors_in

aten = torch.ops.aten


class Pointwise(Rule):
    """Any number of operands, broadcast against each other."""

    keys = (
        torch.Tag.pointwise,
        aten.complex,
        aten.copy_,
        aten.floor_divide,
        aten.hardswish,
        aten.lerp,
        aten.log_sigmoid_forward,
        aten.masked_fill,
        aten.normal.float_Tensor,
        aten.normal.Tensor_float,
        aten.normal.Tensor_Tensor,
        aten.prelu,
        aten._prelu_kernel,
        aten.rrelu_with_noise,
        aten.where,
    )

    def __call__(self, context: Context, call: Call) -> None:
        results = call.results()
        out = results[0]
        operands = [tensor for tensor in call.tensors() if tensor.dim()]
        carried: list[Family] = []
        varying = {
            family.dim - tensor.dim() for tensor in operands for family in context.of(tensor)
        }
        for dim in sorted(out.dim() + behind for behind in varying):
            spanning = [
                (tensor, dim - out.dim() + tensor.dim())
                for tensor in operands
                if _size(tensor, out, dim) > 1
            ]
            carried += context.overlay(spanning, dim, "another operand has a fixed size")
        for result in results:
            context.carry(result, carried)


class WriteAtPlaces(Rule):
    """x[mask] = number, x[:, numbers] = values: dimensions that are not chosen from meet."""

    keys = (aten.index_put,)

    def __call__(self, context: Context, call: Call) -> None:
        x, masks, values = call["self"], call["indices"], call["values"]
        given = [mask for mask in masks if mask is not None]
        several = values.numel() != 1
        chosen = given[0].dtype == torch.int64 or (given[0].dtype == torch.bool and several)
        if len(given) == 1 and given[0].dim() == 1 and chosen:
            context.carry(call.out, self._rows(context, x, masks, values))
            return
        if len(masks) > 1 or masks[0].dtype != torch.bool or several:
            context.pin_all(
                [x, *tensors_in(masks), values], "the positions written to are given by a tensor"
            )
            context.carry(call.out, context.of(x))
            return
        carried = list(context.of(x))
        for dim in range(masks[0].dim()):
            lines = [(x, dim), (masks[0], dim)]
            found = context.overlay(lines, dim, "the mask or the masked tensor has a fixed size")
            carried = [family for family in carried if family.dim != dim] + found
        context.carry(call.out, carried)

    def _rows(
        self, context: Context, x: Tensor, numbers: list[Tensor | None], values: Tensor
    ) -> list[Family]:
        """Return what is carried where whole rows along one dimension are written."""
        dim = next(at for at, number in enumerate(numbers) if number is not None)
        shift = x.dim() - values.dim()
        carried = []
        for other in range(x.dim()):
            lines = [(x, other)]
            if other >= shift and values.shape[other - shift] > 1:
                lines.append((values, other - shift))
            if other != dim:
                reason = "values are put into a tensor of fixed size"
                carried += context.overlay(lines, other, reason)
                continue
            for tensor, own in (*lines, (numbers[dim], 0)):
                labels = context.along(tensor, own)
                if labels is not None:
                    context.pin(labels, "the positions written to are given by a tensor")
        return carried


class GatedHalves(Rule):
    """glu: one half of the channels, multiplied by the sigmoid of the other; the halves meet."""

    keys = (aten.glu,)

    def __call__(self, context: Context, call: Call) -> None:
        x = call["self"]
        dim = call["dim"] % x.dim()
        carried = [
            Family(dim, context.couple_rows(family.labels, 2)) if family.dim == dim else family
            for family in context.of(x)
        ]
        context.carry(call.out, carried)


class PReLUAttributes(ModuleSizes):
    """The number of slopes of a PReLU."""

    keys = (nn.PReLU,)

    def __call__(self, module: Any, sizes: Sizes) -> None:
        shape = sizes.of("weight")
        if shape is not None:
            module.num_parameters = shape[0]


def _size(tensor: Tensor, out: Tensor, dim: int) -> int:
    """Return the operand's length along a dimension of the result; 1 where it has none."""
    own = dim - out.dim() + tensor.dim()
    return tensor.shape[own] if own >= 0 else 1
