"""Examples of `fxprune.rules.pointwise`."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fxprune.rules.pointwise import GatedHalves, Pointwise, WriteAtPlaces
from tests.support.rule_examples.base import Example, one, run


def masked(x: Tensor, mask: Tensor) -> Tensor:
    """A constant where the mask is true."""
    x = x.clone()
    x[mask] = 0.5
    return x


def put(x: Tensor) -> Tensor:
    """The examples put one by one into a tensor of zeros."""
    out = torch.zeros_like(x)
    out[torch.arange(x.shape[0])] = x.tanh()
    return out


def over_channels(x: Tensor) -> Tensor:
    """Two channels written by their numbers."""
    out = x.tanh()
    out[:, torch.tensor([2, 0])] = x[:, :2]
    return out


EXAMPLES: tuple[Example, ...] = (
    Example(WriteAtPlaces, "rectified", lambda x: masked(x, x < 0.1)),
    Example(
        WriteAtPlaces,
        "some examples",
        lambda x: masked(x, torch.arange(x.shape[0]) == 1),
    ),
    Example(WriteAtPlaces, "examples by numbers", put),
    Example(
        WriteAtPlaces,
        "channels by numbers",
        over_channels,
        groups=(4,),
        pinned=("the positions written to are given by a tensor",) * 2,  # the numbers stay as well
    ),
    Example(
        WriteAtPlaces,
        "by numbers",
        lambda x: x.index_put((torch.tensor([0]), torch.tensor([2])), x.new_zeros(())),
        groups=(4,),
        pinned=("the positions written to are given by a tensor",),
    ),
    Example(
        Pointwise,
        "a number of channels and places",
        lambda x: x + x.numel() / x.shape[0] * 0.001,
        mixes=True,
    ),
    Example(
        Pointwise,
        "in place, by ops that have no such tag",
        lambda x: x.clone().abs_().floor_divide_(0.5).gt_(1.0) + x // 0.7,
    ),
    Example(Pointwise, "divided by channels alone", lambda x: x / x.shape[1]),
    Example(Pointwise, "broadcast", lambda x: x * x.mean((2, 3), keepdim=True).sigmoid()),
    Example(Pointwise, "where", lambda x: torch.where(x > 0, x, 0.1 * x)),
    Example(Pointwise, "masked fill", lambda x: x.masked_fill(x < 0, 0.5)),
    Example(Pointwise, "lerp", lambda x: torch.lerp(x, x.exp(), 0.3)),
    Example(Pointwise, "in place", lambda x: F.hardswish(x.clone(), inplace=True).mul_(2).add_(x)),
    Example(
        Pointwise,
        "drawn around other tensors, and complex",
        lambda x: (
            torch.complex(
                torch.normal(x, x.abs() * 0) + torch.normal(x, 0.0), torch.normal(0.0, x.abs() * 0)
            ).real
        ),
    ),
    Example(
        Pointwise, "activations", lambda x: F.gelu(x) + F.mish(x) + F.relu6(x) + F.logsigmoid(x)
    ),
    Example(Pointwise, "prelu", run, layers=one(nn.PReLU, 8)),
    Example(
        Pointwise,
        "a constant of each channel",
        lambda x: x * torch.linspace(1, 2, 8)[:, None, None],
    ),
    Example(GatedHalves, "glu", lambda x: F.glu(x, dim=1), 4, (4, 4)),
    Example(GatedHalves, "glu in space", lambda x: F.glu(x, dim=3)),
)
