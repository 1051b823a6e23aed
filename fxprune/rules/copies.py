"""Copies of a tensor, and new tensors that have no more than its sizes or its dtype."""

import torch

from fxprune.rules.base import Call, Context, Rule

aten = torch.ops.aten


class New(Rule):
    """A tensor of given sizes, which has no more than its dtype from the other.

    One that an op of PyTorch makes inside, to put its input there (as a circular padding does),
    has its sizes from that input. Such a call, and no call in Python, gives no `pin_memory`.
    """

    keys = (aten.new_empty, aten.new_full, aten.new_ones, aten.new_zeros)

    def __call__(self, context: Context, call: Call) -> None:
        x, out = call["self"], call.out
        by_torch = "layout" in call.keywords and "pin_memory" not in call.keywords
        families = context.of(x) if by_torch and x.dim() == out.dim() else ()
        context.carry(out, [f for f in families if out.shape[f.dim] == x.shape[f.dim]])


class Identity(Rule):
    """The same elements at the same places."""

    keys = (
        aten.clone,
        aten._to_copy,
        aten.contiguous,
        aten.as_strided_,
        aten.dropout,
        aten.native_dropout,
        aten.zeros_like,
        aten.ones_like,
        aten.empty_like,
        aten.full_like,
        aten.rand_like,
        aten.randn_like,
        aten.fill_,
        aten.zero_,
        aten.bernoulli,
        aten.bernoulli_,
    )

    def __call__(self, context: Context, call: Call) -> None:
        x = call.tensors()[0]
        for result in call.results():
            if result.shape != x.shape:
                context.pin_all([x], "the op gives the tensor another shape")
                context.carry(result, ())
            else:
                context.carry(result, context.of(x))
