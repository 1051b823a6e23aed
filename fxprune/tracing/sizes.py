"""Tensors that forward makes of another tensor's sizes, as copies of its form.

`torch.zeros(b, c, h, w)`, `f.new_zeros(f.shape)` and `torch.full(f.shape, v)` hold a number of
channels that is a plain integer; `torch.zeros_like(f)` has the channels of `f` themselves, which
can be followed. Where every size is that of the same dimension of one tensor, or 1, the call
becomes the latter. One that has a size of 1 where the channels are (drop path's draw for each
example, a mask over space) stays: its channel would be the first one of `f`, which then could not
be removed.
"""

import operator
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import fx

_LIKE: Mapping[Any, Any] = {
    torch.empty: torch.empty_like,
    torch.full: torch.full_like,
    torch.ones: torch.ones_like,
    torch.rand: torch.rand_like,
    torch.randn: torch.randn_like,
    torch.zeros: torch.zeros_like,
}
_NEW: Mapping[str, Any] = {
    "new_empty": torch.empty_like,
    "new_full": torch.full_like,
    "new_ones": torch.ones_like,
    "new_zeros": torch.zeros_like,
}
_OPTIONS = frozenset({"dtype", "device", "requires_grad", "pin_memory"})


Rank = Callable[[fx.Node], int | None]
"""Says how many dimensions a node's tensor has, if that is known."""


def follow_sizes(graph: fx.Graph, rank: Rank) -> None:
    """Replace calls that make a tensor of another's sizes by their `*_like` forms, in place."""
    for node in list(graph.nodes):
        if node.op == "call_function" and node.target in _LIKE:
            _replace(node, _LIKE[node.target], list(node.args), None, rank)
        elif node.op == "call_method" and node.target in _NEW:
            _replace(node, _NEW[str(node.target)], list(node.args[1:]), node.args[0], rank)


def _replace(node: fx.Node, like: Any, args: list[Any], self: Any, rank: Rank) -> None:
    graph, options = node.graph, dict(node.kwargs)
    full = like is torch.full_like
    fill = [options.pop("fill_value")] if "fill_value" in options else args[1:2] if full else []
    sizes = options.pop("size", None)
    if sizes is None:
        sizes = args[0] if full or len(args) == 1 else args
    if not options.keys() <= _OPTIONS or (full and isinstance(fill[0], fx.Node)):
        return
    found = _source(sizes, rank)
    if found is None:
        return
    source, ones = found
    if self is None:
        options.setdefault("dtype", _dtype(fill))
    with graph.inserting_before(node):
        if self is not None and self is not source:
            for name in ("dtype", "device"):
                if options.get(name) is None:
                    options[name] = graph.call_function(getattr, (self, name))
        for one in ones:
            index = (*[slice(None)] * one, slice(0, 1))
            source = graph.call_function(operator.getitem, (source, index))
            source.stack_trace = node.stack_trace
        options["memory_format"] = torch.contiguous_format
        new = graph.call_function(like, (source, *fill), options)
    new.stack_trace = node.stack_trace
    node.replace_all_uses_with(new)
    graph.erase_node(node)


def _dtype(fill: list[Any]) -> torch.dtype:
    if fill and isinstance(fill[0], bool):
        return torch.bool
    return torch.int64 if fill and isinstance(fill[0], int) else torch.get_default_dtype()


def _source(sizes: Any, rank: Rank) -> tuple[fx.Node, list[int]] | None:
    """Return the tensor whose sizes these are, and the dimensions that are 1 instead."""
    if isinstance(sizes, fx.Node):
        whole = _shape_of(sizes)
        return None if whole is None else (whole, [])
    if not isinstance(sizes, (list, tuple)):
        return None
    sources, ones = set(), []
    for dim, size in enumerate(sizes):
        if isinstance(size, int) and size == 1:
            ones.append(dim)
            continue
        part = _size_of(size)
        if part is None or part[1] not in (dim, dim - len(sizes)):
            return None
        sources.add(part[0])
    if len(sources) != 1 or rank(source := sources.pop()) != len(sizes):
        return None
    return None if _leaves_out_channels(len(sizes), ones) else (source, ones)


def _leaves_out_channels(dims: int, ones: list[int]) -> bool:
    """Tell whether sizes are of the batch alone, or of all but an image's or volume's channels."""
    return ones == list(range(1, dims)) or (dims >= 4 and ones == [1])


def _shape_of(node: Any) -> fx.Node | None:
    """Return the tensor whose whole shape a node is."""
    if not isinstance(node, fx.Node):
        return None
    shape = node.target is getattr and node.args[1:] == ("shape",)
    size = node.op == "call_method" and node.target == "size" and len(node.args) == 1
    found = node.args[0] if shape or size else None
    return found if isinstance(found, fx.Node) else None


def _size_of(node: Any) -> tuple[fx.Node, int] | None:
    """Return the tensor and the dimension of it whose size a node is."""
    if not isinstance(node, fx.Node):
        return None
    if node.op == "call_method" and node.target == "size" and len(node.args) == 2:
        source, dim = node.args
    elif node.op == "call_function" and node.target is operator.getitem:
        source, dim = _shape_of(node.args[0]), node.args[1]
    else:
        return None
    fits = isinstance(source, fx.Node) and isinstance(dim, int)
    return (source, dim) if fits else None  # type: ignore[return-value]
