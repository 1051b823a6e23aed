"""Matrix products: the contracted dimensions meet, the others are carried to the result.

A factor whose labels are a parameter's own is a weight: its contracted dimension consumes
channels and its other dimension makes them.
"""

from typing import Any

import torch
from torch import Tensor, nn

from fxprune.channels.sizes import ModuleSizes, Sizes
from fxprune.rules.base import Call, Context, Family, Rule

aten = torch.ops.aten


class MatMul(Rule):
    """mm [M, K] x [K, N], bmm [B, M, K] x [B, K, N], and both with an addend."""

    keys = (aten.mm, aten.bmm, aten.addmm, aten.baddbmm)

    def __call__(self, context: Context, call: Call) -> None:
        left, right = _factors(call)
        last = left.dim() - 1
        contracted = context.along(left, last), context.along(right, last - 1)
        context.meet(*contracted, "the matrix product sums over a dimension of fixed size")
        rows, columns = context.along(left, last - 1), context.along(right, last)
        families = []
        if left.dim() == 3:
            batch = context.along(left, 0), context.along(right, 0)
            context.meet(*batch, "the matrix product has a batch of fixed size")
            if batch[0] is not None and batch[1] is not None:
                families.append(Family(0, batch[0]))
        if rows is not None:
            families.append(Family(last - 1, rows))
        if columns is not None:
            families.append(Family(last, columns))
        addend = call.args.get("self")
        if addend is not None and addend is not left:
            self._meet_addend(context, call.out, addend, families)
        context.carry(call.out, families)
        if contracted[0] is not None and not (
            context.is_parametric(left) or context.is_parametric(right)
        ):
            context.mixes()  # no weight consumes the channels: there is no column to be zero
        context.consumes(left, last)
        context.consumes(right, last - 1)
        if not (context.is_parametric(left) and context.is_parametric(right)):
            context.makes(left, last - 1)
            context.makes(right, last)
        if context.is_parametric(right):  # x W^T + b
            shift = context.along(addend, 0) if addend is not None and addend.dim() == 1 else None
            context.gate(call.out, (columns, shift))
        self._count(context, left, right, contracted, rows, columns)

    def _meet_addend(
        self, context: Context, out: Tensor, addend: Tensor, families: list[Family]
    ) -> None:
        """Couple the trailing dimensions of an addend, which is broadcast to the result."""
        shift = out.dim() - addend.dim()
        carried = {family.dim: family.labels for family in families}
        for dim in range(addend.dim()):
            if addend.shape[dim] != 1:
                made, added = carried.get(dim + shift), context.along(addend, dim)
                context.meet(made, added, "the product or the addend has a fixed size")

    def _count(
        self,
        context: Context,
        left: Tensor,
        right: Tensor,
        contracted: tuple[Tensor | None, Tensor | None],
        rows: Tensor | None,
        columns: Tensor | None,
    ) -> None:
        sizes = (left.shape[-2], left.shape[-1], right.shape[-1])
        known = (rows, contracted[0] if contracted[0] is not None else contracted[1], columns)
        batch = context.along(left, 0) if left.dim() == 3 else None
        factors = [
            size if labels is None else labels for size, labels in zip(sizes, known, strict=True)
        ]
        several = left.shape[:-2] if batch is None else (batch,)
        context.multiplies(1, *several, *factors, made=columns)


class MatrixVector(Rule):
    """mv [M, K] x [K], and dot [K] x [K]: power iterations, and the norms that come of them."""

    keys = (aten.mv, aten.dot, aten.vdot)

    def __call__(self, context: Context, call: Call) -> None:
        left, right = call.tensors()
        contracted = _first(context, left, left.dim() - 1), _first(context, right, 0)
        context.meet(*contracted, "the matrix product sums over a dimension of fixed size")
        parametric = context.is_parametric(left) or context.is_parametric(right)
        if any(labels is not None for labels in contracted) and not parametric:
            context.mixes()
        context.consumes(left, left.dim() - 1)
        context.consumes(right, 0)
        rows = [family for family in context.of(left) if family.dim < left.dim() - 1]
        if not context.is_parametric(right):
            for family in rows:
                context.makes(left, family.dim)
        context.carry(call.out, rows)


class Linear(Rule):
    """x [..., I] times W^T, W [O, I], plus b [O]: what PyTorch takes apart when it runs it."""

    keys = (aten.linear,)

    def __call__(self, context: Context, call: Call) -> None:
        x, weight, bias = call["input"], call["weight"], call["bias"]
        last = x.dim() - 1
        inputs, consumed = context.along(x, last), context.along(weight, 1)
        made, shift = context.along(weight, 0), context.along(bias, 0)
        context.meet(inputs, consumed, "the matrix product sums over a dimension of fixed size")
        if bias is not None:
            context.meet(made, shift, "the product or the addend has a fixed size")
        families = [family for family in context.of(x) if family.dim < last]
        if made is not None:
            families.append(Family(last, made))
        context.carry(call.out, families)
        if inputs is not None and not context.is_parametric(weight):
            context.mixes()  # no weight consumes the channels: there is no column to be zero
        context.consumes(weight, 1)
        context.makes(weight, 0)
        if context.is_parametric(weight):
            context.gate(call.out, (made, shift))
        along = {family.dim: family.labels for family in families}
        context.multiplies(
            1,
            *(along.get(dim, size) for dim, size in enumerate(x.shape[:-1])),
            weight.shape[1] if consumed is None else consumed,
            weight.shape[0] if made is None else made,
            made=made,
        )


class Bilinear(Rule):
    """x [N, I] and y [N, J] with W [O, I, J] to x W y [N, O]: the product inside of nn.Bilinear."""

    keys = (aten._trilinear,)

    def __call__(self, context: Context, call: Call) -> None:
        x, weight, y = call["i1"], call["i2"], call["i3"]
        form = call["expand1"], call["expand2"], call["expand3"], call["sumdim"]
        if form != ([1, 3], [0], [1, 2], [2, 3]):
            context.pin_all(call.tensors(), "another form of the bilinear product")
            return
        reason = "the matrix product sums over a dimension of fixed size"
        for factor, dim in ((x, 1), (y, 2)):
            inputs = context.along(factor, 1)
            context.meet(inputs, context.along(weight, dim), reason)
            context.consumes(weight, dim)
            if inputs is not None and not context.is_parametric(weight):
                context.mixes()
        context.makes(weight, 0)
        made = context.along(weight, 0)
        rows = context.overlay([(x, 0), (y, 0)], 0, "another operand has a fixed size")
        context.carry(call.out, rows if made is None else [*rows, Family(1, made)])
        context.gate(call.out, (made,))
        places = ((call.out, 0), (weight, 1), (weight, 2), (weight, 0))
        lengths = (context.along(tensor, dim) for tensor, dim in places)
        factors = [
            tensor.shape[dim] if labels is None else labels
            for (tensor, dim), labels in zip(places, lengths, strict=True)
        ]
        context.multiplies(1, *factors, made=made)


class BilinearAttributes(ModuleSizes):
    """Features of a bilinear layer."""

    keys = (nn.Bilinear,)

    def __call__(self, module: Any, sizes: Sizes) -> None:
        shape = sizes.of("weight")
        if shape is not None:
            module.out_features, module.in1_features, module.in2_features = shape


class LinearAttributes(ModuleSizes):
    """Features of a linear layer."""

    keys = (nn.Linear,)

    def __call__(self, module: Any, sizes: Sizes) -> None:
        shape = sizes.of("weight")
        if shape is not None:
            module.out_features, module.in_features = shape


def _first(context: Context, tensor: Tensor, dim: int) -> Tensor | None:
    """Return the labels along a dimension; of a flattened weight's, those of its first dimension.

    A convolution's weight [O, I, K, K], flattened to [O, I K K], has input channels and kernel
    positions along one dimension. The kernel stays, so that the vector goes with the inputs.
    """
    found = (family.labels for family in context.of(tensor) if family.dim == dim)
    return next(found, None)


def _factors(call: Call) -> tuple[Tensor, Tensor]:
    names = ("mat1", "mat2") if "mat1" in call.args else ("batch1", "batch2")
    if names[0] in call.args:
        return call[names[0]], call[names[1]]
    return call["self"], call["mat2"]
