"""The optimiser's state: what follows the channels, what does not, and its initial values.

A state tensor that has its parameter's shape (momentum, Adam's moments) has a slice for each
channel, which is exchanged with it. What an optimiser keeps once for a whole parameter, such as
Adam's `step`, stays with the parameter: a channel that enters late gets the bias correction of the
parameter's number of steps, not of its own.
"""

import inspect
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal, NoReturn, TypeGuard

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from fxprune.errors import FxpruneWarning, GateError, message

_AS_PARAMETER: Literal["parameter"] = "parameter"
_CODES = (torch.uint8, torch.int8)  # 8-bit optimisers keep them, with the scales of blocks of them
LARGE = 1024.0  # a parameter that no other state looks like


def states_in(optimizer: torch.optim.Optimizer) -> Iterator[tuple[Tensor, dict[str, Any]]]:
    """Yield each parameter that an optimiser has a state of, with the state.

    Some keep what is of no parameter beside them, under names: MADGRAD's `state["k"]`.
    ZeroRedundancyOptimizer has None for the parameters of other ranks.
    """
    states: Mapping[Any, Any] = optimizer.state
    for parameter, state in states.items():
        if isinstance(parameter, Tensor) and isinstance(state, dict) and state:
            yield parameter, state


def moves(value: Any, shape: tuple[int, ...]) -> TypeGuard[Tensor]:
    """Tell whether a state is a tensor with a value of its own for each element of a parameter.

    Numbers that mean something with the scale of their block alone are none.
    """
    return (
        isinstance(value, Tensor)
        and value.shape == shape
        and value.dtype not in _CODES
        and not is_traceable_wrapper_subclass(value)
    )


def beginnings(
    optimizer: torch.optim.Optimizer, parameter: Tensor
) -> dict[str, float | Literal["parameter"]]:
    """Find the initial value of the elements of each state tensor, by key.

    Not all are zero: Adagrad's sum and Rprop's step size are not, and an average of the parameter
    begins as the parameter. To find out, a new optimiser of the same class and options takes a
    step with zero gradients on the parameters 0 and 1024: after it, Adam's `exp_avg` is 0
    both times, Rprop's `step_size` is its lr, and an average is 0 and 1024, so it is a copy of the
    parameter. Where no such optimiser can be made or stepped (it takes other arguments, or needs a
    closure), a state that nearly equals its parameter is taken for a copy, and any other for zeros.

    Returns:
        For each key a number, or "parameter" for a copy of the parameter.
    """
    dims = parameter.dim()
    states = _fresh(optimizer, parameter, (1,) * dims, 0.0, LARGE)
    at_zero, at_large = (_of_one_element(state, dims) for state in states)
    copies = (k for k, v in at_large.items() if abs(v / LARGE - 1) < 0.01 and not at_zero.get(k))
    found: dict[str, float | Literal["parameter"]] = {**at_zero}
    found |= dict.fromkeys(copies, _AS_PARAMETER)
    for key, value in optimizer.state[parameter].items():
        if key not in found and isinstance(value, Tensor) and value.shape == parameter.shape:
            found[key] = _AS_PARAMETER if _alike(value, parameter.detach()) else 0.0
    return found


def _alike(state: Tensor, parameter: Tensor) -> bool:
    gap = torch.linalg.vector_norm(state.double() - parameter.double())
    return bool(gap < 0.1 * torch.linalg.vector_norm(parameter.double()))


def _of_one_element(state: Mapping[str, Any], dims: int) -> dict[str, float]:
    """Return the state tensors of a parameter of one element as numbers."""
    shape = (1,) * dims
    return {k: float(v) for k, v in state.items() if isinstance(v, Tensor) and v.shape == shape}


@torch.enable_grad()
def _fresh(
    optimizer: torch.optim.Optimizer, like: Tensor, shape: tuple[int, ...], *values: float
) -> list[dict[str, Any]]:
    """Return what a new optimiser keeps of parameters, of one value each, after zero gradients."""
    group = next(g for g in optimizer.param_groups if any(p is like for p in g["params"]))
    options = {k: v for k, v in group.items() if k in inspect.signature(type(optimizer)).parameters}
    alone = [nn.Parameter(like.detach().new_full(shape, value)) for value in values]
    for parameter in alone:
        parameter.grad = torch.zeros_like(parameter)
    try:
        fresh = type(optimizer)(**{**options, "params": alone})
        fresh.step()
    except Exception:  # of a foreign optimiser, whatever it is
        return [{} for _ in alone]
    return [fresh.state[parameter] for parameter in alone]


def refuse_misfit(
    optimizer: torch.optim.Optimizer, name: str, parameter: Tensor, shape: tuple[int, ...]
) -> None:
    """Refuse the state of a parameter where a new optimiser's would be of other shapes.

    Args:
        optimizer: the optimiser.
        name: of the parameter.
        parameter: the parameter.
        shape: of the parameter.

    Raises:
        GateError: it is of other shapes.
    """
    state = (optimizer.state.get(parameter) or {}).items()
    suspects = {
        k: v for k, v in state if isinstance(v, Tensor) and v.numel() > 1 and v.shape != shape
    }
    if not suspects:
        return
    (fresh,) = _fresh(optimizer, parameter, shape, 0.0)
    for key, like in fresh.items():
        if key in suspects and isinstance(like, Tensor) and like.shape != suspects[key].shape:
            has, needs = tuple(suspects[key].shape), tuple(like.shape)
            raise GateError(
                f"the state {key!r} that {type(optimizer).__name__} has of {name} does not fit",
                why=f"it is {has}, and has to be {needs}; nothing says of which channels it is",
                do="load what state_dict() of an attached optimiser returned, or what the dense "
                "network's SGD or AdamW had; or begin with a new optimiser",
            )


def refuse_of_another(optimizer: torch.optim.Optimizer) -> NoReturn:
    """Refuse a state that says it is of channels which the network does not have.

    Raises:
        GateError: always.
    """
    raise GateError(
        f"the state that {type(optimizer).__name__} has is of another network",
        why="the channels that it says its values are of are not in this network's groups",
        do="load what state_dict() of this network's optimiser returned, or begin with a new "
        "optimiser",
    )


def warn_without_order(optimizer: torch.optim.Optimizer, moments: Iterator[Tensor]) -> None:
    """Warn of a loaded state that does not say of which channels it is, but fits by its shapes.

    Args:
        optimizer: that has it.
        moments: the state of the network's channels.

    Warns:
        FxpruneWarning: there is some that is not zero.
    """
    if any(bool(tensor.any()) for tensor in moments):
        text = message(
            f"the state that {type(optimizer).__name__} has loaded does not say of which channels "
            "it is",
            why="it is taken to be of those that execute now; entries of it were left out when it "
            "was saved or loaded, or no attached optimiser saved it",
            do="load all of what state_dict() of an attached optimiser returned (with "
            "torch.distributed.checkpoint, without flatten_optimizer_state_dict), after the "
            "state of the network",
        )
        warnings.warn(text, FxpruneWarning, stacklevel=2)


def strays(state: Mapping[str, Any], shape: tuple[int, ...] | None, size: int) -> Iterator[str]:
    """Yield the keys of a parameter's state that does not follow the channels.

    That is state of another shape than the parameter's, single numbers aside.

    Args:
        state: by key.
        shape: of a gated parameter. None for one that is not gated: its state matters only if it
            has more elements than the parameter, like LBFGS's, which is of all parameters.
        size: elements of the parameter.
    """
    for key, value in state.items():
        if shape is not None and moves(value, shape):
            continue
        if any(tensor.numel() > (1 if shape is not None else size) for tensor in _tensors(value)):
            yield key


def kept_apart(optimizer: torch.optim.Optimizer, narrow: Sequence[Tensor]) -> Iterator[str]:
    """Yield the names under which an optimiser keeps numbers of narrow parameters, beside states.

    Such as `self.velocity = [torch.zeros_like(p) for p in …]`, which nobody can exchange: tensors
    of the shape of one, or as large as all of them together.
    """
    shapes = {p.shape for p in narrow if p.dim() > 1}
    most = sum(p.numel() for p in narrow if p.dim() > 1)
    held = (p for group in optimizer.param_groups for p in group["params"])
    own = {id(t) for _, each in states_in(optimizer) for t in _tensors(each)}
    own.update(map(id, held))
    states: Mapping[Any, Any] = optimizer.state
    named = {key: value for key, value in states.items() if not isinstance(key, Tensor)}
    owners: list[Mapping[Any, Any]] = [vars(optimizer), named, *optimizer.param_groups]
    for owner in owners:
        for key, value in owner.items():
            others = (t for t in _tensors(value) if id(t) not in own)
            apart = any(t.shape in shapes or t.numel() >= most > 0 for t in others)
            if apart and (owner is named or key not in ("state", "param_groups", "params")):
                yield str(key)


def warn_of_stray(optimizer: torch.optim.Optimizer, key: str) -> None:
    """Warn that a state does not follow its channels."""
    text = message(
        f"the state {key!r} of {type(optimizer).__name__} does not follow the channels",
        why="it does not have a value of its own for each element of its parameter in "
        "optimizer.state; it stays where it is when channels are exchanged, and is made anew "
        "when widths change",
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
