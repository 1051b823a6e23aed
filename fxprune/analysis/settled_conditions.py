"""Note what modules' methods meet alike in each call: arguments, and plain flags."""

import dis
import functools
import inspect
import sys
from collections.abc import Iterator, Mapping
from types import CodeType, FrameType, FunctionType
from typing import Any

from torch import nn

from fxprune.analysis.callers import Asked, Callers
from fxprune.analysis.live_code import Argument, Flag, live_code
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
        self._functions = list(
            all_code([*own, *(x for p in self._parts for x in held_beside_parts(p))])
        )
        self._callers = Callers(self._parts, self._functions, self._is_given)
        self._optimistic = True  # until all that the code may do is found
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

    def _settle(self) -> None:
        """Find the arguments that are alike in all code that may run with these arguments."""
        seen = dict[CodeType, dict[str, Argument]]()
        for (_, code), found in self.of.items():
            seen[code] = _alike(seen.get(code, found), found)

        def left(function: FunctionType) -> CodeType:
            code = function.__code__
            plain = {"isinstance"}.intersection(names_in(code))
            found = {
                name: value
                for name, value in seen.get(code, {}).items()
                if plain or not isinstance(value, type)
            }
            if not self._optimistic:
                found = {
                    n: v for n, v in found.items() if self._callers.always_give(function, n, v)
                }
            return live_code(function, found)

        self._callers.find_running(left)
        self._optimistic = False
        while self._callers.find_running(left):
            pass

    def live(self, module: nn.Module, function: FunctionType) -> CodeType:
        """Return the code of what a module runs, without what does not run."""
        there = set(names_in(function.__code__))
        flags = self.flags(module, function)
        read = {name: flags[name] for name in flags if there.issuperset(name.split("."))}
        return live_code(function, self.arguments(module, function), read)

    def arguments(self, module: nn.Module, function: FunctionType) -> Mapping[str, Argument]:
        """Return what the arguments of a function are in each call, for a module's own method.

        Of another's, such as `Head.prompts` that the model calls, all calls count. What might be
        another on a way that was not found, because a tensor's values say so, is left out.
        """
        if self._optimistic:
            self._settle()
        code, found = function.__code__, self.of.get((id(module), function.__code__))
        if found is None:
            calls = [found for key, found in self.of.items() if key[1] is code]
            found = functools.reduce(_alike, calls) if calls else {}
        return {
            name: value
            for name, value in found.items()
            if self._callers.always_give(function, name, value)
        }

    def _is_given(self, asked: Asked) -> bool:
        """Tell whether the outermost module is handed an argument as asked; it is called alike."""
        root = self._parts[0]
        code = inspect.unwrap(bare(type(root).forward)).__code__
        noted = self.of.get((id(root), code), {})
        return asked.name not in noted or noted[asked.name] is asked.value


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
