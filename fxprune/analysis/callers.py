"""Tell whether all code that calls a function hands it an argument of one kind."""

import ast
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from inspect import Parameter, signature
from types import CodeType, FunctionType
from typing import Any

from torch import nn

from fxprune.analysis.call_sites import CallSites, Uses, name_of, texts_in
from fxprune.analysis.live_code import Argument, assigned, definition_of, live_code
from fxprune.analysis.reached_code import UNNAMED, code_of, held_beside_parts, named_outside
from fxprune.tracing.code_state import bare, is_users, names_in

_RUNS = {"forward", "__call__"}


@dataclass(frozen=True)
class Asked:
    """An argument of a function.

    Attributes:
        function: the function.
        name: by which it is given; empty if it has none.
        position: among those given by position, the module among them.
        value: what it is to be, as `SettledConditions` notes it.
        is_default: whether it is this where nothing is given.
    """

    function: FunctionType
    name: str
    position: int
    value: Argument
    is_default: bool


class Callers:
    """Knows the code that may call the methods of modules."""

    def __init__(
        self,
        parts: Iterable[nn.Module],
        functions: Iterable[FunctionType],
        is_given: Callable[[Asked], bool],
    ) -> None:
        """Take the code that may run.

        Args:
            parts: the modules, the outermost first.
            functions: the code.
            is_given: whether the outermost is handed an argument as asked.
        """
        self._parts, self._is_given = list(parts), is_given
        self._functions = [f for f in functions if f.__code__.co_name != "__init__"]
        self._names = defaultdict[FunctionType, set[str]](set)
        self._unbound, self._held = set[FunctionType](), set[FunctionType | None]()
        self._owners = defaultdict[FunctionType, set[type]](set)
        kinds = dict.fromkeys(base for part in self._parts for base in type(part).__mro__)
        for kind in filter(is_users, kinds):
            for name, value in vars(kind).items():
                plain = isinstance(value, (FunctionType, staticmethod, classmethod))
                for function in () if isinstance(value, type) else filter(None, code_of(value)):
                    if not plain or bare(value) is not function:  # as in a table of functions
                        self._held.add(function)
                    self._names[function].add(name)
                    self._owners[function].add(kind)
                    if isinstance(value, staticmethod):
                        self._unbound.add(function)
        held = (value for part in self._parts for value in held_beside_parts(part))
        self._held |= {function for value in held for function in code_of(value)}
        self._places = defaultdict[FunctionType, list[tuple[bool, str]]](list)
        for part in self._parts:
            if any(list(code_of(hook)) for hook in part._forward_pre_hooks.values()):
                self._held.add(_forward(part))  # which it may give other arguments
            for name, child in part._modules.items():
                plain = is_users(type(part)) and name.isidentifier()
                self._places[_forward(child)].append((plain, name))
        self._packages = {_package(kind) for kind in filter(is_users, kinds)}
        self._bases = {type(part).__mro__ for part in self._parts}
        self._running = self._functions
        self._known: dict[Asked, bool] = {}
        self._definitions: dict[FunctionType, ast.FunctionDef | None] = {}

    def find_running(self, code: Callable[[FunctionType], CodeType]) -> bool:
        """Find the functions that may run, by the names in what is left of their code.

        Args:
            code: returns what is left.

        Returns:
            Whether they are others than before.
        """
        by_name = defaultdict[str, set[FunctionType]](set)
        for function, names in self._names.items():
            for name in names:
                by_name[name].add(function)
        known = dict.fromkeys(self._functions)
        held = (value for part in self._parts for value in held_beside_parts(part))
        waiting: list[FunctionType | None] = [f for value in held for f in code_of(value)]
        waiting += [f for name in (*UNNAMED, "forward") for f in by_name[name]]
        running = set[FunctionType]()
        while waiting:
            one = waiting.pop()
            if one is None or one not in known or one in running:
                continue
            running.add(one)
            left = set(names_in(code(one)))
            left.update(left and texts_in(one.__code__))
            waiting += [f for name in left for f in by_name.get(name, ())]
            waiting += [f for value in named_outside(one, left) for f in code_of(value, left)]
        found = [function for function in known if function in running]
        changed, self._running, self._known = found != self._running, found, {}
        return changed

    def always_give(self, function: FunctionType, name: str, value: Argument) -> bool:
        """Tell whether all that may call a function hands it this argument, or nothing like it."""
        given = signature(function, follow_wrapped=False).parameters
        asked = Asked(function, name, list(given).index(name), value, _is_so(given[name], value))
        if asked not in self._known:
            self._known[asked] = self._always(asked, set())
        return self._known[asked]

    def _always(self, asked: Asked, seen: set[Asked]) -> bool:
        if asked in seen:  # by itself
            return True
        seen.add(asked)
        function = asked.function
        if function in self._held:
            return False
        if function is _forward(self._parts[0]) and not self._is_given(asked):
            return False
        uses = self._uses(function)
        for other in self._running:
            defaults = (*(other.__defaults__ or ()), *(other.__kwdefaults__ or {}).values())
            if any(function in code_of(value) for value in defaults):
                return False
            calls = self._calls(other, function, uses)
            if calls is None:
                return False
            for call, offsets in calls:
                offsets = (0, 1) if function in self._unbound else offsets
                if not all(self._gives(other, call, asked, offset, seen) for offset in offsets):
                    return False
        return True

    def _uses(self, function: FunctionType) -> Uses:
        places, methods = self._places[function], self._names[function]
        runs = not methods.isdisjoint(_RUNS)
        return Uses(
            frozenset(methods | _RUNS if runs else methods),
            frozenset(name for _, name in places),
            runs,
            any(not plain for plain, _ in places),
        )

    def _calls(
        self, caller: FunctionType, function: FunctionType, uses: Uses
    ) -> list[tuple[ast.Call, tuple[int, ...]]] | None:
        """List the calls of a function in another's code; None where it may be called otherwise."""
        if _package(caller) not in self._packages:  # it knows no module of the user's by name
            uses = Uses()
        sites = CallSites(caller, function, uses)
        if not sites.is_possible:
            return []
        if caller not in self._definitions:
            self._definitions[caller] = definition_of(caller)
        definition = self._definitions[caller]
        if definition is None:
            return None if sites.is_named else []
        if sites.is_looked_up:
            return None
        sites.collect(definition, apart=not self._in_one_class(caller, function))
        return None if sites.others else sites.found

    def _in_one_class(self, caller: FunctionType, function: FunctionType) -> bool:
        """Tell whether a method's own object may have another method."""
        ours, theirs = self._owners[caller], self._owners[function]
        if not theirs:
            return True
        if not ours:  # a function, or a method of a class that no part is of
            return "super" not in caller.__code__.co_names
        return any(ours & {*mro} and theirs & {*mro} for mro in self._bases)

    def _gives(
        self, caller: FunctionType, call: ast.Call, asked: Asked, offset: int, seen: set[Asked]
    ) -> bool:
        """Tell whether a call gives an argument as asked; `offset` is 1 if it gives no module."""
        code, place = caller.__code__, asked.position - offset
        by_name = (keyword.value for keyword in call.keywords if keyword.arg == asked.name != "")
        stars = [arg for arg in call.args if isinstance(arg, ast.Starred)]
        plain = next((n for n, arg in enumerate(call.args) if arg in stars), len(call.args))
        passed = next(by_name, call.args[place] if 0 <= place < plain else None)
        if passed is not None:
            return self._is(caller, passed, asked, seen)
        more = [keyword.value for keyword in call.keywords if keyword.arg is None]
        if not stars and not more:
            return asked.is_default
        named = code.co_argcount + code.co_kwonlyargcount
        own = list(code.co_varnames[named : named + bool(code.co_flags & 4)])
        others = code.co_varnames[named + len(own) :][: bool(code.co_flags & 8)]
        if len(call.args) > plain + 1 or any(name_of(star.value) not in own for star in stars):
            return False
        if len(more) > 1 or any(name_of(value) not in others for value in more):
            return False
        if not {*own, *others}.isdisjoint(assigned(code)) or self._may_fill(caller, others):
            return False
        rest = replace(
            asked,
            function=caller,
            name=asked.name if more and asked.name not in code.co_varnames[:named] else "",
            position=code.co_argcount + place - plain if stars and place >= plain else -1,
        )
        return self._always(rest, seen)

    def _may_fill(self, caller: FunctionType, names: Iterable[str]) -> bool:
        """Tell whether a function may put more into its `**kwargs`."""
        definition = self._definitions[caller]
        assert definition is not None
        plain = set[int]()
        for node in ast.walk(definition):
            match node:
                case ast.keyword(None, value):
                    plain.add(id(value))
                case ast.Attribute(value, "get" | "pop" | "keys" | "values" | "items"):
                    plain.add(id(value))
                case ast.Subscript(value, ctx=ast.Load()):
                    plain.add(id(value))
        read = (node for node in ast.walk(definition) if name_of(node) in {*names})
        return any(id(node) not in plain for node in read)

    def _is(self, caller: FunctionType, given: ast.expr, asked: Asked, seen: set[Asked]) -> bool:
        value, code = asked.value, caller.__code__
        match given:
            case ast.Constant(found):
                return found is value or type(found) is value
            case ast.Name(id=name) if (
                name in (code.co_varnames[: code.co_argcount + code.co_kwonlyargcount])
            ):
                if name in assigned(live_code(caller, {name: value})):
                    return False
                parameters = signature(caller, follow_wrapped=False).parameters
                place, same = list(parameters).index(name), _is_so(parameters[name], value)
                return self._always(Asked(caller, name, place, value, same), seen)
        return False


def _is_so(parameter: Parameter, value: Argument) -> bool:
    """Tell whether an argument is as asked where a call gives nothing, if it may do so."""
    default = parameter.default
    same = default is value or (isinstance(value, type) and type(default) is value)
    return same or default is Parameter.empty


def _forward(module: Any) -> Any:
    """Return the code that runs with a module, as its class has it."""
    return bare(vars(module).get("forward", type(module).forward)) if module is not None else None


def _package(value: FunctionType | type) -> str:
    return str(value.__module__).partition(".")[0]
