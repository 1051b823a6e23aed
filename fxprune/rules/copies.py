"""Copies of a tensor, and new tensors that have no more than its sizes or its dtype."""

from collections.abc import Iterable

import torch
from torch import fx

from fxprune.channels.graph import Widths
from fxprune.channels.records import Number, Record
from fxprune.channels.sizes import CallSizes, argument, literals, set_argument, set_literals
from fxprune.rules.base import Call, Context, Family, Rule

aten = torch.ops.aten


class New(Rule):
    """A tensor of given sizes, filled with one number or at random: it may lose any of its indices.

    Such as the state [N, 24, H, W] of zeros with which a recurrent network begins: its 24 channels
    are those that it meets, and go with them.
    """

    keys = (
        *(aten.empty, aten.full, aten.ones, aten.rand, aten.randn, aten.zeros),
        *(aten.new_empty, aten.new_full, aten.new_ones, aten.new_zeros),
        *(aten.normal.float_float, aten.randint),
    )

    def __call__(self, context: Context, call: Call) -> None:
        sizes = enumerate(call.out.shape)
        families = [Family(d, context.fresh(size)) for d, size in sizes if size > 1]
        _pin_drawn(context, call, families)
        context.carry(call.out, families)


class NewSizes(CallSizes):
    """Sizes of a new tensor."""

    keys = (
        *(torch.empty, torch.full, torch.ones, torch.rand, torch.randn, torch.zeros),
        *("new_empty", "new_full", "new_ones", "new_zeros"),
        *(torch.normal, torch.randint),
    )

    def __call__(self, node: fx.Node, record: Record, widths: Widths) -> None:
        sizes = record.result.at(widths)
        given = record.kwargs.get("size")
        if given is not None:
            node.kwargs = {**node.kwargs, "size": literals(given, node.kwargs["size"], sizes)}
        first = int(node.op == "call_method")
        if node.target in (torch.normal, torch.randint):  # whose sizes are a tuple, the last
            first = len(record.args) - 1
            if not record.args or not isinstance(record.args[first], (tuple, list)):
                return
        last = first + 1 if node.target in (torch.full, "new_full") else None  # a number follows
        if record.args[first:last] not in ((), (None,)):  # None: another node gives the whole size
            set_literals(node, first, record.args, sizes)
        filled = None if last is None else argument(record, last, "fill_value", None)
        if last is not None and isinstance(filled, Number):
            set_argument(node, last, "fill_value", filled.value)  # which is no size


class Identity(Rule):
    """The same elements at the same positions."""

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
        aten.exponential_,
        aten.normal_,
        aten.poisson,
        aten.randint_like,
        aten.random_,
        aten.uniform_,
    )

    def __call__(self, context: Context, call: Call) -> None:
        x = call.tensors()[0]
        _pin_drawn(context, call, context.of(x))
        for result in call.results():
            if result.shape != x.shape:
                context.pin_all([x], "the op gives the tensor another shape")
                context.carry(result, ())
            else:
                context.carry(result, context.of(x))


def _pin_drawn(context: Context, call: Call, families: Iterable[Family]) -> None:
    """Pin what a generator of the code's own fills: seeded, it draws the same numbers each time.

    Fewer of them would be others, as in `randn(c, generator=Generator().manual_seed(0))`.
    """
    if call.args.get("generator") is not None:
        for family in families:
            context.pin(family.labels, "a generator of the code's own draws these numbers")
