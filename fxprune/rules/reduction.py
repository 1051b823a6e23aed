"""Reductions: what runs along a kept dimension is carried; a reduced one mixes its channels.

A sum or a norm of a weight does not mix: the slices of removed channels are zero and add nothing.
"""

import math

import torch

from fxprune.rules.base import Call, Context, Family, Rule

aten = torch.ops.aten


class Reduction(Rule):
    """Statistics over some dimensions, with or without keeping them as size 1."""

    keys = (
        aten.mean,
        aten.sum,
        aten.amax,
        aten.amin,
        aten.aminmax,
        aten.var,
        aten.std,
        aten.var_mean,
        aten.std_mean,
        aten.max.dim,
        aten.min.dim,
        aten.max.default,
        aten.min.default,
        aten.all,
        aten.any,
        aten._is_all_true,
        aten._is_any_true,
        aten.prod,
        aten.linalg_vector_norm,
        aten.norm,
        aten.logsumexp,
    )

    def __call__(self, context: Context, call: Call) -> None:
        x = call.tensors()[0]
        given = call.args.get("dim")
        dims = range(x.dim()) if given is None or given == [] else _as_list(given)
        reduced = {dim % x.dim() for dim in dims} if x.dim() else set()
        keepdim = call.args.get("keepdim", False)
        carried = []
        for family in context.of(x):
            if family.dim in reduced:
                _keep_enough(context, call, family, reduced)
                if _adds_up(call) and context.is_parametric(x):
                    context.consumes(x, family.dim)
                elif not family.free:
                    context.mixes(family.labels)
                if call.op in (aten.max.dim, aten.min.dim):
                    context.number(call.out[1], family.labels)
                continue
            gone = 0 if keepdim else sum(dim < family.dim for dim in reduced)
            carried.append(family.at(family.dim - gone))
        for result in call.results():
            context.carry(result, carried)


class InOrder(Rule):
    """Ranks the numbers along a dimension, or adds them up in order; other dimensions carry on."""

    keys = (
        *(aten.argmax, aten.argmin, aten.topk, aten.kthvalue, aten.mode, aten.sort),
        *(aten.median.dim, aten.nanmedian.dim, aten.cummax, aten.cummin),
        *(aten.cumsum, aten.cumprod),
    )

    def __call__(self, context: Context, call: Call) -> None:
        x, given = call.tensors()[0], call["dim"]
        why = f"{call.op.overloadpacket.__name__} runs over the channels"
        if given is None:
            context.pin_all([x], why)
            return
        dim, carried = given % max(x.dim(), 1), []
        for family in context.of(x):
            if family.dim == dim:
                context.pin(family.labels, why)
            else:
                gone = call.results()[0].dim() < x.dim() and dim < family.dim
                carried.append(family.at(family.dim - gone))
        for result in call.results():
            context.carry(result, carried)


class Softmax(Rule):
    """Normalises over one dimension: its channels mix, and the result has them too."""

    keys = (aten._softmax, aten._log_softmax, aten._safe_softmax)

    def __call__(self, context: Context, call: Call) -> None:
        x = call.tensors()[0]
        families = context.of(x)
        for family in families:
            if family.dim == call["dim"] % x.dim() and not family.free:
                context.mixes(family.labels)
        context.carry(call.out, families)


def _keep_enough(context: Context, call: Call, family: Family, reduced: set[int]) -> None:
    """Pin what a variance needs to be a number: its divisor is the count minus the correction."""
    if call.op.overloadpacket not in (aten.var, aten.std, aten.var_mean, aten.std_mean):
        return
    x = call.tensors()[0]
    correction = call.args.get("correction", call.args.get("unbiased", True))
    kernel = x.dim() if not context.is_parametric(x) else 2  # its positions all stay
    followed = {other.dim for other in context.of(x) if other.dim < kernel}
    others = math.prod(x.shape[dim] for dim in reduced - followed)
    others *= int(torch.unique(family.labels, return_counts=True)[1].min())  # where flattened
    enough = int((1 if correction is None else correction) // max(others, 1))
    if enough:  # and a group keeps one more
        context.pin(family.labels[:enough], "a variance over channels needs two of them")


def _adds_up(call: Call) -> bool:
    """Tell whether zeros add nothing to the result, so that leaving them out is the same."""
    if call.op.overloadpacket in (aten.linalg_vector_norm, aten.norm):
        order = call.args.get("ord", call.args.get("p"))
        return order is None or float(order) > 0
    return call.op.overloadpacket is aten.sum


def _as_list(dims: int | list[int]) -> list[int]:
    return [dims] if isinstance(dims, int) else list(dims)
