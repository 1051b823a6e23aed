"""Proxies that know what they would be for the example inputs.

Symbolic tracing stops where Python needs a value: `if h % 2:`, `range(x.shape[1])`,
`isinstance(x, Tensor)`, `x.dtype == torch.float16`. Where the value follows from the sizes, the
dtype or the device of the example, it is worked out on meta tensors, only then and only what it
needs. What the trace then relied on is written into the graph as an assertion, so that inputs that
would take another path are refused. A value that depends on the batch, or on what is in a tensor,
stays unknown.
"""

import math
import operator
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, fx, nn
from torch.fx.proxy import TraceError

from fxprune.draws import Draws
from fxprune.equivalence import which_batched
from fxprune.tracing.example import Example, resized
from fxprune.tracing.module import modules_of
from fxprune.tracing.user_questions import users_code_asks

MODE = "training"
"""The target of the nodes that stand for the mode, which all modules share."""

_VALUES = "the code branches on, or counts by, what is in a tensor"


class KnowingTracer(fx.Tracer):
    """A tracer whose proxies know the sizes of the example.

    Attributes:
        modules: the model and all modules in it.
        exact: whether Python is also given numbers that depend on the size of the images. They
            become literals, and the network then takes images of that size only.
        looking: whether an example is looked at: modules really run then, and are not traced.
        modes: the nodes that stand for the mode, one for each time that the code read it.
        refused: an error for each unknown value that Python asked for; where the user's code
            caught one, the trace is wrong.
        spare: nodes that the graph need not have where nothing uses them.
        numbers: nodes that stand for numbers, or tuples of them, which are made of sizes.
        branched: whether the trace is that of evaluation alone, since the code branches on the
            mode.
    """

    proxy_buffer_attributes = True  # else what forward does to them alone is done while tracing

    def __init__(
        self,
        model: nn.Module,
        inputs: tuple[Tensor, ...],
        *,
        exact: bool,
        examples: Sequence[Sequence[Tensor]] = (),
    ) -> None:
        """Take the model and its inputs.

        Args:
            model: the model.
            inputs: tensors, the batch first.
            exact: as the attribute.
            examples: the inputs, those of a larger batch and those of larger images (or none of
                either); left out where the batch is the first dimension and an image the last.
        """
        none: Any = ()  # torch's annotation asks for one module in some versions
        super().__init__(autowrap_modules=none)
        self.exact = exact
        device = inputs[0].device if inputs else torch.device("cpu")
        if examples:
            known = [[resized(x, 1, 1) for x in given or inputs] for given in examples]
        else:
            known = [
                [
                    resized(x, batch if own else 1, image)
                    for x, own in zip(inputs, which_batched(inputs))
                ]
                for batch, image in ((1, 1), (2, 1), (1, 2))
            ]
        self._plain, self._batch, image = (
            Example(model, tuple(tensors), device, self.clean_up, self.draws) for tensors in known
        )
        self._images = [image]  # none once the network has refused images of that size
        self.modules: list[nn.Module] = list(modules_of(model).values())
        self.looking = self.branched = False
        self.refused: list[TraceError] = []
        self.modes: list[fx.Node] = []
        self.spare: list[fx.Node] = []
        self.numbers: set[fx.Node] = set()
        self._asserted: dict[fx.Node, Any] = {}
        tensors = (*model.named_buffers(), *model.named_parameters())
        self._names = {id(tensor): name for name, tensor in reversed(tensors)}
        self._kinds: dict[Any, type] = {name: type(tensor) for name, tensor in tensors}
        self._attributes: dict[str, fx.Proxy] = {}
        self._constants: dict[int, tuple[Tensor, Tensor]] = {}

    def clean_up(self, module: nn.Module) -> None:
        """Put back what a module that was run left in itself."""

    def draws(self) -> Draws:
        """Note the state of what random numbers are drawn from."""
        return Draws()

    def mode(self) -> fx.Proxy:
        """Return a proxy for the mode of the network, where it is traced for both."""
        proxy = self.create_proxy("get_attr", MODE, (), {})
        self.modes.append(proxy.node)
        return proxy

    def proxy(self, node: fx.Node) -> fx.Proxy:
        """Make the proxy of a node."""
        return KnowingProxy(node, self)

    def create_arg(self, a: Any) -> Any:
        """Return the argument of a node that stands for a value."""
        if issubclass(type(a), fx.Proxy):
            return a.node
        if isinstance(a, (torch.Generator, torch.ScriptObject)):
            raise self.refuse("the code hands an object of PyTorch's own to a call")
        if isinstance(a, Tensor) and id(a) not in self._names:
            if isinstance(a, nn.Parameter):
                raise self.refuse("the code makes parameters")
            if self._is_buffer(a):
                # made by `if self.mask is None: self.mask = …`: torch.fx would refer to it by that
                # name, which is gone after the trace; what has no name it keeps as a constant
                a = self._constants.setdefault(id(a), (a, a.detach()))[1]
        return super().create_arg(a.item() if isinstance(a, np.generic) else a)

    def _is_buffer(self, tensor: Tensor) -> bool:
        """Tell whether a module has a tensor as a buffer now."""
        buffers = (vars(module)["_buffers"].values() for module in self.modules)
        return any(tensor is own for each in buffers for own in each)

    def forget_erased(self, erased: set[fx.Node]) -> None:
        """Forget what was known of nodes that are no longer in the graph."""
        self.numbers -= erased
        self.modes = [node for node in self.modes if node not in erased]
        self.spare = [node for node in self.spare if node not in erased]
        self._asserted = {n: v for n, v in self._asserted.items() if n not in erased}
        self._attributes = {n: p for n, p in self._attributes.items() if p.node not in erased}

    def to_bool(self, obj: fx.Proxy) -> bool:
        """Return the truth value for the example inputs, asserted in the graph."""
        if obj.node in self.modes:
            self.branched = True
            return False  # what is traced with a proxy for the mode is the evaluation
        return bool(self.known(obj, free=True))

    def iter(self, obj: fx.Proxy) -> Iterator[Any]:
        """Split a proxy into as many parts as the example has."""
        return iter([obj[index] for index in range(self.length(obj))])  # type: ignore[index]

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict[str, Any]) -> Any:
        """Return what a module's attribute is to its code."""
        del attr, parameter_proxy_cache  # fx looks through all names for each
        if self.looking or not issubclass(type(attr_val), Tensor):
            return attr_val
        name = self._names.get(id(attr_val))
        if name is None:
            return attr_val
        if name not in self._attributes:
            self._attributes[name] = self.create_proxy("get_attr", name, (), {})
        return self._attributes[name]

    def kind(self, proxy: fx.Proxy) -> type:
        """Return the type of the value that a proxy stands for; the proxy's own if unknown."""
        if self.looking:
            return type(proxy)
        if proxy.node.op == "get_attr" and proxy.node.target in self._kinds:
            return self._kinds[proxy.node.target]
        try:
            value = self._value(proxy.node)
        except TraceError:
            return type(proxy)
        return Tensor if isinstance(value, Tensor) else type(value)

    def rank(self, node: fx.Node) -> int | None:
        """Return the number of dimensions of a node's tensor; None where it is not known."""
        tensor = self._tensor(node)
        return None if tensor is None else tensor.dim()

    def is_mask(self, node: fx.Node) -> bool:
        """Tell whether a node's tensor has truth values, as far as that is known."""
        tensor = self._tensor(node)
        return tensor is not None and tensor.dtype in (torch.bool, torch.uint8)

    def refuse(self, why: str) -> TraceError:
        """Record that Python asked for an unknown value; return the error to raise."""
        self.refused.append(error := TraceError(why))
        return error

    def length(self, proxy: fx.Proxy) -> int:
        """Return the length of a tuple, list or tensor, which is the same for all inputs.

        Raises:
            TraceError: the length depends on the input, or the proxy stands for something else.
        """
        found = self._values(proxy.node, (self._plain, self._batch), images=True)
        kinds = (tuple, list, dict, Tensor)
        if not isinstance(found[0], kinds) or len({len(x) for x in found}) > 1:
            raise self.refuse("the code goes through a tensor, or a tuple of unknown length")
        return len(found[0])

    def known(self, proxy: fx.Proxy, *, free: bool = False) -> Any:
        """Return the number that a proxy stands for, asserted in the graph.

        Args:
            proxy: what Python asks for.
            free: whether it may depend on the size of the images.

        Raises:
            TraceError: the number depends on the input.
        """
        if proxy.node in self._asserted:
            return self._asserted[proxy.node]
        images = not (free or self.exact)
        value, *rest = self._values(proxy.node, (self._plain, self._batch), images=images)
        if free and isinstance(value, (tuple, list, dict, str, type(None))):
            value, rest = bool(value), [bool(other) for other in rest]
            proxy = self.create_proxy("call_function", operator.truth, (proxy,), {})
        if not isinstance(value, (int, float)):
            raise self.refuse(_VALUES)
        if any(other != value for other in rest):
            raise self.refuse("the code branches on, or counts by, the size of the batch or image")
        same = self.create_proxy("call_function", operator.eq, (proxy, value), {})
        text = "the network was traced for inputs of another size, for which it does another thing"
        self.create_proxy("call_function", torch._assert, (same, text), {})
        if free is False:
            self._asserted[proxy.node] = value
        return value

    def if_known(self, proxy: fx.Proxy) -> Any:
        """Return the number that a proxy stands for, asserted; the proxy where it is not known."""
        refused = len(self.refused)
        try:
            return self.known(proxy)
        except TraceError:
            del self.refused[refused:]
            return proxy

    def whole(self, proxy: fx.Proxy) -> Any:
        """Return what `int(proxy)` is: the proxy itself where it stands for an integer."""
        try:
            value = self._value(proxy.node)
        except TraceError as error:
            raise self.refuse(str(error)) from error
        if type(value) is int:
            return proxy
        if type(value) is float:
            return self.create_proxy("call_function", math.trunc, (proxy,), {})
        return self.known(proxy)

    def _tensor(self, node: fx.Node) -> Tensor | None:
        """Return what a node's tensor is for the example; None for no tensor, or not known."""
        try:
            value = self._value(node)
        except TraceError:
            return None
        return value if isinstance(value, Tensor) else None

    def _value(self, node: fx.Node) -> Any:
        """Return a node's value for the example, without the trace relying on it."""
        return self._values(node, (self._plain,), asks=False)[0]

    def _values(
        self,
        node: fx.Node,
        examples: tuple[Example, ...],
        *,
        asks: bool = True,
        images: bool = False,
    ) -> list[Any]:
        """Return a node's values for examples.

        Args:
            node: the node.
            examples: for which.
            asks: whether Python asks for them: then the trace relies on the values.
            images: whether to look at larger images too, as long as the network takes them.

        Raises:
            TraceError: they are not known; if Python asks, it is recorded as by `refuse`.
        """
        if asks:
            self.branched |= bool(self.modes)  # the value may depend on it
        before, self.looking = self.looking, True  # what is looked at may be looked at within
        try:
            found = [example.value(node) for example in examples]
            if images and self._images:
                try:
                    found.append(self._images[0].value(node))
                except Exception:  # such as a table of positions: the size is fixed
                    self._images.clear()
            return found
        except Exception as error:
            known = isinstance(error, TraceError)
            why = str(error) if known else _VALUES
            raise (self.refuse(why) if asks else TraceError(why)) from error
        finally:
            self.looking = before


class KnowingProxy(fx.Proxy):
    """A proxy whose value Python may ask for."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") and name.endswith("__"):
            raise AttributeError(name)  # such as the array protocols, which it does not speak
        found = _KnowingAttribute(self, name)
        return self._tracer.if_known(found) if name == "ndim" else found

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "data":  # as of a weight that forward itself keeps small
            self.data.copy_(value)
        else:
            super().__setattr__(name, value)

    @property  # type: ignore[misc]
    def __class__(self) -> type:  # what isinstance looks at, beside the type itself
        return self._tracer.kind(self) if users_code_asks(sys._getframe(1)) else type(self)

    def __array_ufunc__(self, ufunc: Any, method: str, *inputs: Any, **options: Any) -> Any:
        numbers = [self._tracer.known(x) if isinstance(x, KnowingProxy) else x for x in inputs]
        return getattr(ufunc, method)(*numbers, **options)

    def __int__(self) -> int:
        return int(self._tracer.known(self))

    def __index__(self) -> int:
        refused = len(self._tracer.refused)
        try:
            return int(self._tracer.known(self))
        except TraceError:
            del self._tracer.refused[refused:]  # PyTorch asks whether an argument is a number
            raise

    def __float__(self) -> float:
        return float(self._tracer.known(self))

    def __len__(self) -> int:
        return self._tracer.length(self)

    def __setitem__(self, index: Any, value: Any) -> None:
        self._called(operator.setitem, index, value)

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


def _in_place(name: str) -> Callable[[KnowingProxy, Any], fx.Proxy]:
    ours, anew = getattr(operator, f"__i{name}__"), getattr(operator, f"__{name}__")

    def called(proxy: KnowingProxy, other: Any) -> fx.Proxy:
        return proxy._called(anew if proxy.node in proxy._tracer.numbers else ours, other)

    return called


for _name in ("add", "sub", "mul", "truediv", "floordiv", "mod", "pow", "and", "or", "xor"):
    # fx would make them out of place, and what shares the memory would not see them; in the code
    # of a graph `n *= 2` changes n for all that read it, which is wrong of a number
    setattr(KnowingProxy, f"__i{_name}__", _in_place(_name))


class _KnowingAttribute(fx.proxy.Attribute, KnowingProxy):
    """What `proxy.name` gives; a node is made when it is used other than by a call."""
