"""The optimiser's state and the channels: what follows them, what cannot, and where it begins.

A state tensor that has its parameter's shape (momentum, Adam's moments) has a slice for each
channel, which rests and comes back with it. What an optimiser keeps once for a whole parameter,
such as Adam's `step`, stays with the parameter: a channel that enters late has the bias correction
of the parameter's steps and not of its own.
"""

import inspect
import warnings
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from fxprune.errors import message


@torch.enable_grad()
def beginnings(optimizer: torch.optim.Optimizer, parameter: Tensor) -> dict[str, float]:
    """What the elements of each state tensor are before their first gradient, by key.

    Not all are zero: Adagrad's sum and Rprop's step size begin elsewhere. A new optimiser of the
    same kind and options tells, after a step on a zero with a zero gradient. What it cannot tell
    (it takes other arguments, or needs a closure) is left out.
    """
    group = next(g for g in optimizer.param_groups if any(p is parameter for p in g["params"]))
    lone = nn.Parameter(parameter.detach().new_zeros((1,) * parameter.dim()))
    lone.grad = torch.zeros_like(lone)
    kind = type(optimizer)
    try:
        options = {k: v for k, v in group.items() if k in inspect.signature(kind).parameters}
        fresh = kind(**{**options, "params": [lone]})
        fresh.step()
    except Exception:  # of a foreign optimiser, whatever it is
        return {}
    state = fresh.state[lone].items()
    return {k: float(v) for k, v in state if isinstance(v, Tensor) and v.shape == lone.shape}


def strays(state: Mapping[str, Any], shape: tuple[int, ...]) -> Iterator[str]:
    """The keys of a parameter's state that hold more than a number, and not one per element."""
    for key, value in state.items():
        if isinstance(value, Tensor) and tuple(value.shape) == shape:
            continue
        if any(tensor.numel() > 1 for tensor in _tensors(value)):
            yield key


def warn_of_stray(optimizer: torch.optim.Optimizer, key: str) -> None:
    """Says that a state does not follow its channels."""
    text = message(
        f"the state {key!r} of {type(optimizer).__name__} does not follow the channels",
        why="it does not have a value for each element of its parameter; it stays where it is when "
        "channels are exchanged, and is made anew when widths change",
        do="take an optimiser whose state has its parameters' shape, such as SGD or AdamW, or "
        "select seldom: fxprune.instrument(..., every=1000)",
    )
    warnings.warn(text, stacklevel=2)


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        for part in value.values():
            yield from _tensors(part)
    elif isinstance(value, list | tuple):
        for part in value:
            yield from _tensors(part)
