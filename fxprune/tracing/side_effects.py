"""What forward does behind torch.fx's back while it is traced.

Symbolic tracing runs forward once, with proxies for tensors, and sees what is called on these. Not
seen are assignments to a module's attributes, the gradients of custom autograd functions, where
gradients are switched off or the precision is another, and random numbers that Python draws.
"""

import contextlib
import linecache
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from functools import cache
from types import FunctionType
from typing import Any

import torch
from torch import fx, nn
from torch.fx.proxy import TraceError

from fxprune.draws import Draws
from fxprune.tracing.attention import attention_followed
from fxprune.tracing.proxies import KnowingProxy, KnowingTracer
from fxprune.tracing.snapshot import Snapshot
from fxprune.tracing.user_questions import INTERNAL


@contextlib.contextmanager
def left_alone(snapshot: Snapshot | None) -> "Iterator[Draws]":
    """Put back what happens meanwhile inside a model, and to random numbers.

    Not put back is what is written into its parameters where no name in the code tells of it;
    torch.fx's constants stay.

    Args:
        snapshot: of the model as it is; None for one that does nothing of the kind.
    """
    draws = Draws()
    try:
        yield draws
    finally:
        draws.put_back()
        if snapshot is not None:
            snapshot.restore()


@contextlib.contextmanager
def seen(tracer: KnowingTracer) -> Iterator[None]:
    """Make nodes of these side effects while the context lasts, random numbers aside.

    A buffer is written in place where forward gives it a new value, so that the traced network
    keeps it as the model does.
    """
    patches = (
        (nn.Module, "__setattr__", _assigned(nn.Module.__setattr__, tracer)),
        (torch.autograd.Function, "apply", _applied(vars(torch.autograd.Function)["apply"])),
        (torch._C, "_set_grad_enabled", _switched(torch._C._set_grad_enabled, tracer)),
        (torch.autocast, "__enter__", _entered(torch.autocast.__enter__, tracer)),
        (torch.autocast, "__exit__", _left(torch.autocast.__exit__, tracer)),
        *attention_followed(tracer),
        *((torch, name, _of_proxies(getattr(torch, name), tracer)) for name in _BY_VALUE),
    )
    plain = [(owner, name, vars(owner)[name]) for owner, name, _ in patches]
    with torch.enable_grad(), _followed(tracer):
        for owner, name, patch in patches:
            setattr(owner, name, patch)
        try:
            yield
        finally:
            for owner, name, before in plain:
                setattr(owner, name, before)


_BY_VALUE = (
    *("tensor", "as_tensor", "finfo", "iinfo"),
    *("arange", "empty", "eye", "full", "linspace", "normal", "ones"),
    *("rand", "randint", "randn", "zeros"),
)
"""Functions of torch that look into their arguments, and so would ask a proxy for its value."""


def _of_proxies(function: Callable[..., Any], tracer: KnowingTracer) -> Callable[..., Any]:
    def called(*args: Any, **kwargs: Any) -> Any:
        if tracer.looking or not _has_proxy((args, kwargs)):
            return function(*args, **kwargs)
        return tracer.create_proxy("call_function", function, args, kwargs)

    return called


def _has_proxy(value: Any) -> bool:
    if isinstance(value, dict):
        return any(map(_has_proxy, value.values()))
    if isinstance(value, (list, tuple)):
        return any(map(_has_proxy, value))
    return isinstance(value, fx.Proxy)


# --- int(), type() and isinstance() ------------------------------------------------------------


class _Stand(type):
    """Makes a class that answers as its base does where code compares or checks types with it."""

    stands_for: type

    def __instancecheck__(cls, instance: object) -> bool:
        return isinstance(instance, cls.stands_for)

    def __subclasscheck__(cls, subclass: type) -> bool:
        return issubclass(subclass, cls.stands_for)

    def __eq__(cls, other: object) -> bool:
        return other is cls.stands_for or other is cls

    def __hash__(cls) -> int:
        return hash(cls.stands_for)

    def __or__(cls, other: Any) -> Any:
        return cls.stands_for | other

    def __getattr__(cls, name: str) -> Any:
        return getattr(cls.stands_for, name)


def _stand(kind: type, of_proxy: Callable[[KnowingProxy], Any]) -> type:
    """Make the class in the place of `int` or `type`: one proxy alone goes to a function."""

    class Stand(metaclass=_Stand):
        stands_for = kind

        def __new__(cls, *args: Any, **kwargs: Any) -> Any:
            if len(args) == 1 and issubclass(type(args[0]), KnowingProxy):
                return of_proxy(args[0])
            return kind(*args, **kwargs)

    return Stand


def _stands(tracer: KnowingTracer) -> dict[str, Any]:
    """Return what stands for the functions of Python's that ask for a type or a number."""

    def is_instance(value: Any, kinds: Any) -> bool:
        proxy = issubclass(type(value), KnowingProxy) and not tracer.looking
        return issubclass(tracer.kind(value), kinds) if proxy else isinstance(value, kinds)

    return {
        "int": _stand(int, tracer.whole),
        "type": _stand(type, tracer.kind),
        "isinstance": is_instance,
    }


@contextlib.contextmanager
def _followed(tracer: KnowingTracer) -> Iterator[None]:
    """Let `int`, `type` and `isinstance` follow proxies in the files of the model's classes."""
    added = [
        (namespace, name, stand)
        for name, stand in _stands(tracer).items()
        for namespace in _namespaces(tracer.modules, name)
        if name not in namespace
    ]
    for namespace, name, stand in added:
        namespace[name] = stand
    try:
        yield
    finally:
        for namespace, name, _ in added:
            del namespace[name]


def _namespaces(modules: Iterable[nn.Module], asked: str) -> list[dict[str, Any]]:
    """Return the globals of these modules' code, and of the functions that it has imported.

    Only those whose code may ask with this function of Python's.
    """
    kinds = {kind for module in modules for kind in type(module).__mro__}
    found: dict[int, dict[str, Any]] = {}
    for name in sorted({kind.__module__ for kind in kinds}):
        for namespace in _near(name, asked):
            found[id(namespace)] = namespace
    return list(found.values())


@cache
def _near(name: str, asked: str) -> tuple[dict[str, Any], ...]:
    own = vars(sys.modules[name]) if name in sys.modules else {}
    functions = [value for value in own.values() if isinstance(value, FunctionType)]
    near = {name, *(function.__module__ for function in functions if function.__module__)}
    found = (_traceable(other, asked) for other in near)
    return tuple(namespace for namespace in found if namespace is not None)


@cache
def _traceable(name: str, asked: str) -> dict[str, Any] | None:
    """Return the globals of a module that may have a function of Python's replaced.

    None for PyTorch's and the like.
    """
    module = sys.modules.get(name)
    path = getattr(module, "__file__", None)
    if path is None or path.startswith(INTERNAL) or name.partition(".")[0] in _LEFT_OUT:
        return None
    source = "".join(linecache.getlines(path))
    tells = rf"\bis (not )?{asked}\b|^\s*class .*\b{asked}\b"  # that it is another class
    used = re.search(rf"\b{asked}\b", source) and not re.search(tells, source, re.MULTILINE)
    return vars(module) if used else None


_LEFT_OUT = frozenset({"numpy", "scipy", *sys.stdlib_module_names}) - {"__main__"}


_NUMBERS = (bool, int, float)


def _assigned(
    assign: Callable[..., None], tracer: KnowingTracer
) -> Callable[[nn.Module, str, Any], None]:
    def written(module: nn.Module, name: str, value: Any) -> None:
        if isinstance(value, fx.Proxy) and name in vars(module)["_buffers"]:
            getattr(module, name).copy_(value)
            return
        if name == "training" and not tracer.looking:
            tracer.branched = True  # what changes nothing in this mode may do so in the other
        own = vars(module).get(name, value)
        numbers = type(own) in _NUMBERS and type(value) in _NUMBERS
        changes = own != value if numbers else isinstance(value, bool) and own is not value
        if changes and not tracer.looking:
            raise TraceError(f"forward changes its attribute {name}, so its next call may differ")
        assign(module, name, value)

    return written


def _applied(apply: Any) -> Any:
    def applied(kind: type[torch.autograd.Function], *args: Any, **kwargs: Any) -> Any:
        proxy = next((value for value in args if isinstance(value, fx.Proxy)), None)
        if proxy is None or kind.__module__.startswith("torch."):  # such as checkpointing
            return apply.__get__(None, kind)(*args, **kwargs)
        return proxy.tracer.create_proxy("call_function", _function(kind), args, kwargs)

    return classmethod(applied)


def _switched(switch: Callable[[bool], None], tracer: KnowingTracer) -> Callable[[bool], None]:
    """Switch gradients on or off; switched back, they are as they were, which a caller decides."""
    before: list[tuple[bool, fx.Proxy]] = []

    def switched(on: bool) -> None:
        was = torch.is_grad_enabled()
        switch(on)
        if tracer.looking or on == was:
            return
        if before and before[-1][0] == on:
            tracer.create_proxy("call_function", switch, (before.pop()[1],), {})
        else:
            asked = tracer.create_proxy("call_function", torch.is_grad_enabled, (), {})
            before.append((was, asked))
            tracer.create_proxy("call_function", switch, (on,), {})

    return switched


def _entered(enter: Callable[..., Any], tracer: KnowingTracer) -> Callable[..., Any]:
    def entered(context: Any) -> Any:
        result = enter(context)
        if not tracer.looking:
            options = context.device, context.fast_dtype, context._enabled, context._cache_enabled
            begin = torch.amp.autocast_mode._enter_autocast
            context.fxprune_proxy = tracer.create_proxy("call_function", begin, options, {})
        return result

    return entered


def _left(leave: Callable[..., Any], tracer: KnowingTracer) -> Callable[..., Any]:
    def left(context: Any, *error: Any) -> Any:
        proxy = vars(context).pop("fxprune_proxy", None)
        if proxy is not None:
            end = torch.amp.autocast_mode._exit_autocast
            tracer.create_proxy("call_function", end, (proxy,), {})
        return leave(context, *error)

    return left


@cache
def _function(kind: type[torch.autograd.Function]) -> Callable[..., Any]:
    """Return a custom function's `apply` as a plain function, as the target of a node has to be."""

    def apply(*args: Any, **kwargs: Any) -> Any:
        return kind.apply(*args, **kwargs)

    apply.__name__ = apply.__qualname__ = kind.__name__
    apply.__module__ = kind.__module__
    return apply
