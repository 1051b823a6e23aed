"""Find the functions that code may run, by the names that stand in it."""

import functools
from collections.abc import Iterable, Iterator, Set
from sys import modules as imported
from types import CellType, FunctionType, ModuleType, SimpleNamespace
from typing import Any

from torch import nn

from fxprune.tracing.code_state import bare, is_users, names_in

_EMPTY = CellType()
UNNAMED = {"__call__", "__enter__", "__exit__", "__get__", "__getattr__", "__getitem__"}
"""Methods that run without being named."""
_TABLES = frozenset(vars(nn.Module()))
_SET_UP = {"__init__", "__setattr__", "__delattr__"}
"""Methods that run when an object is set up, before a network runs."""


def code_of(value: Any, names: Set[str] | None = None) -> Iterator[FunctionType | None]:
    """Yield the functions that may run where a value is used.

    None stands for a module among what it holds, which may run without being named. PyTorch's
    and Python's own functions are left out.

    Args:
        value: a function, a class, or any object.
        names: those in the code that uses it; None if any method may run.
    """
    waiting, seen = [value], set[int]()
    while waiting:
        value = waiting.pop()
        if id(value) in seen:
            continue
        seen.add(id(value))
        if isinstance(value, nn.Module):
            yield None
        elif isinstance(value, FunctionType):
            if is_users(value):
                yield value
        elif isinstance(value, property):
            waiting += (value.fget, value.fset, value.fdel)
        elif isinstance(value, functools.cached_property):
            waiting.append(value.func)
        elif isinstance(value, (functools.partial, functools.partialmethod)):
            waiting += (value.func, *value.args, *value.keywords.values())
        elif isinstance(value, dict):
            waiting += value.values()
        elif isinstance(value, (list, tuple, set, frozenset)):
            waiting += value
        elif isinstance(value, ModuleType):
            if is_users(value):
                waiting += (vars(value).get(name) for name in names or ())
        elif isinstance(value, type):
            waiting += _attributes(value, names)
        elif bare(value) is not value:
            waiting.append(bare(value))
        elif isinstance(value, SimpleNamespace) or is_users(type(value)):
            waiting += (type(value), getattr(value, "__dict__", None))


def named_outside(function: FunctionType, names: Set[str]) -> Iterator[Any]:
    """Yield the globals, modules and variables of functions around it that a function names.

    What it takes where an argument is not given is among them.

    Args:
        function: the function.
        names: those in its code.
    """
    space = function.__globals__
    for name in names:
        yield space.get(name)
        yield imported.get(name)  # inside of the function
        yield imported.get(f"{space.get('__package__')}.{name}")
    yield from (cell.cell_contents for cell in function.__closure__ or () if cell != _EMPTY)
    yield from (*(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values())


def all_code(values: Iterable[Any]) -> Iterator[FunctionType]:
    """Yield the functions that may run where values are used, and all that these lead to."""
    waiting = [function for value in values for function in code_of(value)]
    seen = set[FunctionType]()
    while waiting:
        function = waiting.pop()
        if function is not None and function not in seen:
            seen.add(function)
            yield function
            names = set(names_in(function.__code__))
            for value in named_outside(function, names):
                waiting += code_of(value, names)


def named_in(module: nn.Module, names: Set[str]) -> Iterator[Any]:
    """Yield what a module has under names, but for parts; with `super`, all that it leads to."""
    for name in names:
        found = [vars(base)[name] for base in type(module).__mro__ if name in vars(base)]
        yield from found if "super" in names else found[:1]
        if name in vars(module):
            yield vars(module)[name]


def hooks_of(module: nn.Module) -> Iterator[Any]:
    """Yield the hooks that run with a module."""
    yield from (*module._forward_hooks.values(), *module._forward_pre_hooks.values())


def held_beside_parts(module: nn.Module) -> Iterator[Any]:
    """Yield what a module has beside its parts, and its hooks."""
    yield from (value for name, value in vars(module).items() if name not in _TABLES)
    yield from hooks_of(module)


def _attributes(kind: type, names: Set[str] | None) -> Iterator[Any]:
    """Yield what a user's class has, but for what runs when an object of it is set up."""
    for base in filter(is_users, kind.__mro__):
        for name, value in vars(base).items():
            if name not in _SET_UP and (names is None or name in names or name in UNNAMED):
                yield value
