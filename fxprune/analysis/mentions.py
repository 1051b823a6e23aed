"""Tell from a module's source whether its code may reach a parameter that no run has used."""

import ast
import copy
import dis
import functools
import inspect
import linecache
import sys
import textwrap
from collections.abc import Iterator, Mapping, Set
from itertools import islice
from types import CellType, CodeType, FrameType, FunctionType
from typing import Any

from torch import Tensor, nn

from fxprune.tracing.code_state import bare, is_users, names_in
from fxprune.tracing.regions import region_of

_LOOKS_UP = frozenset(
    {"getattr", "vars", "__dict__", "_modules", "_parameters", "_buffers", "get_submodule"}
    | {kind + of for kind in ("", "named_") for of in ("children", "modules", "parameters")}
)
"""Names of what finds a part by a name that does not stand in the code."""


class ConstantArguments:
    """Notes, while it is entered, which arguments of modules' methods are the same in each call.

    These are arguments that are None, and options that all code which calls the method writes out
    or leaves to their defaults: `self.proto(x, semantic=False)`. The methods' own code runs
    meanwhile, also where a region stands for it.

    Attributes:
        of: by the id of a module and the code of its method, these arguments by name.
    """

    def __init__(self, module: nn.Module) -> None:
        """Note the calls of the methods of a module and of those in it."""
        self.of: dict[tuple[int, CodeType], dict[str, bool | None]] = {}
        self._parts = list(module.modules())
        kinds = dict.fromkeys(base for part in self._parts for base in type(part).__mro__)
        self._functions = {
            function.__code__: function
            for kind in kinds
            if is_users(kind)
            for value in vars(kind).values()
            if (function := _function(inspect.unwrap(bare(value)))) is not None
        }
        self._called: dict[CodeType, set[str]] = {}
        self._seen: set[CodeType] = set()

    def __enter__(self) -> "ConstantArguments":
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
        if event != "call" or code not in self._functions:
            return
        self._seen.add(code)
        names = code.co_varnames[: code.co_argcount + code.co_kwonlyargcount]
        given = frame.f_locals
        found = {
            name: given[name]
            for name in names
            if name in given
            and (given[name] is None or (type(given[name]) is bool and self._is_plain(frame, name)))
        }
        key = (id(given.get(names[0])) if names else 0), code
        known = self.of.get(key, found)
        self.of[key] = {n: v for n, v in found.items() if n in known and known[n] is v}

    def _is_plain(self, frame: FrameType, name: str) -> bool:
        """Tell whether the call of a method shows an argument; take down how it is called."""
        caller = frame.f_back
        while caller is not None and caller.f_code.co_filename == nn.modules.module.__file__:
            caller = caller.f_back
        call = None if caller is None else _call_at(caller)
        called = None if call is None else _called(call)
        if call is None or called is None:
            return False
        self._called.setdefault(frame.f_code, set()).add(called)
        return all(isinstance(value, ast.Constant) for value in _given(call, frame.f_code, name))

    def always(self, module: nn.Module, function: FunctionType) -> Mapping[str, bool | None]:
        """Return the arguments of a module's method that were the same in each call."""
        found = self.of.get((id(module), function.__code__), {})
        return {
            name: value
            for name, value in found.items()
            if value is None or self._is_everywhere(function, name, value)
        }

    def _is_everywhere(self, function: FunctionType, name: str, value: bool) -> bool:
        """Tell whether all calls that may be of a method give an argument this value."""
        code, default = function.__code__, inspect.signature(function).parameters[name].default
        for call in self._calls:
            called = _called(call)
            named = called in self._called[code]
            given = [keyword.value for keyword in call.keywords if keyword.arg == name]
            if named or called is None:
                given = _given(call, code, name)
            if named and not given and default is not value:
                return False
            if not all(isinstance(v, ast.Constant) and v.value is value for v in given):
                return False
        return True

    def _reachable(self) -> Iterator[FunctionType]:
        """Yield the methods that were called, and those that no other of their name hides."""
        for kind in dict.fromkeys(map(type, self._parts)):
            kept: dict[str, set[str]] = {}  # the names in the code of those of each name
            for base in filter(is_users, kind.__mro__):
                for name, value in vars(base).items():
                    function = _function(inspect.unwrap(bare(value)))
                    if function is None:
                        continue
                    led_to = {"super", base.__name__} & kept.get(name, {"super"})
                    if led_to or function.__code__ in self._seen:
                        kept.setdefault(name, set()).update(names_in(function.__code__))
                        yield function

    @functools.cached_property
    def _calls(self) -> list[ast.Call]:
        """Parse the calls in the methods' code; a method that cannot be read calls anything."""
        found: list[ast.Call] = []
        for function in dict.fromkeys(self._reachable()):
            try:
                parsed = ast.parse(textwrap.dedent(inspect.getsource(function)))
            except (OSError, TypeError, SyntaxError):
                parsed = ast.parse("forward(*any)")
            found += [node for node in ast.walk(parsed) if isinstance(node, ast.Call)]
        return found


def _called(call: ast.Call) -> str | None:
    """Return the name of what is called: `part` of `self.part(x)`."""
    match call.func:
        case ast.Attribute(attr=name) | ast.Name(id=name):
            return name
    return None


def _given(call: ast.Call, code: CodeType, name: str) -> list[ast.expr]:
    """Return what a call gives for an argument of a method, as far as it can be of that method."""
    place = code.co_varnames.index(name)
    if place >= code.co_argcount:
        place = len(call.args) + 1
    found = [keyword.value for keyword in call.keywords if keyword.arg in (name, None)]
    starred = [value for value in call.args[:place] if isinstance(value, ast.Starred)]
    return found + starred + call.args[place - 1 : place]


def _call_at(frame: FrameType) -> ast.Call | None:
    """Parse the call at which a frame stands; None where its source does not show it."""
    place = next(islice(frame.f_code.co_positions(), frame.f_lasti // 2, None), (None,) * 4)
    first, last, begin, end = place
    if first is None or last is None or begin is None or end is None:
        return None
    lines = [line.encode() for line in linecache.getlines(frame.f_code.co_filename)]
    text = lines[first - 1 : last]
    if not text:
        return None
    text[-1] = text[-1][:end]
    text[0] = text[0][begin:]
    try:
        parsed = ast.parse(b"".join(text), mode="eval").body
    except SyntaxError:
        return None
    return parsed if isinstance(parsed, ast.Call) else None


def may_be_reached(module: nn.Module, name: str, constant: ConstantArguments) -> bool:
    """Tell whether code of the modules around a parameter may use it.

    It may not where one of the names on the way to it stands in no code that runs with the
    arguments as they are: `if labels is not None: self.embed(labels)`, without labels.

    Args:
        module: the outermost module.
        name: the parameter's, from there.
        constant: what the modules were given each time.
    """
    part, named, ever_named, all_seen = module, set[str](), set[str](), True
    for step in name.split("."):
        found, seen = _names_around(part, named, constant)
        named |= found
        ever_named |= _names_around(part, ever_named)[0]
        all_seen &= seen
        if step.isidentifier() and step not in named:
            without = step in ever_named  # where another argument is needed
            return not (all_seen or without)
        following = getattr(part, step)
        if not isinstance(following, nn.Module):
            break
        part = following
    return True


def _names_around(
    module: nn.Module, outer: Set[str], constant: ConstantArguments | None = None
) -> tuple[set[str], bool]:
    """Collect the names that stand in a module's code: `forward` and what it calls.

    Args:
        module: the module.
        outer: names in the code of the modules around it, which may call its methods.
        constant: arguments that are the same each time; code that needs others is left out.

    Returns:
        The names, and whether the code can find no part without naming it.
    """
    names: set[str] = set()
    waiting: list[Any] = [type(module).forward]
    waiting += [method for name in outer for method in _methods(module, name)]
    seen = set[Any]()
    all_seen = not (module._forward_hooks or module._forward_pre_hooks)
    while waiting:
        function = waiting.pop()
        if function in seen:
            continue
        seen.add(function)
        given = {} if constant is None else constant.always(module, function)
        code = live_code(function, given) if given else function.__code__
        found = set(names_in(code))
        for name in found - names:
            all_seen &= not _may_hold_code(vars(module).get(name))
            waiting += _methods(module, name)
            waiting += filter(None, [_function(function.__globals__.get(name))])
        cells = (cell.cell_contents for cell in function.__closure__ or () if cell != _EMPTY)
        waiting += filter(None, map(_function, cells))  # what a decorator wraps
        names |= found
    return names, all_seen and not names & _LOOKS_UP


def _methods(module: nn.Module, name: str) -> Iterator[FunctionType]:
    """Yield the methods of a name: a module's own, and those that `super()` leads to."""
    for base in type(module).__mro__:
        method = _function(vars(base).get(name))
        if method is not None:
            yield method


def live_code(function: FunctionType, given: Mapping[str, bool | None]) -> CodeType:
    """Return a function's code without what does not run with these arguments."""
    code = function.__code__
    try:
        (definition,) = ast.parse(textwrap.dedent(inspect.getsource(function))).body
    except (OSError, TypeError, SyntaxError):  # without its source, as in a closure
        return code
    if not isinstance(definition, ast.FunctionDef) or _has_private(definition):
        return code
    definition.decorator_list = []
    while given:
        module = ast.Module([_Live(given).visit(copy.deepcopy(definition))], [])
        try:
            compiled = compile(
                ast.fix_missing_locations(module), code.co_filename, "exec", dont_inherit=True
            )
        except (ValueError, SyntaxError):
            break
        live = next(c for c in compiled.co_consts if isinstance(c, CodeType))
        assigned = given.keys() & set(_assigned(live))
        if not assigned:
            return live
        given = {name: value for name, value in given.items() if name not in assigned}
    return code


class _Live(ast.NodeTransformer):
    """Takes out what needs arguments other than these."""

    def __init__(self, given: Mapping[str, bool | None]) -> None:
        self.given = given

    def visit_If(self, node: ast.If) -> Any:
        truth = self._truth(node.test)
        if truth is None:
            return self.generic_visit(node)
        kept = node.body if truth else node.orelse
        return [self.visit(statement) for statement in kept] or ast.Pass()

    def visit_IfExp(self, node: ast.IfExp) -> Any:
        truth = self._truth(node.test)
        if truth is None:
            return self.generic_visit(node)
        return self.visit(node.body if truth else node.orelse)

    def visit_Assign(self, node: ast.Assign) -> Any:
        self.generic_visit(node)
        match node:
            case ast.Assign([ast.Name(id=name)], ast.Constant(None)) if self._is_none(name):
                return ast.Pass()  # as in `mask = mask if mask is None else ...`
            case ast.Assign([ast.Name(id=name)], ast.Name(id=other)) if self._is_none(
                name
            ) and self._is_none(other):
                return ast.Pass()
        return node

    def _is_none(self, name: str) -> bool:
        return name in self.given and self.given[name] is None

    def _truth(self, test: ast.expr) -> bool | None:
        """Work out a condition; None where it depends on more."""
        match test:
            case ast.Name(id=name) if name in self.given:
                return bool(self.given[name])
            case ast.Compare(ast.Name(id=name), [op], [ast.Constant(None)]) if name in self.given:
                none = self._is_none(name)
                return {ast.Is: none, ast.IsNot: not none}.get(type(op))
            case ast.UnaryOp(ast.Not(), operand):
                truth = self._truth(operand)
                return None if truth is None else not truth
            case ast.BoolOp(op, values):
                ends = isinstance(op, ast.Or)  # the value that settles it
                found = [self._truth(value) for value in values]
                return ends if ends in found else None if None in found else not ends
        return None


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


def _has_private(definition: ast.FunctionDef) -> bool:
    """Tell whether names stand there that a class changes: `self.__part`."""
    return any(
        isinstance(node, ast.Attribute) and node.attr.startswith("__") and node.attr[-2:] != "__"
        for node in ast.walk(definition)
    )


def _function(value: Any) -> FunctionType | None:
    """Return the function that a name stands for, unless it is PyTorch's."""
    value = bare(value)
    own = isinstance(value, FunctionType) and not value.__module__.startswith("torch.")
    return value if own else None


_EMPTY = CellType()


def _may_hold_code(value: Any) -> bool:
    """Tell whether an attribute may lead to a part: lists of functions, modules out of sight."""
    if isinstance(value, (list, tuple, set)):
        return any(map(_may_hold_code, value))
    if isinstance(value, dict):
        return any(map(_may_hold_code, value.values()))
    return value is not None and not isinstance(value, (bool, int, float, str, Tensor))
