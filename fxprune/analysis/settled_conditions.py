"""Note what modules' methods meet alike in each call: arguments, and plain flags."""

import ast
import dis
import functools
import inspect
import sys
from collections.abc import Iterator, Mapping
from types import CodeType, FrameType, FunctionType
from typing import Any

from torch import nn

from fxprune.analysis.live_code import (
    Argument,
    Flag,
    calls_by_name,
    given_to,
    live_code,
    passes_on,
)
from fxprune.analysis.reached_code import all_code, code_of, held_beside_parts, named_in
from fxprune.tracing.code_state import bare, is_users, names_in
from fxprune.tracing.regions import region_of


class SettledConditions:
    """Finds what modules' methods meet alike in each call: arguments, and plain flags.

    Arguments are noted while it is entered. The methods' own code runs meanwhile, also where a
    region stands for it.

    Attributes:
        of: by the id of a module and the code of its method, what its arguments are in each call.
        stored: names of attributes that methods other than `__init__` set; None if they may set
            any.
    """

    def __init__(self, module: nn.Module) -> None:
        """Note the calls of the methods of a module and of those in it."""
        self.of: dict[tuple[int, CodeType], dict[str, Argument]] = {}
        self._parts = list(module.modules())
        kinds = dict.fromkeys(base for part in self._parts for base in type(part).__mro__)
        own = [value for kind in filter(is_users, kinds) for value in vars(kind).values()]
        methods = {function for value in own for function in code_of(value) if function}
        self._codes = {inspect.unwrap(method).__code__ for method in methods}
        self._codes_given_more: set[CodeType] = set()
        self._functions = list(
            all_code([*own, *(x for p in self._parts for x in held_beside_parts(p))])
        )
        self.stored: set[str] | None = set()
        for function in self._functions:
            code = function.__code__
            if set(names_in(code)) & {"setattr", "__setattr__", "__dict__", "vars"}:
                self.stored = None
                break
            if code.co_name != "__init__":
                self.stored |= set(_attributes_set(code))

    def flags(self, module: nn.Module, function: FunctionType) -> Mapping[str, Flag]:
        """Return the plain attributes, such as `use_aux`, that stay as `__init__` set them.

        Those of an attribute are among them, such as `config.use_aux`. Tracing takes them as they
        are, too. There are none for a function that is no method.

        Args:
            module: the module.
            function: what of its code may read them.
        """
        if self.stored is None or function not in map(
            bare, named_in(module, {function.__name__, "super"})
        ):
            return {}
        found: dict[str, Flag] = {}
        for name, value in self._settled(module):
            if _is_flag(value):
                found[name] = value
            elif not isinstance(value, nn.Module) and hasattr(value, "__dict__"):
                inner = self._settled(value)
                found |= {f"{name}.{key}": flag for key, flag in inner if _is_flag(flag)}
        return found

    def _settled(self, holder: object) -> Iterator[tuple[str, Any]]:
        """Yield the attributes of an object that no method sets, with their values."""
        assert self.stored is not None
        for name, value in vars(holder).items():
            if name != "training" and not name.startswith("_") and name not in self.stored:
                yield name, value

    def __enter__(self) -> "SettledConditions":
        self._regions = [(p, r) for p in self._parts if (r := region_of(p)) is not None]
        for part, _ in self._regions:
            del part.__dict__["forward"]
        self._before = sys.getprofile()
        sys.setprofile(self._see)
        return self

    def __exit__(self, *_: object) -> None:
        sys.setprofile(self._before)
        for part, region in self._regions:
            part.__dict__["forward"] = region

    def _see(self, frame: FrameType, event: str, _: Any) -> None:
        code = frame.f_code
        if event != "call" or code not in self._codes:
            return
        names = code.co_varnames[: code.co_argcount + code.co_kwonlyargcount]
        given = frame.f_locals
        found = {name: _argument(given[name]) for name in names if name in given}
        key = (id(given.get(names[0])) if names else 0), code
        self.of[key] = _alike(self.of.get(key, found), found)
        more = code.co_varnames[len(names) : len(names) + _more_arguments(code)]
        if any(given.get(name) for name in more):
            self._codes_given_more.add(code)

    def live(self, module: nn.Module, function: FunctionType) -> CodeType:
        """Return the code of what a module runs, without what does not run."""
        there = set(names_in(function.__code__))
        flags = self.flags(module, function)
        read = {name: flags[name] for name in flags if there.issuperset(name.split("."))}
        return live_code(function, self.arguments(module, function), read)

    def arguments(self, module: nn.Module, function: FunctionType) -> Mapping[str, Argument]:
        """Return what the arguments of a function are in each call, for a module's own method.

        Of another's, such as `Head.prompts` that the model calls, all calls count. True and False
        count where they stand in the code, since others might come from a tensor's values, and the
        class of an argument where it is the network's own input.
        """
        code, found = function.__code__, self.of.get((id(module), function.__code__))
        if found is None:
            calls = [found for key, found in self.of.items() if key[1] is code]
            found = functools.reduce(_alike, calls) if calls else {}
        if not (module is self._parts[0] and function.__name__ == "forward"):
            found = {name: value for name, value in found.items() if not isinstance(value, type)}
        return {
            name: value
            for name, value in found.items()
            if not isinstance(value, bool) or self._stands_in_code(module, function, name, value)
        }

    def _stands_in_code(
        self, module: nn.Module, function: FunctionType, argument: str, value: bool
    ) -> bool:
        """Tell whether all code that calls a method gives this argument the value, or none."""
        given = inspect.signature(function).parameters
        position = list(given).index(argument) - 1  # behind the module
        names = {function.__name__}
        if function.__name__ in ("forward", "__call__"):
            tables = (part._modules.items() for part in self._parts)
            names = {name for table in tables for name, part in table if part is module}
            if not names or not all(map(str.isidentifier, names)):  # called as one of a list
                return False
        for other in self._functions:
            code = other.__code__
            for name in names.intersection((*names_in(code), *code.co_consts)):
                calls = calls_by_name(other, name)
                if calls is None:
                    return False
                for call in calls:
                    passed = given_to(call, argument, position)
                    plain = isinstance(passed, ast.Constant) and passed.value is value
                    if not plain and (passed is not None or given[argument].default is not value):
                        return False
                    known = any(key[1] is code for key in self.of)
                    if passes_on(call) and (not known or code in self._codes_given_more):
                        return False
        return True


def _more_arguments(code: CodeType) -> int:
    """Count the arguments with stars."""
    return sum(bool(code.co_flags & flag) for flag in (inspect.CO_VARARGS, inspect.CO_VARKEYWORDS))


def _argument(value: object) -> Argument:
    return value if value is None or isinstance(value, bool) else type(value)


def _alike(some: Mapping[str, Argument], others: Mapping[str, Argument]) -> dict[str, Argument]:
    return {name: some[name] for name in some.keys() & others if some[name] is others[name]}


def _is_flag(value: object) -> bool:
    return value is None or isinstance(value, bool | int | str)


def _attributes_set(code: CodeType) -> Iterator[str]:
    """List the attributes that code sets or deletes, and those of functions in it."""
    for step in dis.get_instructions(code):
        if step.opname in ("STORE_ATTR", "DELETE_ATTR"):
            yield str(step.argval)
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _attributes_set(constant)
