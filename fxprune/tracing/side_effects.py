"""What forward does behind torch.fx's back while it is traced.

Symbolic tracing runs forward once, with proxies for tensors, and sees what is called on these. Not
seen are assignments to a module's attributes, the gradients of custom autograd functions, where
gradients are switched off or the precision is another, and random numbers that Python draws.
"""

import contextlib
import random
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import fx, nn
from torch.fx.proxy import TraceError

from fxprune.tracing.module import modules_of
from fxprune.tracing.proxies import KnowingTracer

_CONSTANT = "_tensor_constant"
"""So begin the names under which torch.fx keeps tensors of forward's own on the model."""


@contextlib.contextmanager
def left_alone(model: nn.Module) -> "Iterator[Draws]":
    """Puts back what happens meanwhile to the model's attributes, and to random numbers.

    Not put back is what is written into its tensors; torch.fx's constants stay.
    """
    kept = [
        (attributes, dict(attributes))
        for module in modules_of(model).values()
        for attributes in (vars(module), vars(module)["_parameters"], vars(module)["_buffers"])
    ]
    draws = Draws()
    try:
        yield draws
    finally:
        draws.put_back()
        for attributes, values in kept:
            values |= {name: x for name, x in attributes.items() if name.startswith(_CONSTANT)}
            attributes.clear()
            attributes.update(values)


@contextlib.contextmanager
def seen(tracer: KnowingTracer) -> Iterator[None]:
    """While this lasts, what forward does of these becomes nodes, but for random numbers.

    A buffer is written in place where forward gives it a new value, so that the traced network
    keeps it as the model does.
    """
    patches = (
        (nn.Module, "__setattr__", _assigned(nn.Module.__setattr__, tracer)),
        (torch.autograd.Function, "apply", _applied(vars(torch.autograd.Function)["apply"])),
        (torch._C, "_set_grad_enabled", _switched(torch._C._set_grad_enabled, tracer)),
        (torch.autocast, "__enter__", _entered(torch.autocast.__enter__, tracer)),
        (torch.autocast, "__exit__", _left(torch.autocast.__exit__, tracer)),
    )
    plain = [(owner, name, vars(owner)[name]) for owner, name, _ in patches]
    with torch.enable_grad():
        for owner, name, patch in patches:
            setattr(owner, name, patch)
        try:
            yield
        finally:
            for owner, name, before in plain:
                setattr(owner, name, before)


def _assigned(
    assign: Callable[..., None], tracer: KnowingTracer
) -> Callable[[nn.Module, str, Any], None]:
    def written(module: nn.Module, name: str, value: Any) -> None:
        if isinstance(value, fx.Proxy) and name in vars(module)["_buffers"]:
            getattr(module, name).copy_(value)
            return
        flips = isinstance(value, bool) and vars(module).get(name, value) is not value
        if flips and name != "training" and module is not tracer.root:  # the root can be no leaf
            raise TraceError(f"the code does another thing the next time, by its attribute {name}")
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
    """Gradients on or off; switched back, they are as they were, which a caller decides."""
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
    """A custom function's `apply` as a plain function, as the target of a node has to be."""

    def apply(*args: Any, **kwargs: Any) -> Any:
        return kind.apply(*args, **kwargs)

    apply.__name__ = apply.__qualname__ = kind.__name__
    apply.__module__ = kind.__module__
    return apply


class Draws:
    """The state of what random numbers are drawn from, by torch, Python and NumPy."""

    def __init__(self) -> None:
        self._numpy = np.random.get_state()
        self._python = random.getstate()
        self._torch = torch.random.get_rng_state()
        on_gpu: bool = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
        self._cuda = torch.cuda.get_rng_state_all() if on_gpu else []

    def __eq__(self, other: object) -> bool:
        assert isinstance(other, Draws)
        return (
            self._python == other._python
            and torch.equal(self._torch, other._torch)
            and all(map(torch.equal, self._cuda, other._cuda))
            and all(map(np.array_equal, self._numpy, other._numpy))
        )

    def put_back(self) -> None:
        """Makes the random numbers that follow those that would have followed then."""
        random.setstate(self._python)
        torch.random.set_rng_state(self._torch)
        if self._cuda:
            torch.cuda.set_rng_state_all(self._cuda)
        np.random.set_state(self._numpy)
