"""What a network computes apart from its tensors: its operations in order, and their options."""

import copy
import hashlib
import inspect
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import fx, nn

from fxprune.channels.records import KEY, Number
from fxprune.channels.resize import resize_parts
from fxprune.gated.module import GatedModule

_IN_TRAINING = ("p", "dropout", "momentum", "inplace")
"""Options of PyTorch's layers that change nothing in evaluation mode."""

_FORM = "2:"
"""How the text below is made; another form says another text of the same network."""


def operations(gated: GatedModule) -> str:
    """Identify what a network computes in evaluation mode, at any widths and with any weights.

    Whole numbers are those of the dense network, since lengths follow the widths.
    """
    digest = hashlib.sha256()
    _, evaluation = gated.both_graphs
    numbers = {node: number for number, node in enumerate(evaluation.nodes)}
    layers = _dense_layers(gated, evaluation)
    for node in evaluation.nodes:
        inputs = [numbers[before] for before in node.all_input_nodes]
        digest.update(f"{node.op} {inputs} {_described(node, layers)}\n".encode())
    return _FORM + digest.hexdigest()[:16]


def computes_something_else(recorded: str | None, gated: GatedModule) -> bool:
    """Tell whether the recorded operations are of another network; False if there are none."""
    return recorded is not None and recorded.startswith(_FORM) and recorded != operations(gated)


def _dense_layers(gated: GatedModule, graph: fx.Graph) -> Mapping[str, nn.Module]:
    """Copy the layers that a graph calls, with the sizes of the dense network."""
    paths = {str(node.target) for node in graph.nodes if node.op == "call_module"}
    layers = {path: copy.copy(gated.get_submodule(path)) for path in paths}
    resize_parts(gated, layers.items(), (), gated.channels, gated.channels.layout.sizes)
    return layers


def _described(node: fx.Node, layers: Mapping[str, nn.Module]) -> tuple[object, ...]:
    """Describe what a node computes: its function with literals, or its layer with options."""
    if node.op == "call_module":
        layer = layers[str(node.target)]
        return type(layer).__qualname__, dict(_options(layer))
    if node.op not in ("call_function", "call_method"):
        return ()
    dense = node.meta.get(KEY, node)
    name = getattr(node.target, "__qualname__", node.target)
    return name, _literals(dense.args), _literals(dense.kwargs)


def _options(layer: nn.Module) -> Iterator[tuple[str, object]]:
    """Yield the options of a layer of PyTorch's, or of one that derives from it, by their names.

    Those at their default are left out: a later PyTorch may have more of them.
    """
    bases = (base for base in type(layer).__mro__ if base is not nn.Module)
    base = next((b for b in bases if b.__module__.startswith("torch.nn.modules.")), None)
    if base is None:
        return
    for name, parameter in inspect.signature(base).parameters.items():
        value = _literals(vars(layer).get(name, parameter.default))
        if name not in _IN_TRAINING and value != _literals(parameter.default):
            yield name, value


def _literals(value: Any) -> object:
    """Return the literals in an argument, in their places; None for what is no literal."""
    if isinstance(value, Number):
        return value.value
    if isinstance(value, (list, tuple)):
        return [_literals(part) for part in value]
    if isinstance(value, dict):
        return {key: _literals(part) for key, part in value.items()}
    if isinstance(value, slice):
        return [_literals(part) for part in (value.start, value.stop, value.step)]
    return value if isinstance(value, (bool, int, float, str, torch.dtype)) else None
