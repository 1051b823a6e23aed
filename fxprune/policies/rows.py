"""Index tensors that depend only on the layout, the widths and the device, made once."""

import functools

import torch
from torch import Tensor

from fxprune.channels.graph import Layout, Widths


@functools.lru_cache(maxsize=64)
def group_of(layout: Layout, device: torch.device) -> Tensor:
    """Return the group of each channel: int64 [N]. Not to be written to."""
    with torch.inference_mode(False):
        return layout.group_of(device)


@functools.lru_cache(maxsize=64)
def cell_of(layout: Layout, device: torch.device) -> Tensor:
    """Find where each channel lies in a matrix [G, largest group], flattened: int64 [N].

    The matrix makes reductions within groups exact to the bit on every device: no atomic adds.
    """
    with torch.inference_mode(False):
        groups = layout.group_of(device)
        offsets = torch.tensor(layout.offsets, dtype=torch.int64, device=device)
        inside = torch.arange(layout.total, device=device) - offsets[groups]
        return groups * max(layout.sizes, default=0) + inside


@functools.lru_cache(maxsize=64)
def heads(layout: Layout, widths: Widths, device: torch.device) -> Tensor:
    """Index the first widths[g] positions of each group g in the row of all channels: int64 [K]."""
    with torch.inference_mode(False):
        positions = [
            torch.arange(offset, offset + width, device="cpu")
            for offset, width in zip(layout.offsets, widths, strict=True)
        ]
        return torch.cat([torch.empty(0, dtype=torch.int64, device="cpu"), *positions]).to(device)
