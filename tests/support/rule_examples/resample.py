"""Examples of `fxprune.rules.resample`."""

from collections.abc import Callable

from torch import Tensor, nn
from torch.nn import functional as F

from fxprune.rules.resample import MaxUnpool, Patches, Resample
from tests.support.rule_examples.base import Example, one, run, tokens

_POOLS: dict[str, Callable[[Tensor], Tensor]] = {
    "avg_pool1d": lambda x: F.avg_pool1d(x.flatten(2), 2),
    "avg_pool2d": lambda x: F.avg_pool2d(x, 2),
    "avg_pool3d": lambda x: F.avg_pool3d(x.unsqueeze(2), (1, 2, 2)),
    "max_pool1d": lambda x: F.max_pool1d(x.flatten(2), 2),
    "max_pool2d": lambda x: F.max_pool2d(x, 3, 2, 1),
    "max_pool3d": lambda x: F.max_pool3d(x.unsqueeze(2), (1, 2, 2)),
    "adaptive_avg_pool1d": lambda x: F.adaptive_avg_pool1d(x.flatten(2), 5),
    "adaptive_avg_pool2d": lambda x: F.adaptive_avg_pool2d(x, (3, 4)),
    "adaptive_max_pool2d": lambda x: F.adaptive_max_pool2d(x, 3),
    "nearest": lambda x: F.interpolate(x, scale_factor=2),
    "nearest-exact": lambda x: F.interpolate(x, size=(7, 9), mode="nearest-exact"),
    "bilinear": lambda x: F.interpolate(x, scale_factor=1.5, mode="bilinear"),
    "bicubic, antialiased": lambda x: F.interpolate(x, size=4, mode="bicubic", antialias=True),
    "linear": lambda x: F.interpolate(x.flatten(2), scale_factor=2, mode="linear"),
    "trilinear": lambda x: F.interpolate(x.unsqueeze(2), scale_factor=2, mode="trilinear"),
}


def unpooled(x: Tensor) -> Tensor:
    """Pooled, and back."""
    y, places = F.max_pool2d(x, 2, return_indices=True)
    return F.max_unpool2d(y.tanh(), places, 2)


EXAMPLES: tuple[Example, ...] = (
    Example(Patches, "windows", lambda x: F.unfold(x, 3), 72),
    Example(Patches, "and back", lambda x: F.fold(F.unfold(x, 2).tanh(), 6, 2)),
    *(Example(Resample, name, op) for name, op in _POOLS.items()),
    Example(
        Resample,
        "along the channels",
        lambda x: F.max_pool1d(tokens(x), 2),
        36,
        (4,),
        ("resampling runs along this dimension",),
    ),
    Example(MaxUnpool, "in two dimensions", unpooled),
    Example(
        Resample,
        "local response norm",
        run,
        layers=one(nn.LocalResponseNorm, 3, 0.5),
        mixes=True,
    ),
)
