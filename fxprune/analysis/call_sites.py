"""Find the calls of a function in the source of another."""

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from types import CodeType, FunctionType, ModuleType
from typing import Any

from fxprune.analysis.reached_code import code_of
from fxprune.tracing.code_state import names_in

_LOOKS_UP = {"getattr", "attrgetter", "methodcaller"}


@dataclass(frozen=True)
class Uses:
    """How code may call a function.

    Attributes:
        methods: attributes that it is.
        parts: attributes that are modules with which it runs.
        runs: whether it runs with a module.
        loose: whether any variable may be such a module.
    """

    methods: frozenset[str] = frozenset()
    parts: frozenset[str] = frozenset()
    runs: bool = False
    loose: bool = False


class CallSites(ast.NodeVisitor):
    """Collects the calls of a function in the source of another, its caller.

    Attributes:
        found: calls, and by how many positions their arguments may be ahead of the function's: by
            one where a call gives no module, as `self.part(x)` of `forward(self, x)`.
        others: whether it may be called otherwise: it is handed on, as in `map(self.part, xs)`.
    """

    def __init__(self, caller: FunctionType, function: FunctionType, uses: Uses) -> None:
        """Read the names in the caller.

        Args:
            caller: what may call the function.
            function: the function.
            uses: how the caller may call it, beside through a variable.
        """
        code = caller.__code__
        self.uses = uses
        self.own = code.co_varnames[0] if code.co_argcount else ""
        self._local = _variables(code)
        cells = zip(code.co_freevars, caller.__closure__ or (), strict=False)
        names = set(names_in(code))
        self._variables = {name for name, cell in cells if _holds(cell, function)}
        self._variables |= {n for n in names if _leads_to(caller.__globals__.get(n), function)}
        attributes, texts = uses.methods | uses.parts, set(texts_in(code))
        self.is_named = bool(self._variables or attributes & (names | texts))
        self.is_looked_up = bool(attributes & texts and names & _LOOKS_UP)
        self.found: list[tuple[ast.Call, tuple[int, ...]]] = []
        self.others = False
        self._apart = False

    @property
    def is_possible(self) -> bool:
        """Whether the caller may call the function at all, by the names in it."""
        return self.is_named or self.uses.loose or bool(self.uses.runs and self.own)

    def collect(self, definition: ast.FunctionDef, *, apart: bool) -> None:
        """Collect the calls.

        Args:
            definition: the caller's source.
            apart: whether no object has both of them as methods.
        """
        self._apart = apart
        for statement in definition.body:
            self.visit(statement)

    def visit_Call(self, node: ast.Call) -> None:
        """Note a call, and what is handed to it."""
        offsets = self._offsets(node.func)
        if offsets:
            self.found.append((node, offsets))
        match node.func:
            case ast.Attribute(value):
                self._visit_holder(value)
            case ast.Name():
                pass
            case _:
                self.visit(node.func)
        for given in (*node.args, *node.keywords):
            self.visit(given)

    def visit_Attribute(self, node: ast.Attribute) -> None:
        """Note where a method or a part is read, and not called."""
        if isinstance(node.ctx, ast.Load) and not self._is_anothers(node):
            self.others |= node.attr in self.uses.methods | self.uses.parts
        self._visit_holder(node.value)

    def visit_Name(self, node: ast.Name) -> None:
        """Note where a variable that may be the function is read, and not called."""
        self.others |= isinstance(node.ctx, ast.Load) and node.id in self._variables

    def _visit_holder(self, value: ast.expr) -> None:
        """Read what has an attribute: in `self.part.weight` the part is not handed on."""
        if isinstance(value, ast.Attribute) and value.attr not in self.uses.methods:
            self._visit_holder(value.value)
        else:
            self.visit(value)

    def _offsets(self, called: ast.expr) -> tuple[int, ...]:
        """Return by how many positions the arguments of a call may be ahead; () if it is none."""
        match called:
            case ast.Attribute(value, name) if name in self.uses.methods | self.uses.parts:
                if self._is_anothers(called):
                    return ()
                return (1,) if _is_own(value, self.own) else (0, 1)
            case ast.Name(id=name) if name in self._variables:
                return (0,)
            case ast.Name(id=name):
                own = self.uses.runs and name == self.own
                return (1,) if own or (self.uses.loose and name in self._local) else ()
            case ast.Attribute():
                return ()
        return (1,) if self.uses.loose else ()

    def _is_anothers(self, node: ast.Attribute) -> bool:
        """Tell whether a method of this name is that of another class, as in `super().run`."""
        own = not isinstance(node.value, ast.Attribute) and _is_own(node.value, self.own)
        return self._apart and node.attr in self.uses.methods and own


def texts_in(constant: Any) -> Iterator[str]:
    """Yield the texts that stand in code."""
    if isinstance(constant, str):
        yield constant
    parts = constant.co_consts if isinstance(constant, CodeType) else constant
    if isinstance(parts, (tuple, frozenset)):
        for part in parts:
            yield from texts_in(part)


def name_of(value: ast.AST) -> str | None:
    """Return the name of a variable, None if an expression is none."""
    return value.id if isinstance(value, ast.Name) else None


def _is_own(value: ast.expr, own: str) -> bool:
    """Tell whether an expression begins with the module itself, or with `super()`."""
    while isinstance(value, ast.Attribute):
        value = value.value
    if isinstance(value, ast.Call):
        return name_of(value.func) == "super"
    return name_of(value) == own != ""


def _variables(code: CodeType) -> set[str]:
    """Collect the variables of a function and of functions in it."""
    inner = (_variables(part) for part in code.co_consts if isinstance(part, CodeType))
    return {*code.co_varnames, *code.co_cellvars, *code.co_freevars}.union(*inner)


def _leads_to(value: Any, function: FunctionType) -> bool:
    """Tell whether a variable is a function, or a table of functions with it."""
    return not isinstance(value, (type, ModuleType)) and function in code_of(value)


def _holds(cell: Any, function: FunctionType) -> bool:
    try:
        return _leads_to(cell.cell_contents, function)
    except ValueError:  # it is empty
        return False
