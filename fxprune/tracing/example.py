"""What the nodes of a growing graph are for the example inputs, worked out on meta tensors."""

from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx.proxy import TraceError
from torch.utils._device import _device_constructors

from fxprune.tracing.data_dependent import really_run
from fxprune.tracing.module import stand_in

_MAKERS = _device_constructors()
"""Functions that make tensors, to which `with torch.device(…)` gives the device.

torch keeps what it finds at the first call, which must not be one within a trace: then some names
of torch are replaced, and torch would take these for all that it has.
"""

_HIDDEN = frozenset(
    {"data_ptr", "grad", "grad_fn", "item", "layout", "requires_grad", "storage", "tolist"}
)
"""What is not asked of a tensor here: it may be another one when the network runs."""

_KINDS = frozenset({"is_complex", "is_floating_point", "is_nested", "is_quantized", "is_sparse"})
"""What a tensor is by its kind, which the example tells."""

DEVICES = {"is_cuda": "cuda", "is_cpu": "cpu", "is_mps": "mps", "is_xla": "xla", "is_meta": ""}
"""Attributes of a tensor, and the device type of which each is true; no input is on meta."""


class Example:
    """What the nodes of a growing graph are for the example inputs, on meta tensors.

    Attributes:
        root: the model that is traced.
        inputs: meta tensors in the order of the placeholders.
        device: where the example inputs are.
    """

    def __init__(
        self, root: nn.Module, inputs: tuple[Any, ...], device: torch.device, after: Any, draws: Any
    ) -> None:
        """Take meta inputs; `after` is called with each module that was run, to clean up.

        `draws` returns the state of what its random numbers are drawn from.
        """
        self.root, self.inputs, self.device = root, inputs, device
        self._after, self._draws = after, draws
        self._values: dict[fx.Node, Any] = {}

    def value(self, node: fx.Node) -> Any:
        """Return the node's value; what raises on meta tensors raises here."""
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
            placeholders = [n for n in node.graph.nodes if n.op == "placeholder"]
            return self.inputs[placeholders.index(node)]
        if node.op == "get_attr":
            path, _, name = str(node.target).rpartition(".")
            owner = self.root.get_submodule(path)
            found = getattr(owner, name)
            constant = isinstance(found, Tensor) and name not in owner._buffers
            own = constant and not isinstance(found, nn.Parameter) and found.dim() == 0
            return found if own else _to_meta(found)
        if node.op == "call_module":
            return self._call(self.root.get_submodule(str(node.target)), args, kwargs)
        target: Any = node.target
        if target is getattr and isinstance(args[0], Tensor):
            if args[1] == "device":
                return self.device
            if args[1] in DEVICES:
                return self.device.type == DEVICES[args[1]]
        asked = args[1] if target is getattr else target
        asked = "" if asked in _KINDS else asked
        if isinstance(asked, str) and (asked in _HIDDEN or asked.startswith(("is_", "get_"))):
            raise TraceError(f"the code branches on, or counts by, {asked} of a tensor")
        if node.op == "call_method":
            if target == "type" and not args[1:] and not kwargs:
                return type_name(args[0], self.device)
            args, kwargs = _on_meta((args, kwargs))
            return getattr(args[0], str(target))(*args[1:], **kwargs)
        if target is not getattr and getattr(target, "__module__", "") != "_operator":
            args, kwargs = _on_meta((args, kwargs))
            if target in _MAKERS:
                kwargs = {**kwargs, "device": "meta"}
        elif any(isinstance(value, Tensor) and value.is_meta for value in args):
            args, _ = _on_meta((args, {}))
        return target(*args, **kwargs)

    def _call(self, module: nn.Module, args: Any, kwargs: Any) -> Any:
        """Run a module on meta tensors, or for real where that needs what is in a tensor."""
        tensors = {**dict(module.named_parameters()), **dict(module.named_buffers())}
        on_meta = {name: stand_in(own, _to_meta(own)) for name, own in tensors.items()}
        args, kwargs = _on_meta((args, kwargs))
        draws = self._draws()
        try:
            return torch.func.functional_call(module, on_meta, args, kwargs)
        except Exception:
            self._after(module)
            return really_run(module, {id(x): x for x in tensors.values()}, args, kwargs)[0]
        finally:
            self._after(module)
            draws.put_back()


def type_name(tensor: Tensor, device: torch.device) -> str:
    """Return what `x.type()` is for a tensor of the same dtype on a device."""
    return torch.empty(0, dtype=tensor.dtype, device=device).type()


def resized(value: Any, batch: int, image: int) -> Any:
    """Return a meta tensor like an input, with a batch and an image so many times as large."""
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


def _on_meta(value: Any) -> Any:
    """Put tensors and devices among arguments on the meta device; scalars keep their value."""
    if isinstance(value, Tensor):
        return value if value.is_meta or value.dim() == 0 else value.to("meta")
    if isinstance(value, torch.device):
        return torch.device("meta")
    if isinstance(value, dict):
        return {
            key: "meta" if key == "device" and isinstance(part, str) else _on_meta(part)
            for key, part in value.items()
        }
    if type(value) in (list, tuple):
        return type(value)(_on_meta(part) for part in value)
    return value
