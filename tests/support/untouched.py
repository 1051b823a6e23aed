"""A deep description of a model, to see that nothing in it has changed."""

import random
import types
from collections import deque
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

_OPAQUE = (
    type,
    types.ModuleType,
    types.FunctionType,
    types.BuiltinFunctionType,
    types.MethodType,
)


def described(model: nn.Module) -> dict[str, Any]:
    """All that a model holds, by the path to it, and the state of the random numbers.

    Containers are described by their identity and their length, tensors by their identity and
    values, other values by their text.
    """
    found: dict[str, Any] = {}
    _describe(model, "model", found, set())
    found["random: torch"] = tuple(torch.random.get_rng_state().tolist())
    found["random: python"] = random.getstate()
    found["random: numpy"] = str(np.random.get_state())
    return found


def changes(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    """The paths at which two descriptions differ."""
    return [
        path
        for path in dict.fromkeys([*before, *after])
        if path not in before or path not in after or before[path] != after[path]
    ]


def _describe(value: Any, path: str, found: dict[str, Any], seen: set[int]) -> None:
    if isinstance(value, Tensor):
        raw = value.detach().cpu().reshape(-1)
        values = raw.view(torch.uint8).tolist() if raw.numel() < 10_000 else None
        total = None if values is not None else float(raw.double().sum())
        found[path] = (id(value), value.dtype, tuple(value.shape), str(values), total)
        return
    if id(value) in seen:
        return
    if isinstance(value, (dict, list, tuple, set, deque)):
        seen.add(id(value))
        # a tuple cannot change, and a module's own table may be made anew
        found[path] = (type(value), len(value), None if isinstance(value, tuple) else id(value))
        pairs = value.items() if isinstance(value, dict) else enumerate(value)
        for key, part in list(pairs):
            _describe(part, f"{path}[{key!r}]", found, seen)
    elif isinstance(value, (torch.Generator, random.Random, np.random.RandomState)):
        state = value.getstate() if isinstance(value, random.Random) else value.get_state()
        found[path] = str(state.tolist() if isinstance(state, Tensor) else state)
    elif isinstance(value, np.random.Generator):
        found[path] = repr(value.bit_generator.state)
    elif isinstance(value, _OPAQUE):
        found[path] = id(value)
    elif hasattr(value, "__dict__"):
        seen.add(id(value))
        found[path] = (type(value), id(value))
        for name, part in list(vars(value).items()):
            _describe(part, f"{path}.{name}", found, seen)
    else:
        found[path] = str(value)
