"""Deep copies of modules: what `copy.deepcopy` gives, in a fraction of its time.

A module is some twenty attributes, most of them numbers or empty dictionaries of hooks, which
`copy.deepcopy` takes apart and rebuilds by the general protocol, one by one.
"""

import copy
import gc
import types
from collections import OrderedDict
from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn

_ATOMS = frozenset({type(None), bool, int, float, str})
_SHARED = (type, types.ModuleType, types.FunctionType, types.CodeType)
"""What `copy.deepcopy` does not copy."""


def copied(value: Any, memo: dict[int, Any]) -> Any:
    """Copy a module in depth, or what one has as an attribute.

    Args:
        value: what to copy; other things than modules are fine.
        memo: as that of `copy.deepcopy`.
    """
    kind = type(value)
    if kind in _ATOMS or (kind is tuple and all(type(part) in _ATOMS for part in value)):
        return value
    if id(value) in memo:
        return memo[id(value)]
    if kind is dict or kind is OrderedDict:
        table = memo[id(value)] = kind()
        for key, part in value.items():
            table[copied(key, memo)] = copied(part, memo)
        return table
    if kind is set and all(type(part) in _ATOMS for part in value):
        memo[id(value)] = set(value)
        return memo[id(value)]
    if isinstance(value, nn.Module) and _is_plain(kind):
        twin = memo[id(value)] = object.__new__(kind)
        state: dict[str, Any] = value.__getstate__()  # type: ignore[no-untyped-call]
        twin.__setstate__({name: copied(part, memo) for name, part in state.items()})
        return twin
    for tensor in _computed(value):
        memo.setdefault(id(tensor), tensor.detach().clone())
    return copy.deepcopy(value, memo)


def _computed(value: Any) -> Iterator[Tensor]:
    """Yield what a value holds that PyTorch does not copy: tensors that gradients flow through.

    Such are a weight that a hook computed (torch.nn.utils.weight_norm), and features that a
    forward keeps in a list.
    """
    waiting, seen = [value], set[int]()
    while waiting:
        part = waiting.pop()
        if type(part) in _ATOMS or isinstance(part, _SHARED) or id(part) in seen:
            continue
        seen.add(id(part))
        if isinstance(part, Tensor):
            yield from [] if part.is_leaf else [part]
        elif not hasattr(part, "__deepcopy__"):
            waiting += gc.get_referents(part)


def _is_plain(kind: type[nn.Module]) -> bool:
    """Tell whether its modules are copied by their state, as those are that say nothing else."""
    own, default = (kind.__reduce_ex__, kind.__reduce__), (object.__reduce_ex__, object.__reduce__)
    return own == default and not hasattr(kind, "__deepcopy__")
