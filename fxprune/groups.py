"""What the analysis finds: channels, the groups they form, and what is pinned.

All channels of all groups are numbered 0..N-1, group after group, so that a choice over the
whole network is one flat tensor:

* a *selection* is an int64 tensor [K] of channel numbers, group after group, in slot order;
* *widths* are the numbers of chosen channels, one per group.
"""

from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate

import torch
from torch import Tensor


@dataclass(frozen=True)
class Layout:
    """The flat numbering: group g owns the channels offsets[g] .. offsets[g] + sizes[g] - 1."""

    sizes: tuple[int, ...]

    @cached_property
    def offsets(self) -> tuple[int, ...]:
        """The first channel of each group."""
        return tuple(accumulate((0, *self.sizes[:-1]))) if self.sizes else ()

    @property
    def total(self) -> int:
        """N, the number of channels of all groups."""
        return sum(self.sizes)

    def group_of(self, device: torch.device | str = "cpu") -> Tensor:
        """The group of each channel: int64 [N]."""
        sizes = torch.tensor(self.sizes, dtype=torch.int64, device=device)
        groups = torch.arange(len(self.sizes), device=device)
        return torch.repeat_interleave(groups, sizes, output_size=self.total)


@dataclass(frozen=True)
class Factor:
    """A length that depends on the widths: fixed + sum of count * widths[group]."""

    fixed: int
    per_channel: tuple[tuple[int, int], ...] = ()


@dataclass(frozen=True)
class Term:
    """One node's macs, or one parameter's elements: scale times the product of its factors."""

    name: str
    scale: int
    factors: tuple[Factor, ...]
