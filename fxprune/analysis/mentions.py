"""Which of its parts a module's code names, to tell a part that it never uses from a hidden way."""

from collections.abc import Iterator
from types import CodeType, FunctionType
from typing import Any

from torch import Tensor, nn

_LOOKS_UP = frozenset(
    {"getattr", "vars", "__dict__", "_modules", "_parameters", "_buffers", "get_submodule"}
    | {kind + of for kind in ("", "named_") for of in ("children", "modules", "parameters")}
)
"""Names of what finds a part by a name that does not stand in the code."""


def parts_named(module: nn.Module) -> frozenset[str] | None:
    """Collect the names that stand in a module's code: `forward` and what it calls.

    Returns:
        The names; None where the code may find a part without naming it.
    """
    names: set[str] = set()
    waiting, seen = [type(module).forward], set()
    if module._forward_hooks or module._forward_pre_hooks:
        return None
    while waiting:
        function = waiting.pop()
        if function in seen:
            continue
        seen.add(function)
        found = set(_names(function.__code__))
        for name in found - names:
            if _may_hold_code(vars(module).get(name)):
                return None
            known = getattr(type(module), name, None), function.__globals__.get(name)
            for value in known:
                value = value.fget if isinstance(value, property) else value
                if isinstance(value, FunctionType) and not value.__module__.startswith("torch."):
                    waiting.append(value)
        names |= found
    return None if names & _LOOKS_UP else frozenset(names)


def _names(code: CodeType) -> Iterator[str]:
    yield from (*code.co_names, *code.co_freevars)
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _names(constant)


def _may_hold_code(value: Any) -> bool:
    """Tell whether an attribute may lead to a part: lists of functions, modules out of sight."""
    if isinstance(value, (list, tuple, set)):
        return any(map(_may_hold_code, value))
    if isinstance(value, dict):
        return any(map(_may_hold_code, value.values()))
    return value is not None and not isinstance(value, (bool, int, float, str, Tensor))
