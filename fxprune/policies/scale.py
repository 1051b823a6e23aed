"""Scaled saliencies: each divided by a norm over its group, or over the whole network.

All are taken over the executed channels, ignore what is not finite and give 0, not 0/0, where all
is zero. No result depends on the unit of the saliencies, so loss scaling does not matter.
"""

import torch
from torch import Tensor

from fxprune.channels.graph import Layout
from fxprune.policies.rows import cell_of, group_of


def per_group_max(saliency: Tensor, selection: Tensor, layout: Layout) -> tuple[Tensor, Tensor]:
    """Divide by the largest of the group: v / max(v), in [0, 1] (arXiv 2007.01486).

    Args:
        saliency: float [K] >= 0.
        selection: int64 [K], the channels that it belongs to, each once.
        layout: the channel groups.

    Returns:
        The scaled saliency, float32 [K], 0 where it was not finite; and bool [K], where it was
        finite.
    """
    value, valid = _finite(saliency)
    if not value.numel():
        return value, valid
    largest = _by_group(value, selection, layout).amax(dim=1)
    return _divide(value, largest[group_of(layout, selection.device)[selection]]), valid


def per_group_l2(saliency: Tensor, selection: Tensor, layout: Layout) -> tuple[Tensor, Tensor]:
    """Divide by the group's L2 norm: v / sqrt(sum of v^2); takes and gives as `per_group_max`."""
    value, valid = per_group_max(saliency, selection, layout)  # the squares cannot overflow
    if not value.numel():
        return value, valid
    norm = _by_group(value, selection, layout).square().sum(dim=1).sqrt()
    return _divide(value, norm[group_of(layout, selection.device)[selection]]), valid


def per_sum(saliency: Tensor, selection: Tensor, layout: Layout) -> tuple[Tensor, Tensor]:
    """Divide by the sum over all groups; takes and gives as `per_group_max`.

    The Taylor saliency is a first-order change of the loss in any layer, so values of different
    groups can be compared; the results are shares that add up to 1.
    """
    value, valid = _finite(saliency)
    if not value.numel():
        return value, valid
    value = _divide(value, value.amax())  # the sum cannot overflow
    return _divide(value, _by_group(value, selection, layout).sum()), valid


def _finite(saliency: Tensor) -> tuple[Tensor, Tensor]:
    """Convert to float32, 0 where not finite; and bool, where it was finite."""
    value = saliency.float()
    valid = torch.isfinite(value)
    return torch.where(valid, value, 0.0), valid


def _by_group(value: Tensor, selection: Tensor, layout: Layout) -> Tensor:
    """Lay values [K] out as [G, largest group], zeros elsewhere."""
    rows, columns = len(layout.sizes), max(layout.sizes)
    matrix = value.new_zeros(rows * columns)
    matrix.index_copy_(0, cell_of(layout, selection.device)[selection], value)
    return matrix.view(rows, columns)


def _divide(value: Tensor, norm: Tensor) -> Tensor:
    return torch.where(norm > 0, value / norm, 0.0)
