"""Elements that are taken or put by their numbers, which are themselves a tensor."""

from typing import Any

import torch
from torch import Tensor, nn

from fxprune.channels.sizes import ModuleSizes, Sizes
from fxprune.rules.base import Call, Context, Family, Rule
from fxprune.rules.layout import distinct, read_back, spread

aten = torch.ops.aten


class Gather(Rule):
    """index_select by labelled positions: what is taken goes along with where it is taken from."""

    keys = (aten.index_select,)

    def __call__(self, context: Context, call: Call) -> None:
        x, index = call["self"], call["index"]
        dim = call["dim"] % x.dim()
        if context.along(x, dim) is not None:
            context.pin_all([x, index], "channels are chosen by their numbers")
            return
        kept = [family for family in context.of(x) if family.dim != dim]
        context.carry(call.out, [*kept, *(f.at(dim) for f in context.of(index))])


class GatherAlong(Rule):
    """gather: numbers [.., K, ..] choose along one dimension, for each index of the others."""

    keys = (aten.gather,)

    def __call__(self, context: Context, call: Call) -> None:
        x, index = call["self"], call["index"]
        dim = call["dim"] % max(x.dim(), 1)
        carried = [family for family in context.of(index) if family.dim == dim]
        for family in context.of(x):
            if family.dim == dim:
                context.pin(family.labels, "channels are chosen by their numbers")
            elif index.shape[family.dim] == x.shape[family.dim]:
                labels = context.along(index, family.dim)
                if labels is not None:
                    context.meet(family.labels, labels)
                carried.append(family)
            else:
                context.pin(family.labels, "gather takes a fixed number of channels")
        known = {family.dim for family in context.of(x)}
        for family in context.of(index):
            if family.dim != dim and family.dim not in known:
                context.pin(family.labels, "the index chooses from a dimension of fixed size")
        context.carry(call.out, carried)


class Scatter(Rule):
    """index_copy or index_add: what is put meets the positions; the result has them all."""

    keys = (aten.index_copy, aten.index_add)

    def __call__(self, context: Context, call: Call) -> None:
        x, index, source = call["self"], call["index"], call["source"]
        dim = call["dim"] % x.dim()
        fixed = context.along(x, dim)
        if fixed is not None:
            context.pin(fixed, "channels are chosen by their numbers")
        if (labels := context.along(source, dim)) is not None:
            context.meet(
                labels, context.along(index, 0), "values are put to a fixed number of positions"
            )
            context.mixes()
        carried: list[Family] = []
        for other in range(x.dim()):
            if other != dim:
                reason = "values are put into a tensor of fixed size"
                carried += context.overlay([(x, other), (source, other)], other, reason)
        context.carry(call.out, carried)


class Index(Rule):
    """x[…, numbers, …]: constant numbers move labels like any op; others pin what they choose."""

    keys = (aten.index,)

    def __call__(self, context: Context, call: Call) -> None:
        x, indices = call["self"], call["indices"]
        numbers = [None if index is None else context.constant(index) for index in indices]
        if all(index is None or n is not None for index, n in zip(indices, numbers, strict=True)):
            carried = []
            for family in context.of(x):
                labels = distinct(context, family.labels)
                moved = call.op(spread(labels, family.dim, tuple(x.shape)), numbers)
                found = read_back(context, moved, (family.dim, 0))
                if found is not None:
                    carried.append(found)
            context.carry(call.out, carried)
            return
        context.carry(call.out, self._unknown(context, x, indices))

    def _unknown(self, context: Context, x: Tensor, indices: list[Tensor | None]) -> list[Family]:
        """Return what is carried where numbers are not known before the network runs."""
        taken = [dim for dim, index in enumerate(indices) if index is not None]
        given = [index for index in indices if index is not None]
        if any(index.dtype in (torch.bool, torch.uint8) for index in given):
            context.pin_all([*given, x][: None if len(given) > 1 else 1], _MASKED)
            return [] if len(given) > 1 else self._masked(context, x, given[0].dim(), taken[0])
        rank = max(index.dim() for index in given)
        together = taken == list(range(taken[0], taken[-1] + 1))
        start = taken[0] if together else 0
        carried = []
        for family in context.of(x):
            if family.dim in taken:
                fixed = context.is_parametric(x)  # a table: its rows are no channels
                context.pin(family.labels, "channels are chosen by their numbers", structural=fixed)
                continue
            before = sum(dim < family.dim for dim in taken)
            behind = family.dim > start or not together
            carried.append(family.at(family.dim - before + (rank if behind else 0)))
        if len(given) == 1:
            carried += [family.at(start + family.dim) for family in context.of(given[0])]
        else:
            context.pin_all(given, "several indices choose together")
        return carried

    def _masked(self, context: Context, x: Tensor, rank: int, at: int) -> list[Family]:
        """Return what is carried where a mask chooses along `rank` dimensions from `at` on."""
        carried = []
        for family in context.of(x):
            if at <= family.dim < at + rank:
                context.pin(family.labels, _MASKED)
            else:
                carried.append(family.at(family.dim - (rank - 1) * (family.dim >= at)))
        return carried


_MASKED = "a mask chooses the channels"


class Embedding(Rule):
    """A row of a table [rows, C] for each number: the columns make channels."""

    keys = (aten.embedding,)

    def __call__(self, context: Context, call: Call) -> None:
        weight, indices = call["weight"], call["indices"]
        rows, columns = context.along(weight, 0), context.along(weight, 1)
        if rows is not None:
            context.pin(rows, "a row of an embedding", structural=True)
        carried = list(context.of(indices))
        if columns is not None:
            carried.append(Family(call.out.dim() - 1, columns))
        context.carry(call.out, carried)
        if not context.is_parametric(indices):
            context.makes(weight, 1)
            context.gate(call.out, (columns,))


class EmbeddingAttributes(ModuleSizes):
    """The columns of an embedding."""

    keys = (nn.Embedding,)

    def __call__(self, module: Any, sizes: Sizes) -> None:
        shape = sizes.of("weight")
        if shape is not None:
            module.embedding_dim = shape[1]


class GridSample(Rule):
    """Values at the coordinates of a grid [N, …, 2 or 3], for each channel of x [N, C, …]."""

    keys = (aten.grid_sampler_2d, aten.grid_sampler_3d, aten.cudnn_grid_sampler)

    def __call__(self, context: Context, call: Call) -> None:
        x, grid = call.tensors()[:2]
        carried = context.overlay(
            [(x, 0), (grid, 0)], 0, "the grid or the input has a batch of fixed size"
        )
        for family in context.of(x):
            if family.dim == 1:
                carried.append(family)
            elif family.dim > 1:
                context.pin(family.labels, "grid sampling runs along this dimension")
        for family in context.of(grid):
            if family.dim == grid.dim() - 1:
                context.pin(family.labels, "the channels are coordinates")
            elif family.dim > 0:
                carried.append(family.at(family.dim + 1))
        context.carry(call.out, carried)


class GridOfAffine(Rule):
    """The grid of an affine map: its numbers are no channels."""

    keys = (aten.affine_grid_generator,)

    def __call__(self, context: Context, call: Call) -> None:
        theta = call["theta"]
        for family in context.of(theta):
            if family.dim > 0:
                context.pin(family.labels, "the channels are the numbers of an affine map")
        context.carry(call.out, [family for family in context.of(theta) if family.dim == 0])
