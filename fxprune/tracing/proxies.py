"""Proxies that know what they would be for the example inputs.

Symbolic tracing stops where Python needs a value: `if h % 2:`, `range(x.shape[1])`,
`math.ceil(w / 4)`. Where the value follows from the sizes of the example, it is worked out on
meta tensors, only then and only what it needs. What the trace then relied on is written into the
graph as an assertion, so that inputs of another size that would take another path are refused.
Not known is a value that depends on the batch, on what is in a tensor, or on its dtype or device.
"""

import math
import operator
from collections.abc import Callable, Iterator
from typing import Any, cast

import torch
from torch import Tensor, fx, nn
from torch.fx.proxy import TraceError

_HIDDEN = ("device", "dtype", "grad", "item", "layout", "requires_grad", "stride", "tolist")
"""What is not asked of a tensor here: it may be another one when the network runs."""

MODE = "training"
"""The target of the nodes that stand for the mode, which all modules share."""

_VALUES = "the code branches on, or counts by, what is in a tensor"


class Example:
    """What the nodes of a growing graph are for the example inputs, on meta tensors.

    Attributes:
        root: the model that is traced.
        inputs: meta tensors, or defaults, in the order of the placeholders.
    """

    def __init__(self, root: nn.Module, inputs: tuple[Any, ...]) -> None:
        self.root, self.inputs = root, inputs
        self._values: dict[fx.Node, Any] = {}

    def value(self, node: fx.Node) -> Any:
        """The node's value; what raises on meta tensors raises here."""
        waiting = [node]
        while waiting:  # no recursion: graphs are deep
            last = waiting[-1]
            missing = [n for n in last.all_input_nodes if n not in self._values]
            if missing:
                waiting += missing
            elif waiting.pop() not in self._values:
                self._values[last] = self._run(last)
        return self._values[node]

    @torch.no_grad()
    def _run(self, node: fx.Node) -> Any:
        args: Any = fx.map_arg(node.args, self._values.__getitem__)
        kwargs: Any = fx.map_arg(node.kwargs, self._values.__getitem__)
        if node.op == "placeholder":
            places = [n for n in node.graph.nodes if n.op == "placeholder"]
            return self.inputs[places.index(node)]
        if node.op == "get_attr":
            found: Any = self.root
            for part in str(node.target).split("."):
                found = getattr(found, part)
            return _to_meta(found)
        if node.op == "call_module":
            module = self.root.get_submodule(str(node.target))
            tensors = {**dict(module.named_parameters()), **dict(module.named_buffers())}
            lent = {name: _to_meta(tensor) for name, tensor in tensors.items()}
            return torch.func.functional_call(module, lent, args, kwargs)
        asked = args[1] if node.target is getattr else node.target
        if isinstance(asked, str) and (asked in _HIDDEN or asked.startswith(("is_", "get_"))):
            raise TraceError(f"the code branches on, or counts by, {asked} of a tensor")
        if node.op == "call_method":
            return getattr(args[0], str(node.target))(*args[1:], **kwargs)
        return node.target(*args, **kwargs)  # type: ignore[operator]


class KnowingTracer(fx.Tracer):
    """A tracer whose proxies know the sizes of the example.

    Attributes:
        exact: whether Python may also have numbers that depend on the size of the images. They
            become literals, and the network then takes images of that size only.
        looking: whether an example is looked at: modules really run then, and are not traced.
        modes: the nodes that stand for the mode, one for each time that the code read it.
        branched: whether the trace is that of the evaluation alone, since Python asked for the
            mode.
    """

    proxy_buffer_attributes = True  # else what forward does to them alone is done while tracing

    def __init__(self, model: nn.Module, inputs: tuple[Any, ...], *, exact: bool) -> None:
        none: Any = ()  # torch's annotation asks for one module in some versions
        super().__init__(autowrap_modules=none)
        self.exact = exact
        plain, batch, image = (
            Example(model, tuple(_resized(x, *times) for x in inputs))
            for times in ((1, 1), (2, 1), (1, 2))
        )
        self._plain, self._batch, self._image = plain, batch, image
        self.looking = self.branched = False
        self.modes: list[fx.Node] = []

    def mode(self) -> fx.Proxy:
        """A proxy for the mode of the network, where it is traced for both."""
        proxy = self.create_proxy("get_attr", MODE, (), {})
        self.modes.append(proxy.node)
        return proxy

    def proxy(self, node: fx.Node) -> fx.Proxy:
        """Makes the proxy of a node."""
        return KnowingProxy(node, self)

    def to_bool(self, obj: fx.Proxy) -> bool:
        """Which way the example goes."""
        if obj.node in self.modes:
            self.branched = True
            return False  # what is traced with a proxy for the mode is the evaluation
        return bool(self.known(obj, free=True))

    def iter(self, obj: fx.Proxy) -> Iterator[Any]:
        """As many parts as the example has."""
        return iter([obj[place] for place in range(self.length(obj))])  # type: ignore[index]

    def call_module(
        self, m: nn.Module, forward: Callable[..., Any], args: Any, kwargs: dict[str, Any]
    ) -> Any:
        """Traces a module, or runs it while an example is looked at."""
        if self.looking:
            return forward(*args, **kwargs)
        return super().call_module(m, forward, args, kwargs)

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict[str, Any]) -> Any:
        """What a module's attribute is to its code."""
        if self.looking:
            return attr_val
        return super().getattr(attr, attr_val, parameter_proxy_cache)

    def length(self, proxy: fx.Proxy) -> int:
        """The length of a tuple or list, which is the same for all inputs.

        Raises:
            TraceError: it is not known.
        """
        found = self._values(proxy, (self._plain, self._batch, self._image))
        if not isinstance(found[0], (tuple, list)) or len({len(x) for x in found}) > 1:
            raise TraceError("the code goes through a tensor, or a tuple of unknown length")
        return len(found[0])

    def known(self, proxy: fx.Proxy, *, free: bool = False) -> Any:
        """The number that a proxy stands for, asserted in the graph.

        Args:
            proxy: what Python asks for.
            free: whether it may depend on the size of the images.

        Raises:
            TraceError: it is not known.
        """
        others = (self._batch,) if free or self.exact else (self._batch, self._image)
        value, *rest = self._values(proxy, (self._plain, *others))
        if not isinstance(value, (int, float)):
            raise TraceError(_VALUES)
        if any(other != value for other in rest):
            raise TraceError("the code branches on, or counts by, the size of the batch or image")
        same = self.create_proxy("call_function", operator.eq, (proxy, value), {})
        text = "the network was traced for inputs of another size, for which it does another thing"
        self.create_proxy("call_function", torch._assert, (same, text), {})
        return value

    def _values(self, proxy: fx.Proxy, examples: tuple[Example, ...]) -> list[Any]:
        self.looking = True
        self.branched |= bool(self.modes)  # the value may depend on it
        try:
            return [example.value(proxy.node) for example in examples]
        except Exception as error:
            known = isinstance(error, TraceError)
            raise TraceError(str(error) if known else _VALUES) from error
        finally:
            self.looking = False


class KnowingProxy(fx.Proxy):
    """A proxy whose value Python may ask for."""

    def __getattr__(self, name: str) -> fx.proxy.Attribute:
        return _KnowingAttribute(self, name)

    def __int__(self) -> int:
        return int(self._tracer.known(self))

    def __index__(self) -> int:
        return int(self._tracer.known(self))

    def __float__(self) -> float:
        return float(self._tracer.known(self))

    def __len__(self) -> int:
        return self._tracer.length(self)

    def __setitem__(self, place: Any, value: Any) -> None:
        self._called(operator.setitem, place, value)

    def __ceil__(self) -> fx.Proxy:
        return self._called(math.ceil)

    def __floor__(self) -> fx.Proxy:
        return self._called(math.floor)

    def __trunc__(self) -> fx.Proxy:
        return self._called(math.trunc)

    def __round__(self, digits: int | None = None) -> fx.Proxy:
        return self._called(round, digits)

    @property
    def _tracer(self) -> KnowingTracer:
        return cast(KnowingTracer, self.tracer)

    def _called(self, function: Callable[..., Any], *args: Any) -> fx.Proxy:
        return self.tracer.create_proxy("call_function", function, (self, *args), {})


def _in_place(function: Callable[..., Any]) -> Callable[[KnowingProxy, Any], fx.Proxy]:
    return lambda proxy, other: proxy._called(function, other)


for _name in ("add", "sub", "mul", "truediv", "floordiv", "mod", "pow", "and", "or", "xor"):
    # fx would make them out of place, and what shares the memory would not see them
    setattr(KnowingProxy, f"__i{_name}__", _in_place(getattr(operator, f"i{_name}")))


class _KnowingAttribute(fx.proxy.Attribute, KnowingProxy):
    """What `proxy.name` gives; a node is made when it is used other than by a call."""


def _resized(value: Any, batch: int, image: int) -> Any:
    """A meta tensor like an input, with a batch and an image so many times as large."""
    if not isinstance(value, Tensor):
        return value
    times = (batch, 1) if value.dim() > 2 else (batch,)
    sizes = [
        size * factor
        for size, factor in zip(value.shape, (*times, *[image] * value.dim()), strict=False)
    ]
    return torch.empty(sizes, dtype=value.dtype, device="meta")


def _to_meta(value: Any) -> Any:
    return value.to("meta") if isinstance(value, Tensor) else value
