"""From scores to slots. Sorts only: no loop over groups, no wait for the device.

Letters: N channels in all, K of them chosen.
"""

import math

import torch
from torch import Tensor

from fxprune.channels.graph import Layout, Widths
from fxprune.errors import GateError
from fxprune.policies.rows import group_of, heads


def top(scores: Tensor, layout: Layout, widths: Widths) -> Tensor:
    """Choose the channels with the highest scores of each group.

    Args:
        scores: float32 [N]. A NaN counts as -inf; of equals the lower channel number comes first.
        layout: the channel groups.
        widths: how many to take of each group.

    Returns:
        int64 [K], group after group, best first.
    """
    key = (group_of(layout, scores.device) << 32) - _ordered(scores)
    return key.argsort(stable=True)[heads(layout, widths, scores.device)]


def keep_slots(current: Tensor, chosen: Tensor, layout: Layout, widths: Widths) -> Tensor:
    """Reorder a selection so that the channels that stay keep their slots.

    A channel of `current` that is also chosen stays where it is; those newly chosen take the
    slots of those that leave their group.

    Args:
        current: int64 [K], the selection now, group after group.
        chosen: int64 [K], the next one.
        layout: the channel groups.
        widths: how many of each group both have.

    Returns:
        int64 [K]: the channels of `chosen`.

    Raises:
        GateError: a selection has not as many channels as the widths say.
    """
    if not len(current) == len(chosen) == sum(widths):
        raise GateError(
            f"{len(chosen)} channels cannot take the slots of {len(current)}",
            why=f"both selections must have {sum(widths)} channels, the sum of the widths",
        )
    marks = torch.zeros(2, layout.total, dtype=torch.bool, device=current.device)
    marks[0].index_fill_(0, chosen, True)
    marks[1].index_fill_(0, current, True)
    stays, known = marks[0][current], marks[1][chosen]
    # Group by group as many leave as enter, so the i-th to leave and the i-th to enter, both
    # sorted to the front, are of the same group.
    slots = stays.to(torch.uint8).argsort(stable=True)
    entering = chosen[known.to(torch.uint8).argsort(stable=True)]
    return current.index_copy(0, slots, torch.where(stays[slots], current[slots], entering))


def _ordered(scores: Tensor) -> Tensor:
    """Map scores to whole numbers in (-2^31, 2^31) of the same order: float32 [N] -> int64 [N].

    The bits of a float, read as a number of sign and size, have the float's order. Sorting group
    and score as one whole number takes less than half the time of two sorts.
    """
    known = torch.where(scores.isnan(), -math.inf, scores) + 0.0  # -0.0 becomes 0.0
    bits = known.view(torch.int32)
    return torch.where(bits < 0, bits ^ 0x7FFFFFFF, bits).long()
