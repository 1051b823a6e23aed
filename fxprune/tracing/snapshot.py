"""Puts a model back as it was, in depth: what its forward left in it while it was traced.

A forward may fill attributes, caches in dicts, lists and sets, the hook tables of modules, and
objects of its own classes. All of them are noted before and put back after; buffers and other
tensors that were written in place get their values back. Parameters are left to the caller.
"""

import types
from collections import OrderedDict, deque
from collections.abc import Iterable
from typing import Any

from torch import Tensor, fx, nn

from fxprune.tracing.module import modules_of

_ATOMS = frozenset({type(None), bool, int, float, complex, str, bytes, type(...)})
_CONTAINERS = (dict, list, set, deque)
_FOREIGN = (
    type,
    types.ModuleType,
    types.FunctionType,
    types.BuiltinFunctionType,
    types.MethodType,
    fx.Graph,
    fx.Node,
    fx.Proxy,
)
"""Objects that are not looked into: what they hold is not the model's."""

CONSTANT = "_tensor_constant"
"""So begin the names under which torch.fx keeps tensors of forward's own on the model."""


class Snapshot:
    """What all containers in a model hold, for each module of it."""

    def __init__(self, model: nn.Module) -> None:
        self._seen: set[int] = set()
        self._kept: list[tuple[Any, Any]] = []
        self._tensors: list[tuple[Tensor, Tensor, int]] = []
        self._of: dict[int, slice] = {}
        for module in modules_of(model).values():
            first = len(self._kept)
            self._seen.add(id(vars(module)["_parameters"]))
            self._kept.append((vars(module)["_parameters"], dict(vars(module)["_parameters"])))
            self._note(vars(module))
            self._of[id(module)] = slice(first, len(self._kept))

    def restore(self) -> None:
        """Put everything back, but for torch.fx's constants."""
        self._put_back(self._kept)
        for tensor, values, version in self._tensors:
            if tensor._version != version:
                tensor.data.copy_(values)

    def restore_parts(self, modules: Iterable[nn.Module]) -> None:
        """Put back what these modules hold, but for their mode."""
        for module in modules:
            if id(module) in self._of:
                mode = module.training
                self._put_back(self._kept[self._of[id(module)]])
                vars(module)["training"] = mode

    def _put_back(self, kept: list[tuple[Any, Any]]) -> None:
        for container, values in kept:
            _refill(container, values)

    def _note(self, root: Any) -> None:
        waiting = [root]
        while waiting:
            value = waiting.pop()
            kind = type(value)
            if kind in _ATOMS or id(value) in self._seen:
                continue
            if kind is dict or kind is OrderedDict:
                self._seen.add(id(value))
                self._kept.append((value, dict(value) if value else None))
                waiting += [part for part in value.values() if type(part) not in _ATOMS]
            elif kind is tuple:
                waiting += [part for part in value if type(part) not in _ATOMS]
            elif isinstance(value, Tensor):
                self._note_tensor(value)
            elif isinstance(value, _CONTAINERS):
                self._seen.add(id(value))
                self._kept.append((value, _shallow(value)))
                waiting += value.values() if isinstance(value, dict) else value
                if hasattr(value, "__dict__"):
                    waiting.append(vars(value))
            elif not isinstance(value, (nn.Module, *_FOREIGN)) and hasattr(value, "__dict__"):
                self._seen.add(id(value))
                waiting.append(vars(value))

    def _note_tensor(self, tensor: Tensor) -> None:
        """Note the values of a tensor that is no parameter."""
        if isinstance(tensor, nn.Parameter) or tensor.is_inference():
            return
        self._seen.add(id(tensor))
        self._tensors.append((tensor, tensor.detach().clone(), tensor._version))


def _shallow(value: Any) -> Any:
    if isinstance(value, dict):
        return dict(value.items()) if value else None
    return list(value)


def _refill(container: Any, values: Any) -> None:
    """Give a container what it held; one that still holds it is not written to."""
    if isinstance(container, dict):
        kept = values or {}
        if len(container) == len(kept) and all(
            key in container and container[key] is part for key, part in kept.items()
        ):
            return
        constants = {
            name: part
            for name, part in container.items()
            if isinstance(name, str) and name.startswith(CONSTANT)
        }
        kind: Any = OrderedDict if isinstance(container, OrderedDict) else dict
        kind.clear(container)
        kind.update(container, kept | constants)
        return
    if len(container) == len(values) and all(a is b for a, b in zip(container, values)):
        return
    container.clear()
    if isinstance(container, set):
        container.update(values)
    else:
        container.extend(values)
