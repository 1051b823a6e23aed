"""Examples of `fxprune.rules.fourier`."""

import torch

from fxprune.rules.fourier import Fourier, Pairs
from tests.support.rule_examples.base import Example

EXAMPLES: tuple[Example, ...] = (
    Example(Fourier, "in space", lambda x: torch.fft.irfft2(torch.fft.rfft2(x) * 0.5, s=(6, 6))),
    Example(
        Fourier,
        "along the channels",
        lambda x: torch.fft.fft(x, dim=1).real,
        8,
        (4,),
        ("a Fourier transform runs along this dimension",),
    ),
    Example(
        Pairs,
        "there and back",
        lambda x: torch.view_as_complex(x.unflatten(3, (3, 2)).contiguous()).abs(),
    ),
)
