"""What forward does behind torch.fx's back while it is traced.

Symbolic tracing runs forward once, with proxies for tensors, and sees what is called on these. Not
seen are assignments to a module's attributes, the gradients of custom autograd functions, and
random numbers that Python draws to branch by.
"""

import contextlib
import random
import sys
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

import torch
from torch import fx, nn

from fxprune.traced import modules_of


@contextlib.contextmanager
def seen(model: nn.Module) -> Iterator[None]:
    """While this lasts, assignments to buffers and custom gradients of proxies become nodes.

    A buffer is written in place where forward gives it a new value, so that the traced network
    keeps it as the model does. The model's attributes, and the random numbers that come next, are
    put back afterwards.
    """
    kept = [
        (attributes, dict(attributes))
        for module in modules_of(model).values()
        for attributes in (vars(module), vars(module)["_parameters"], vars(module)["_buffers"])
    ]
    draws = Draws()
    assign, apply = nn.Module.__setattr__, torch.autograd.Function.__dict__["apply"]
    nn.Module.__setattr__ = _assigned(assign)  # type: ignore[assignment]
    torch.autograd.Function.apply = _applied(apply)
    try:
        yield
    finally:
        nn.Module.__setattr__ = assign  # type: ignore[method-assign]
        torch.autograd.Function.apply = apply
        draws.put_back()
        for attributes, before in kept:
            attributes.clear()
            attributes.update(before)


def _assigned(assign: Callable[..., None]) -> Callable[[nn.Module, str, Any], None]:
    def written(module: nn.Module, name: str, value: Any) -> None:
        if isinstance(value, fx.Proxy) and name in vars(module)["_buffers"]:
            getattr(module, name).copy_(value)
        else:
            assign(module, name, value)

    return written


def _applied(apply: Any) -> Any:
    def applied(kind: type[torch.autograd.Function], *args: Any, **kwargs: Any) -> Any:
        proxy = next((value for value in args if isinstance(value, fx.Proxy)), None)
        if proxy is None or kind.__module__.startswith("torch."):  # such as checkpointing
            return apply.__get__(None, kind)(*args, **kwargs)
        return proxy.tracer.create_proxy("call_function", _function(kind), args, kwargs)

    return classmethod(applied)


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
        numpy = sys.modules.get("numpy")
        self._numpy = None if numpy is None else numpy.random.get_state()
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
            and str(self._numpy) == str(other._numpy)
        )

    def put_back(self) -> None:
        """Makes the random numbers that follow those that would have followed then."""
        random.setstate(self._python)
        torch.random.set_rng_state(self._torch)
        if self._cuda:
            torch.cuda.set_rng_state_all(self._cuda)
        if self._numpy is not None:
            sys.modules["numpy"].random.set_state(self._numpy)
