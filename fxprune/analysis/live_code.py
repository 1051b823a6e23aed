"""Leave out of a function's code what does not run with given arguments and flags."""

import ast
import builtins
import copy
import dis
import inspect
import textwrap
from abc import ABCMeta
from collections.abc import Iterator, Mapping
from types import CodeType, FunctionType, ModuleType
from typing import Any

from torch import Tensor

from fxprune.tracing.code_state import names_in

Flag = bool | int | str | None
Argument = bool | type | None
"""What an argument is in each call: None, True or False, or anything else of a class."""


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
    definition = definition_of(function)
    if definition is None or _has_private(definition):
        return code
    definition.decorator_list = []
    own = code.co_varnames[0] if flags and code.co_argcount else ""
    if own in assigned(code) or _has_namesake(definition, own):
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
        changed = set(assigned(found))
        if changed.isdisjoint(arguments):
            return found
        arguments = {name: arguments[name] for name in arguments.keys() - changed}


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


def definition_of(function: FunctionType) -> ast.FunctionDef | None:
    """Parse a function's source; None without it, as in a closure."""
    try:
        (found,) = ast.parse(textwrap.dedent(inspect.getsource(function.__code__))).body
    except (OSError, TypeError, SyntaxError, ValueError):  # or several statements in a line
        return None
    return found if isinstance(found, ast.FunctionDef) else None


def assigned(code: CodeType, inside: bool = False) -> Iterator[str]:
    """List the variables that a function assigns, and all those of functions in it."""
    if inside:
        yield from code.co_varnames
    for step in dis.get_instructions(code):
        if step.opname in ("STORE_FAST", "STORE_DEREF", "DELETE_FAST", "DELETE_DEREF"):
            yield str(step.argval)
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from assigned(constant, inside=True)


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
