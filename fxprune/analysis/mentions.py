"""Tell from a module's source whether its code may reach a parameter that no run has used."""

import ast
import builtins
import copy
import dis
import functools
import inspect
import sys
import textwrap
from abc import ABCMeta
from collections.abc import Iterator, Mapping, Set
from types import CodeType, FrameType, FunctionType, ModuleType
from typing import Any

from torch import Tensor, nn

from fxprune.analysis.reached_code import UNNAMED, all_code, code_of, named_outside
from fxprune.tracing.code_state import bare, is_users, names_in
from fxprune.tracing.regions import region_of

_LOOKS_UP = frozenset(
    {"getattr", "vars", "__dict__", "_modules", "_parameters", "_buffers"}
    | {"get_submodule", "get_parameter", "get_buffer", "state_dict", "apply", "attrgetter"}
    | {kind + of for kind in ("", "named_") for of in ("children", "modules", "parameters")}
)
"""Names of what finds a part by a name that does not stand in the code."""

Flag = bool | int | str | None
Argument = bool | type | None
"""What an argument is in each call: None, True or False, or anything else of a class."""


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
        self._functions = list(all_code([*own, *(x for p in self._parts for x in _held(p))]))
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
            bare, _named(module, {function.__name__, "super"})
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
        count where no code hands them over: they might come from a tensor's values.
        """
        code, found = function.__code__, self.of.get((id(module), function.__code__))
        if found is None:
            calls = [found for key, found in self.of.items() if key[1] is code]
            found = functools.reduce(_alike, calls) if calls else {}
        return {
            name: value
            for name, value in found.items()
            if not isinstance(value, bool) or self._keeps_default(function, name)
        }

    def _keeps_default(self, function: FunctionType, argument: str) -> bool:
        """Tell whether no code hands this argument to a method."""
        name, given = function.__name__, inspect.signature(function).parameters
        position = list(given).index(argument) - 1  # behind the module
        if name in ("forward", "__call__"):  # which run without being named
            return False
        for other in self._functions:
            code = other.__code__
            if name not in (*names_in(code), *code.co_consts):
                continue
            calls = _calls_by_name(other, name)
            if calls is None:
                return False
            for call in calls:
                keywords = {keyword.arg for keyword in call.keywords}
                plain = [arg for arg in call.args if not isinstance(arg, ast.Starred)]
                if len(plain) > position or argument in keywords:
                    return False
                passes_on = None in keywords or len(plain) < len(call.args)
                known = any(key[1] is code for key in self.of)
                if passes_on and (not known or code in self._codes_given_more):
                    return False
        return True


def may_be_reached(module: nn.Module, name: str, settled: SettledConditions) -> bool:
    """Tell whether code of the modules around a parameter may use it.

    It may not where one of the names on the way to it stands in no code that runs with the
    arguments and flags as they are: `if labels is not None: self.embed(labels)`, without labels,
    or `if self.use_aux: self.aux(x)`.

    Args:
        module: the outermost module.
        name: the parameter's, from there.
        settled: what their methods meet alike in each call.
    """
    part, named, all_seen = module, set[str](), True
    for step in name.split("."):
        found, seen = _names_around(part, named, settled)
        named |= found
        all_seen &= seen
        if step not in named and _names_its_parts(type(part)):
            return not all_seen
        following = getattr(part, step)
        if not isinstance(following, nn.Module):
            break
        part = following
    return True


def _names_around(
    module: nn.Module, outer: Set[str], settled: SettledConditions
) -> tuple[set[str], bool]:
    """Collect the names that stand in a module's code: `forward` and what it calls.

    Args:
        module: the module.
        outer: names in the code of the modules around it, which may call its methods.
        settled: code that does not run under these conditions is left out.

    Returns:
        The names, and whether the code can find no part without naming it.
    """
    names, seen, all_seen = set[str](), set[FunctionType](), True
    waiting = [type(module).forward, vars(module).get("forward"), *_hooks(module)]
    waiting += _named(module, outer | UNNAMED)
    while waiting:
        for function in code_of(waiting.pop(), names | outer):
            if function is None:
                all_seen = False
            elif function not in seen:
                seen.add(function)
                found = set(names_in(settled.live(module, function)))
                names |= found
                waiting += (*_named(module, found), *named_outside(function, found))
    return names, all_seen and not names & _LOOKS_UP


def _named(module: nn.Module, names: Set[str]) -> Iterator[Any]:
    """Yield what a module has under names, but for parts; with `super`, all that it leads to."""
    for name in names:
        found = [vars(base)[name] for base in type(module).__mro__ if name in vars(base)]
        yield from found if "super" in names else found[:1]
        if name in vars(module):
            yield vars(module)[name]


def _names_its_parts(kind: type) -> bool:
    """Tell whether a module's code names its parts; PyTorch's may run them all, as in a list."""
    own = (base for base in kind.__mro__ if issubclass(base, nn.Module) and base is not nn.Module)
    return all(map(is_users, own))


def _hooks(module: nn.Module) -> Iterator[Any]:
    """Yield the hooks that run with a module."""
    yield from (*module._forward_hooks.values(), *module._forward_pre_hooks.values())


def _held(module: nn.Module) -> Iterator[Any]:
    """Yield what a module has beside its parts, and its hooks."""
    yield from (value for name, value in vars(module).items() if name not in _TABLES)
    yield from _hooks(module)


_TABLES = frozenset(vars(nn.Module()))


def live_code(
    function: FunctionType, arguments: Mapping[str, Argument], flags: Mapping[str, Flag] = {}
) -> CodeType:
    """Return a function's code without what does not run.

    Args:
        function: the function.
        arguments: what its arguments are.
        flags: attributes of its first argument, with their values.
    """
    code = function.__code__
    if not arguments and not flags and "getattr" not in names_in(code):
        return code
    definition = _definition(function)
    if definition is None or _has_private(definition):
        return code
    definition.decorator_list = []
    own = code.co_varnames[0] if flags and code.co_argcount else ""
    if own in _assigned(code) or _has_namesake(definition, own):
        return code
    while True:
        live = _Live(arguments, own, flags, function.__globals__)
        module = ast.Module([live.visit(copy.deepcopy(definition))], [])
        try:
            compiled = compile(
                ast.fix_missing_locations(module), code.co_filename, "exec", dont_inherit=True
            )
        except (ValueError, SyntaxError):
            return code
        found = next(c for c in compiled.co_consts if isinstance(c, CodeType))
        assigned = set(_assigned(found))
        if assigned.isdisjoint(arguments):
            return found
        arguments = {name: arguments[name] for name in arguments.keys() - assigned}


class _Live(ast.NodeTransformer):
    """Takes out what needs other arguments, or another value of a flag.

    `getattr(x, "part")` becomes `x.part`.
    """

    def __init__(
        self,
        arguments: Mapping[str, Argument],
        own: str,
        flags: Mapping[str, Flag],
        outside: Mapping[str, Any],
    ) -> None:
        """Take the arguments, the name that a method calls its module, flags, and globals."""
        self.arguments, self.own, self.flags, self.outside = arguments, own, flags, outside
        self.absent = {name for name, value in arguments.items() if value is None}

    def visit_If(self, node: ast.If) -> Any:
        truth = self._truth(node.test)
        if truth is not None:
            node.body, node.orelse = (node.body if truth else node.orelse) or [ast.Pass()], []
        return self.generic_visit(node)

    def visit_IfExp(self, node: ast.IfExp) -> Any:
        truth = self._truth(node.test)
        if truth is None:
            return self.generic_visit(node)
        kept = self.visit(node.body if truth else node.orelse)
        test = self.visit(node.test)
        calls = any(isinstance(part, ast.Call) for part in ast.walk(test))
        return ast.Tuple([test, kept], ast.Load()) if calls else kept

    def visit_BoolOp(self, node: ast.BoolOp) -> Any:
        ends = isinstance(node.op, ast.Or)
        for position, value in enumerate(node.values):
            if self._truth(value) is ends:
                node.values[position:] = [value, ast.Constant(ends)]  # what follows is not asked
                break
        return self.generic_visit(node)

    def visit_Call(self, node: ast.Call) -> Any:
        self.generic_visit(node)
        match node:
            case ast.Call(ast.Name("getattr"), [value, ast.Constant(str(name)), *rest]):
                named = ast.Attribute(value, name, ast.Load())
                return ast.Tuple([named, *rest], ast.Load())
        return node

    def visit_Assign(self, node: ast.Assign) -> Any:
        self.generic_visit(node)
        match node:
            case ast.Assign([ast.Name(id=name)], ast.Constant(None)) if name in self.absent:
                return ast.Pass()  # as in `mask = mask if mask is None else ...`
            case ast.Assign([ast.Name(id=name)], ast.Name(id=other)) if {
                name,
                other,
            } <= self.absent:
                return ast.Pass()
        return node

    def _truth(self, test: ast.expr) -> bool | None:
        """Work out a condition; None where it depends on more."""
        match test:
            case ast.Name(id=name) if name in self.arguments:
                value = self.arguments[name]
                return None if isinstance(value, type) else bool(value)
            case ast.Compare(ast.Name(id=name), [op], [ast.Constant(bool() | None as value)]) if (
                name in self.arguments
            ):
                same = self.arguments[name] is value
                return {ast.Is: same, ast.IsNot: not same}.get(type(op))
            case ast.Call(ast.Name("isinstance"), [ast.Name(id=name), kinds], []) if isinstance(
                kind := self.arguments.get(name), type
            ):
                return self._derives(kind, kinds)
            case ast.Attribute() if (name := self._flag(test)) in self.flags:
                return bool(self.flags[name])
            case ast.Compare(ast.Attribute() as left, [op], [ast.Constant(value)]) if (
                name := self._flag(left)
            ) in self.flags:
                flag = self.flags[name]
                if isinstance(op, ast.Is | ast.IsNot) and value not in (None, True, False):
                    return None
                same = flag is value if isinstance(op, ast.Is | ast.IsNot) else flag == value
                if isinstance(op, ast.Eq | ast.Is):
                    return same
                return not same if isinstance(op, ast.NotEq | ast.IsNot) else None
            case ast.UnaryOp(ast.Not(), operand):
                truth = self._truth(operand)
                return None if truth is None else not truth
            case ast.BoolOp(op, values):
                ends = isinstance(op, ast.Or)  # the value that settles it
                found = [self._truth(value) for value in values]
                return ends if ends in found else None if None in found else not ends
        return None

    def _derives(self, kind: type, kinds: ast.expr) -> bool | None:
        """Tell whether a class derives from those of an expression; None where that is not sure."""
        match kinds:
            case ast.BinOp(one, ast.BitOr(), another):
                return self._derives(kind, ast.Tuple([one, another]))
            case ast.Tuple(several):
                found = [self._derives(kind, one) for one in several]
                return True if True in found else None if None in found else False
            case ast.Name(id=name):
                base = self.outside.get(name, getattr(builtins, name, None))
            case ast.Attribute(ast.Name(id=name), attribute):
                space = self.outside.get(name)
                base = getattr(space, attribute, None) if isinstance(space, ModuleType) else None
            case _:
                return None
        # a metaclass of its own may take other objects for instances, as nn.Parameter's does
        plain = base is Tensor or type(base) in (type, ABCMeta)
        return issubclass(kind, base) if plain else None

    def _flag(self, node: ast.Attribute) -> str:
        """Name an attribute from the module on; empty if it is another object's."""
        name = ast.unparse(node)
        return name.removeprefix(f"{self.own}.") if name.startswith(f"{self.own}.") else ""


def _definition(function: FunctionType) -> ast.FunctionDef | None:
    """Parse a function's source; None without it, as in a closure."""
    try:
        (found,) = ast.parse(textwrap.dedent(inspect.getsource(function))).body
    except (OSError, TypeError, SyntaxError):
        return None
    return found if isinstance(found, ast.FunctionDef) else None


def _calls_by_name(function: FunctionType, name: str) -> list[ast.Call] | None:
    """List the calls of a name in a function; None where it may be used otherwise."""
    definition = _definition(function)
    if definition is None:
        return None
    nodes = list(ast.walk(definition))
    calls = [node for node in nodes if isinstance(node, ast.Call) and _names(node.func, name)]
    return calls if len(calls) == sum(_names(node, name) for node in nodes) else None


def _names(node: ast.AST, name: str) -> bool:
    match node:
        case ast.Name(id=found) | ast.Attribute(attr=found) | ast.Constant(value=found):
            return bool(found == name)
    return False


def _more_arguments(code: CodeType) -> int:
    """Count the arguments with stars."""
    return sum(bool(code.co_flags & flag) for flag in (inspect.CO_VARARGS, inspect.CO_VARKEYWORDS))


def _argument(value: object) -> Argument:
    return value if value is None or isinstance(value, bool) else type(value)


def _alike(some: Mapping[str, Argument], others: Mapping[str, Argument]) -> dict[str, Argument]:
    return {name: some[name] for name in some.keys() & others if some[name] is others[name]}


def _is_flag(value: object) -> bool:
    return value is None or isinstance(value, bool | int | str)


def _assigned(code: CodeType, inside: bool = False) -> Iterator[str]:
    """List the variables that a function assigns, and all those of functions in it."""
    if inside:
        yield from code.co_varnames
    for step in dis.get_instructions(code):
        if step.opname in ("STORE_FAST", "STORE_DEREF", "DELETE_FAST", "DELETE_DEREF"):
            yield str(step.argval)
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _assigned(constant, inside=True)


def _attributes_set(code: CodeType) -> Iterator[str]:
    """List the attributes that code sets or deletes, and those of functions in it."""
    for step in dis.get_instructions(code):
        if step.opname in ("STORE_ATTR", "DELETE_ATTR"):
            yield str(step.argval)
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _attributes_set(constant)


def _has_namesake(definition: ast.FunctionDef, own: str) -> bool:
    """Tell whether a function in it has an argument of that name."""
    return any(
        isinstance(node, ast.arg) and node.arg == own
        for inner in ast.walk(definition)
        if isinstance(inner, ast.FunctionDef | ast.Lambda) and inner is not definition
        for node in ast.walk(inner.args)
    )


def _has_private(definition: ast.FunctionDef) -> bool:
    """Tell whether names stand there that a class changes: `self.__part`."""
    return any(
        isinstance(node, ast.Attribute) and node.attr.startswith("__") and node.attr[-2:] != "__"
        for node in ast.walk(definition)
    )
