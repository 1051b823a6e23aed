"""Examples of `fxprune.rules.copies`."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fxprune.rules.copies import Identity, New
from tests.support.rule_examples.base import Example, one, run


def padded(x: Tensor) -> Tensor:
    """Put a tensor into the middle of one of zeros."""
    n, c, h, w = x.shape
    out = torch.zeros(n, c, h + 2, w, dtype=x.dtype)
    out[:, :, 1:-1] = x
    return out


EXAMPLES: tuple[Example, ...] = (
    Example(New, "a number of channels", lambda x: x * x.new_full((1, 1, 1, 1), x.shape[1])),
    Example(New, "broadcast", lambda x: x * x.new_full((1, 1, 6, 6), 2.0)),
    Example(New, "of the channels' number", lambda x: x * x.new_ones(8, 1, 1)),
    Example(New, "padded by hand", padded),
    Example(
        New,
        "of a number of channels, concatenated",
        lambda x: torch.cat([x, torch.ones(x.shape[0], 5, 6, 6).to(x)], dim=1),
        13,
        (8, 4, 5),
    ),
    Example(
        New,
        "of sizes that a call computes",
        lambda x: x * torch.full((x.size(0) * 1, x.size(1), *x.shape[2:]), 0.5, dtype=x.dtype),
    ),
    Example(
        New,
        "of sizes by keyword",
        lambda x: (
            x * torch.ones(size=(x.size(0), 8, 1, 1)) * x.new_full(size=(8, 1, 1), fill_value=2)
        ),
    ),
    Example(
        New,
        "drawn from a distribution",
        lambda x: (
            x
            + torch.normal(0.0, 0.0, (x.size(0), 8, 6, 6), dtype=x.dtype)
            + torch.randint(0, 1, (x.size(0), 8, 1, 1))
            + torch.randint(1, size=(x.size(0), x.size(1), 1, 1))
        ),
    ),
    Example(
        New,
        "made by a circular padding",
        lambda x: F.pad(x, (1, 2, 0, 1), mode="circular") * 2,
    ),
    Example(
        New,
        "made by a circular convolution of several groups",
        run,
        6,
        (4, 3, 4),
        layers=one(nn.Conv2d, 8, 6, 3, padding=1, padding_mode="circular", groups=2),
    ),
    Example(
        Identity,
        "copies and constants in its likeness",
        lambda x: x.clone() * torch.full_like(x, 2.0) + torch.zeros_like(x),
    ),
    Example(
        Identity,
        "filled with numbers drawn from a distribution",
        lambda x: (
            x
            + x.new_empty(x.shape).uniform_(0, 0)
            + torch.empty_like(x).normal_(0, 0)
            + torch.zeros_like(x).random_(0, 1)
            + torch.randint_like(x, 0, 1)
            + torch.poisson(torch.zeros_like(x))
            + torch.empty_like(x).exponential_() * 0
        ),
    ),
    Example(Identity, "to another dtype and back", lambda x: x.to(torch.float32).to(torch.float64)),
)
