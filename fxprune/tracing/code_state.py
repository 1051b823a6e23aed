"""What a model's code keeps outside of the model: in classes, globals, closures and defaults.

A forward may fill a cache that hangs on its class, on a global name or in a decorator's closure.
What it can reach is found by the names that stand in its code, and in the code of the functions
that it names; Python's, NumPy's and PyTorch's own code is left out.
"""

import functools
import sys
from collections.abc import Iterator
from types import CodeType, FunctionType, MethodType, ModuleType
from typing import Any

from torch import nn

MISSING = object()
"""What stands for the value of a name that has none."""

_FOREIGN = frozenset({*sys.stdlib_module_names, "torch", "numpy", "fxprune"}) - {"__main__"}


class CodeState:
    """Finds what functions and classes of modules reach outside of the model."""

    def __init__(self) -> None:
        self.functions: dict[FunctionType, None] = {}
        self.classes: dict[type, None] = {}
        self._named: dict[tuple[int, str], tuple[Any, str]] = {}

    def note(self, root: Any) -> None:
        """Note what the code of a function, or of a class, may reach."""
        waiting: list[tuple[Any, type | None]] = [(root, None)]
        while waiting:
            value, owner = waiting.pop()
            value = bare(value)
            if isinstance(value, type):
                waiting += self._of_class(value)
            elif isinstance(value, FunctionType):
                waiting += self._of_function(value, owner)

    def places(self) -> Iterator[tuple[Any, str]]:
        """Yield each global, cell and class attribute that was found, as a holder and a name."""
        yield from self._named.values()
        for kind in self.classes:
            yield from ((kind, name) for name in list(vars(kind)) if not _is_pythons(name))

    def _of_class(self, kind: type) -> Iterator[tuple[Any, type]]:
        """Note a class; yield the code in it that may run: of modules, what forward names."""
        if kind in self.classes or not is_users(kind):
            return
        bases = [base for base in kind.__mro__ if is_users(base)]
        self.classes |= dict.fromkeys(bases)
        if issubclass(kind, nn.Module):
            yield kind.forward, kind
        else:
            yield from ((value, kind) for base in bases for value in list(vars(base).values()))

    def _of_function(
        self, function: FunctionType, owner: type | None
    ) -> Iterator[tuple[Any, type | None]]:
        """Note the cells and globals of a function; yield their values and the methods it names."""
        if function in self.functions or not is_users(function):
            return
        self.functions[function] = None
        for cell in function.__closure__ or ():
            self._named[id(cell), ""] = cell, "cell_contents"
            yield read(cell, "cell_contents"), owner
        space = function.__globals__
        for name in names_in(function.__code__):
            self._named[id(space), name] = space, name
            yield space.get(name), None
            for base in () if owner is None else owner.__mro__:
                yield vars(base).get(name), owner


def is_users(value: FunctionType | type | ModuleType) -> bool:
    """Tell whether code is neither Python's, NumPy's, PyTorch's nor this package's."""
    module = value.__name__ if isinstance(value, ModuleType) else value.__module__
    return str(module).partition(".")[0] not in _FOREIGN


def read(holder: Any, name: str) -> Any:
    """Return what a holder has under a name: a namespace, a cell, a class or another object."""
    if isinstance(holder, dict):
        return holder.get(name, MISSING)
    if isinstance(holder, type):
        return vars(holder).get(name, MISSING)
    try:
        return getattr(holder, name, MISSING)
    except ValueError:  # an empty cell
        return MISSING


def write(holder: Any, name: str, value: Any) -> None:
    """Set what a holder has under a name; with MISSING, remove the name."""
    if read(holder, name) is value:
        return
    if isinstance(holder, dict):
        holder.pop(name, None) if value is MISSING else holder.update({name: value})
    elif value is MISSING:
        delattr(holder, name)
    else:
        setattr(holder, name, value)


def names_in(code: CodeType) -> Iterator[str]:
    """Yield the names that stand in a function's code and in that of functions in it."""
    yield from (*code.co_names, *code.co_freevars)
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from names_in(constant)


def bare(value: Any) -> Any:
    """Return the function behind a method, a property, a partial call or a cache."""
    while True:
        if isinstance(value, (MethodType, staticmethod, classmethod)):
            value = value.__func__
        elif isinstance(value, property):
            value = value.fget
        elif isinstance(value, functools.partial):
            value = value.func
        elif isinstance(value, functools._lru_cache_wrapper):
            value = value.__wrapped__
        else:
            return value


def _is_pythons(name: str) -> bool:
    return name.startswith("__") and name.endswith("__")
