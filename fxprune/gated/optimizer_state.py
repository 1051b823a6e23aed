"""The optimiser's state and the channels: what follows them, what cannot, and where it begins.

A state tensor that has its parameter's shape (momentum, Adam's moments) has a slice for each
channel, which rests and comes back with it. What an optimiser keeps once for a whole parameter,
such as Adam's `step`, stays with the parameter: a channel that enters late has the bias correction
of the parameter's steps and not of its own.
"""

import inspect
import warnings
from collections.abc import Iterator, Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn

from fxprune.errors import message

_AS_PARAMETER: Literal["parameter"] = "parameter"
LARGE = 1024.0  # a parameter that no other state looks like


def beginnings(
    optimizer: torch.optim.Optimizer, parameter: Tensor
) -> dict[str, float | Literal["parameter"]]:
    """Return what the elements of each state tensor are before their first gradient, by key.

    Not all are zero: Adagrad's sum and Rprop's step size begin elsewhere, and averages of the
    parameter as the parameter. A new optimiser of the same kind and options tells, after a step
    with a zero gradient on a zero, and on a large number. Where it cannot (it takes other
    arguments, or needs a closure), a state that is nearly its parameter is taken for a copy, and
    others for zeros.
    """
    group = next(g for g in optimizer.param_groups if any(p is parameter for p in g["params"]))
    options = {k: v for k, v in group.items() if k in inspect.signature(type(optimizer)).parameters}
    at_zero, at_large = (_after(optimizer, options, parameter, x) for x in (0.0, LARGE))
    copies = (k for k, v in at_large.items() if abs(v / LARGE - 1) < 0.01 and not at_zero.get(k))
    found: dict[str, float | Literal["parameter"]] = {**at_zero}
    found |= dict.fromkeys(copies, _AS_PARAMETER)
    for key, value in optimizer.state[parameter].items():
        if key not in found and isinstance(value, Tensor) and value.shape == parameter.shape:
            found[key] = _AS_PARAMETER if _alike(value, parameter.detach()) else 0.0
    return found


def _alike(state: Tensor, parameter: Tensor) -> bool:
    gap = torch.linalg.vector_norm((state - parameter).double())
    return bool(gap < 0.1 * torch.linalg.vector_norm(parameter.double()))


@torch.enable_grad()
def _after(
    optimizer: torch.optim.Optimizer, options: dict[str, Any], like: Tensor, value: float
) -> dict[str, float]:
    """Return the state of a lone element after a step with a zero gradient."""
    lone = nn.Parameter(like.detach().new_full((1,) * like.dim(), value))
    lone.grad = torch.zeros_like(lone)
    try:
        fresh = type(optimizer)(**{**options, "params": [lone]})
        fresh.step()
    except Exception:  # of a foreign optimiser, whatever it is
        return {}
    state = fresh.state[lone].items()
    return {k: float(v) for k, v in state if isinstance(v, Tensor) and v.shape == lone.shape}


def strays(state: Mapping[str, Any], shape: tuple[int, ...] | None, size: int) -> Iterator[str]:
    """Return the keys of a parameter's state that hold more than a number, and not one per element.

    Args:
        state: by key.
        shape: of a gated parameter; None for another, whose state is nobody's business, unless it
            has more elements than the parameter, as that of LBFGS, which is of all parameters.
        size: elements of the parameter.
    """
    for key, value in state.items():
        if shape is not None and isinstance(value, Tensor) and tuple(value.shape) == shape:
            continue
        if any(tensor.numel() > (1 if shape is not None else size) for tensor in _tensors(value)):
            yield key


def warn_of_stray(optimizer: torch.optim.Optimizer, key: str) -> None:
    """Warn that a state does not follow its channels."""
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
