"""Copies of a tensor, and new tensors that have no more than its sizes or its dtype."""

import torch

from fxprune.rules.base import Call, Context, Rule

aten = torch.ops.aten


class New(Rule):
    """A tensor of given sizes, which has no more than its dtype from the other."""

    keys = (aten.new_empty, aten.new_full, aten.new_ones, aten.new_zeros)

    def __call__(self, context: Context, call: Call) -> None:
        context.carry(call.out, ())


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
                context.pin_all([x], "it is restrided to another shape")
                context.carry(result, ())
            else:
                context.carry(result, context.of(x))
