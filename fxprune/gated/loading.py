"""Loading: what is asked of a state dict, whose slots are of the channels in its `_extra_state`."""

import warnings
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from fxprune.errors import FxpruneWarning, GateError, message

_ROUNDED = (torch.float16, torch.bfloat16)


def refuse_without_selection(state: Mapping[str, Any], names: Iterable[str]) -> None:
    """Refuse gated tensors in a state dict that does not say of which channels they are.

    Args:
        state: what is loaded, without an `_extra_state` of the network.
        names: the keys of the network's gated tensors.

    Raises:
        GateError: it has some of them.
    """
    if (found := next((name for name in names if name in state), None)) is not None:
        raise GateError(
            f"the state dict has {found!r} but no `_extra_state` of the gated network",
            why="`_extra_state` says which channels the values are of, and others may execute now",
            do="load all of gated.state_dict(); to replace weights in place, assign to "
            "gated.parameters(), or call gated.settle() first",
        )


def warn_of_others(state: Mapping[str, Any], saved: Mapping[str, Tensor]) -> None:
    """Warn where a state dict's parameters are others than those with which it was made.

    Args:
        state: what is loaded.
        saved: by key, the gated parameters as the `_extra_state` has them.

    Warns:
        FxpruneWarning: a parameter differs by more than the rounding of a cast.
    """
    found = next((k for k, like in saved.items() if k in state and not _same(state[k], like)), None)
    if found is not None:
        text = message(
            f"{found!r} in the state dict is not what it was when the state dict was made",
            why="its slots are of the channels that executed then; values of another time (a "
            "state_dict() that was kept without a copy while the training went on, or an average "
            "of state dicts) are of other channels",
            do="keep copy.deepcopy(gated.state_dict()), and average copy.deepcopy(gated); "
            "values that were written on purpose are loaded as they are",
        )
        warnings.warn(text, FxpruneWarning, stacklevel=2)


def warn_of_missing(state: Mapping[str, Any], named: Mapping[str, nn.Parameter]) -> None:
    """Warn where a state dict lacks a parameter that its `_extra_state` sets all the same.

    Args:
        state: what is loaded, with an `_extra_state` of the network.
        named: the network's parameters by key, a shared one by each of its keys.

    Warns:
        FxpruneWarning: it lacks one of them, as a state dict without the head does.
    """
    there = {parameter for key, parameter in named.items() if key in state}
    missing = next((key for key, parameter in named.items() if parameter not in there), None)
    if missing is not None:
        text = message(
            f"{missing!r} is not in the state dict, and is set by it all the same",
            why="its `_extra_state` holds all of the dense network, beside the resting channels",
            do="to keep a part as it is, load dense_state_dict() without that part into the model, "
            "and instrument that",
        )
        warnings.warn(text, FxpruneWarning, stacklevel=2)


@torch.no_grad()
def _same(value: Any, like: Tensor) -> bool:
    if not isinstance(value, Tensor) or value.shape != like.shape:
        return True  # torch says what is wrong
    like = like.to(value.device)
    if torch.equal(like.to(value.dtype), value):
        return True
    rounded = (like.to(dtype).to(value.dtype) for dtype in _ROUNDED)
    return any(torch.equal(each, value) for each in rounded)
