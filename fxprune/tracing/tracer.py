"""The tracer: it follows modules as far as it can, and notes the user's line on every node.

Where it cannot follow a module, it goes back to before its call and makes a leaf of it.
"""

import contextlib
import functools
import linecache
import operator
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import fx, nn
from torch.fx.proxy import Scope, ScopeContextManager

from fxprune.draws import Draws
from fxprune.tracing.checkpoints import Checkpoints
from fxprune.tracing.deepcopy import lead_to
from fxprune.tracing.module import keeps_code, modules_of
from fxprune.tracing.numbers import is_number
from fxprune.tracing.objects import held
from fxprune.tracing.own_children import Examples
from fxprune.tracing.proxies import KnowingTracer
from fxprune.tracing.signature import CallCodeGen, Signature, pack
from fxprune.tracing.snapshot import Snapshot
from fxprune.tracing.user_questions import INTERNAL

_NOT_THE_USERS = (
    *INTERNAL,
    f"{Path(torch.__file__).parents[1] / 'torchvision' / 'ops'}/",
    *(str(made.__file__) for made in (contextlib, functools)),  # call what they decorate
)

_VALUES = frozenset(
    made
    for name in ("nonzero", "argwhere", "unique", "unique_consecutive", "masked_select", "bincount")
    for made in (name, getattr(torch, name))
) | {"item", "tolist"}
"""Calls whose result, or its size, depends on what is in a tensor."""

_FOLLOWED = (
    *(nn.DataParallel, nn.Unflatten, nn.MultiheadAttention, nn.Transformer),
    *(nn.TransformerEncoder, nn.TransformerEncoderLayer),
    *(nn.TransformerDecoder, nn.TransformerDecoderLayer),
)
"""PyTorch's modules that are traced through."""

_TRACING = fx.Tracer.trace.__code__
"""The frame in which the user's code is called."""

DRAWS = "the code draws random numbers and does by them what the trace would do every time"


@dataclass(frozen=True)
class Subject:
    """A module that is traced.

    Attributes:
        model: the module.
        signature: how it is called, with its example inputs.
        snapshot: the module as it was, to be put back.
        keeping: a class whose modules keep their code; None for no other than have to.
        examples: of a child, further calls that its graphs must fit.
    """

    model: nn.Module
    signature: Signature
    snapshot: Snapshot
    keeping: type[nn.Module] | None
    examples: Examples = ()


class _Again(Exception):  # noqa: N818
    """The trace has to begin again, without proxies for the mode."""


class Tracer(KnowingTracer):
    """Notes the user's line of every node, and makes leaves of modules it cannot follow.

    A `wary` one stops at code that draws random numbers in Python: a graph would have the same ones
    in every call.

    Attributes:
        leaves: the modules that keep their code, by name, with what stopped the trace there.
    """

    def __init__(self, subject: Subject, *, exact: bool, wary: bool) -> None:
        inputs, examples = subject.signature.inputs, subject.examples
        super().__init__(subject.model, inputs, exact=exact, examples=examples)
        self.subject, self.wary = subject, wary
        self.leaves: dict[str, Exception] = {}
        self.codegen: CallCodeGen | None = None
        self.checkpoints = Checkpoints()

    def draws(self) -> Draws:
        """Return where the random numbers stand, those of the model's own generators too."""
        return Draws(self.subject.snapshot.generators)

    def clean_up(self, module: nn.Module) -> None:
        """Put a module back as it was before the trace."""
        self.subject.snapshot.restore_parts(modules_of(module).values())

    def create_args_for_root(
        self, root_fn: Any, is_module: bool, concrete_args: Any = None
    ) -> tuple[Any, list[Any]]:
        """Make a placeholder for each tensor, and a function of them that calls the model."""
        del is_module, concrete_args
        signature, model = self.subject.signature, self.root
        placeholders = []
        for name in signature.names:
            proxy = self.create_proxy("placeholder", name, (), {})
            proxy.node.type = signature.annotation(name)
            placeholders.append(proxy)

        @functools.wraps(root_fn)
        def called(*tensors: Any) -> Any:
            args, kwargs = signature.unflatten(tensors)
            with _buffers_kept(self.modules):
                result = model(*args, **kwargs)
            plain, output = pack(result)
            if len(held(result, fx.Proxy)) > len(held(plain, fx.Proxy)):
                raise self.refuse("the code returns objects that hold tensors")
            if output is not None or not signature.is_plain:
                self.codegen = CallCodeGen(signature, output)
            return plain

        return called, placeholders

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """Tell whether a module stays whole, without a try to follow it."""
        # its sizes are literals, which can be rewritten only where they stand in the graph
        followed = isinstance(m, _FOLLOWED) or hasattr(m, "_orig_mod")  # torch.compile's wrapper
        own = super().is_leaf_module(m, module_qualified_name) and not followed
        return own or type(m) is self.subject.keeping

    def call_module(
        self, m: nn.Module, forward: Callable[..., Any], args: Any, kwargs: dict[str, Any]
    ) -> Any:
        """Follow a module, or make a leaf of it where that is not possible."""
        assert self.submodule_paths is not None
        path = self.submodule_paths.get(m)
        if self.looking or not path:  # the model itself, or a module that its forward has made
            return forward(*args, **kwargs)
        with ScopeContextManager(self.scope, Scope(path, type(m))):
            if self.is_leaf_module(m, path):
                self._require_whole(m)
                return self.create_proxy("call_module", path, args, kwargs)
            followed = _buffers_kept([m])(forward)
            result, error = self._followed(functools.partial(followed, *args, **kwargs))
            if error is None:
                return result
            self.clean_up(m)
            self._require_whole(m)
            self.leaves[path] = error
            return self.create_proxy("call_module", path, args, kwargs)

    def _require_whole(self, m: nn.Module) -> None:
        """Stop at a leaf whose code reaches others of the model's modules, as `[self.head]` does.

        What calls both of them keeps its code: the leaf's copies would not know the others' copies.
        """
        inside = {id(part): part for part in modules_of(m).values()}
        outside = [part for part in self.modules if id(part) not in inside]
        if keeps_code(m) and lead_to(inside.values(), outside):
            raise fx.proxy.TraceError("the code reaches modules that are not inside it")

    def wrapped(self, function: Callable[..., Any], plain: Callable[..., Any]) -> Any:
        """Return what is called for a function that the user's code keeps from torch.fx.

        One that takes weights may hold their sizes, and is followed if that is possible.

        Args:
            function: the function, named to `torch.fx.wrap`.
            plain: makes a node of its calls.
        """

        @functools.wraps(function)
        def called(*args: Any, **kwargs: Any) -> Any:
            given = (*args, *kwargs.values())
            weights = any(isinstance(x, fx.Proxy) and x.node.op == "get_attr" for x in given)
            if weights and not self.looking:
                result, error = self._followed(functools.partial(function, *args, **kwargs))
                if error is None:
                    return result
            return plain(*args, **kwargs)

        return called

    def _followed(self, call: Callable[[], Any]) -> tuple[Any, Exception | None]:
        """Return what code returns; or go back to before it, and return what stopped the trace."""
        mark = self.graph._root._prev
        before = self.draws() if self.wary else None
        refused = len(self.refused)
        try:
            result = call()
            if len(self.refused) > refused:
                raise self.refused[-1]  # which the code has caught
            if before is not None and self.draws() != before:
                raise fx.proxy.TraceError(DRAWS)
            return result, None
        except _Again:
            raise
        except Exception as error:
            if before is not None:
                before.put_back()
            self._undo(mark)
            del self.refused[refused:]
            return None, error

    def _undo(self, mark: fx.Node) -> None:
        """Take out the nodes that were made since."""
        erased = set()
        while (node := self.graph._root._prev) is not mark:
            self.graph.erase_node(node)
            erased.add(node)
        if erased.intersection(self.modes):
            raise _Again  # what its code could not work with may have been the mode's proxy
        self.forget_erased(erased)

    def create_node(self, *args: Any, **kwargs: Any) -> fx.Node:
        """Make a node with the user's line; refuse what depends on the values of a tensor."""
        node = super().create_node(*args, **kwargs)
        called = node.op in ("call_function", "call_method")
        if called and self._asks_for_values(node):
            raise self.refuse("the code asks for what is in a tensor")
        if is_number(node, self.numbers):
            self.numbers.add(node)
        if node.op not in ("placeholder", "output"):
            node.stack_trace = _user_frame()
            self.checkpoints.mark(node, sys._getframe(1))
        return node

    def _asks_for_values(self, node: fx.Node) -> bool:
        """Tell whether a result, or its size, depends on what is in a tensor, as of `x[mask]`."""
        if node.target is torch.where:
            return len(node.args) + len(node.kwargs) == 1  # where the condition holds
        if node.target in ("repeat_interleave", torch.repeat_interleave):
            repeats = node.kwargs.get("repeats", node.args[-1])
            plain = not isinstance(repeats, fx.Node) or repeats in self.numbers
            return not plain and "output_size" not in node.kwargs
        if node.target is not operator.getitem:
            return node.target in _VALUES
        index = node.args[1] if isinstance(node.args[1], tuple) else (node.args[1],)
        return any(isinstance(part, fx.Node) and self.is_mask(part) for part in index)


@contextlib.contextmanager
def _buffers_kept(modules: Iterable[nn.Module]) -> Iterator[None]:
    """Stop where code has put another tensor in the place of a buffer, for its next call."""
    before = [(own, dict(own)) for own in (vars(module)["_buffers"] for module in modules) if own]
    yield
    for own, kept in before:
        if any(value is not None and own.get(name) is not value for name, value in kept.items()):
            raise fx.proxy.TraceError("the code puts another tensor in the place of its buffer")


@contextlib.contextmanager
def wrapped_by(tracer: Tracer) -> Iterator[None]:
    """Let the tracer decide on the functions that `torch.fx.wrap` was given, while this lasts."""
    fx_own: Any = fx._symbolic_trace
    plain = fx_own._create_wrapped_func
    fx_own._create_wrapped_func = lambda function: tracer.wrapped(function, plain(function))
    try:
        yield
    finally:
        fx_own._create_wrapped_func = plain


def _user_frame() -> str | None:
    """Return the innermost frame of the model's own code, in the form of a traceback."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and frame.f_code is not _TRACING:
        path = frame.f_code.co_filename
        if not path.startswith((*_NOT_THE_USERS, "<")):
            code = linecache.getline(path, frame.f_lineno).strip()
            return f'File "{path}", line {frame.f_lineno}, in {frame.f_code.co_name}\n    {code}'
        frame = frame.f_back
    return None
