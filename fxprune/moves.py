"""Moves: of a large tensor, only the cells of the channels that change are exchanged.

This is for the CPU, where a tensor's size in bytes is what an exchange costs, and where to ask
which slots changed is free; on a GPU the answer would have to be waited for. See `fxprune.pack`.
"""

import math
from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from fxprune.pack import Seat


class Part(NamedTuple):
    """Some cells that change, int64 each.

    Attributes:
        compact: their numbers in the compact tensor; those of whole rows where `rows`.
        leaving: the dense cells that they are stored to.
        entering: the dense cells that are loaded in their place.
        rows: whether they are whole slices along the outermost dimension, which lie together.
    """

    compact: Tensor
    leaving: Tensor
    entering: Tensor
    rows: bool


class Moves:
    """One change of selection at equal widths. Tensors that lie alike share what is worked out."""

    def __init__(self, before: Mapping[int, Tensor], after: Mapping[int, Tensor]) -> None:
        """`before` and `after` are the dense positions of every axis, by its id."""
        self._before, self._after = before, after
        self._known: dict[object, list[Part]] = {}

    def __call__(self, seat: Seat, resident: Tensor, dense: Tensor) -> None:
        """Stores the cells that leave and loads those that enter, both in place.

        A channel rests as a whole, so each cell that enters is complete in the bank.
        """
        key = (seat.shape, seat.order, tuple((dim, id(axis)) for dim, axis in seat.axes.items()))
        if key not in self._known:
            self._known[key] = self._parts(seat)
        parts = self._known[key]
        if not parts:
            return
        lying = seat.inside_out(resident)
        cells = lying.reshape(-1, seat.cell)
        bank = seat.inside_out(dense).view(-1, seat.cell)
        views = [cells.view(len(lying), -1) if part.rows else cells for part in parts]
        for view, part in zip(views, parts):
            bank.index_copy_(
                0, part.leaving, view.index_select(0, part.compact).view(-1, seat.cell)
            )
        for view, part in zip(views, parts):
            entering = bank.index_select(0, part.entering)
            view.index_copy_(0, part.compact, entering.view(-1, view.shape[1]))
        if not lying.is_contiguous():  # then the cells are a copy
            lying.copy_(cells.view(lying.shape))

    def _parts(self, seat: Seat) -> list[Part]:
        before, after, changes = [], [], []
        for dim in seat.order[: seat.lead]:
            axis, line = seat.axes.get(dim), torch.arange(seat.shape[dim])
            before.append(line if axis is None else self._before[id(axis)])
            after.append(line if axis is None else self._after[id(axis)])
            changes.append(before[-1] != after[-1])
        lengths = [len(line) for line in before]
        strides = [math.prod(lengths[place + 1 :]) for place in range(seat.lead)]
        parts = []
        for place, change in enumerate(changes):
            if not change.any():
                continue
            # What changes along this dimension, without what also does along an earlier one.
            takes = [(~earlier).nonzero().flatten() for earlier in changes[:place]]
            takes += [change.nonzero().flatten()]
            takes += [torch.arange(length) for length in lengths[place + 1 :]]
            compact = takes[0] if place == 0 else _grid(takes, strides)
            leaving, entering = (
                _grid([line[take] for line, take in zip(lines, takes)], seat.strides())
                for lines in (before, after)
            )
            parts.append(Part(compact, leaving, entering, rows=place == 0))
        return parts


def _grid(lines: list[Tensor], strides: list[int]) -> Tensor:
    """The sums of one multiple of a stride from each line, in the order of their grid."""
    total = torch.zeros((), dtype=torch.int64)
    for line, stride in zip(lines, strides):
        total = total.unsqueeze(-1) + line * stride
    return total.flatten()
