"""Records: what each node of a network keeps of its dense run, so that it can be resized."""

import operator
from typing import Any

from torch import fx

from fxprune.analysis.labelled import Value
from fxprune.analysis.solve import Solution
from fxprune.channels.records import KEY, Number, Record, Shape


def write_records(solved: Solution) -> None:
    """Give every node its Record, in place of what an earlier solution wrote."""
    for graph, values in zip(solved.module.all_graphs, solved.labelled.values, strict=True):
        for node in graph.nodes:
            old = node.meta.get(KEY)
            target = old.target if old else node.target
            args = old.args if old else fx.map_arg(node.args, _given)
            kwargs = old.kwargs if old else dict(fx.map_arg(node.kwargs, _given))
            shapes = _shapes(solved, values.get(node.name))
            later = solved.labelled.repeated.get(node.name, ())
            if not all(_are_alike(shapes, _shapes(solved, value)) for value in later):
                shapes = None  # what is right for one call of a region is not for another
            result = _numbers(node, shapes)
            node.meta[KEY] = Record(result, target, args, kwargs)


def _numbers(node: fx.Node, result: Any) -> Any:
    """Note what the numbers in a node's result come from."""
    if isinstance(result, Number):
        sources = [n for source in node.all_input_nodes for n in _sources(node, source)]
        follows, free = (any(getattr(s, k) for s in sources) for k in ("follows", "free"))
        return Number(result.value, follows, free)
    if isinstance(result, tuple) and result and isinstance(result[0], Number):
        shape = node.all_input_nodes[0].meta[KEY].result if node.all_input_nodes else None
        if isinstance(shape, Shape) and len(shape.sizes) == len(result):
            return tuple(_size_of(shape, dim) for dim in range(len(result)))
        return tuple(_numbers(node, part) for part in result)
    return result


def _sources(node: fx.Node, source: fx.Node) -> list[Number]:
    """Return the numbers that a node computes its own from."""
    known = source.meta[KEY].result
    which = node.args[1] if len(node.args) > 1 else None
    if isinstance(known, Shape):
        if node.target == "size" and isinstance(which, int):
            return [_size_of(known, which)]
        return [_size_of(known, dim) for dim in range(len(known.sizes))]
    if isinstance(known, tuple) and node.target is operator.getitem and isinstance(which, int):
        known = known[which]
    return [
        part
        for part in (known if isinstance(known, tuple) else (known,))
        if isinstance(part, Number)
    ]


def _shapes(solved: Solution, value: Any) -> Any:
    if isinstance(value, Value):
        axes = {f.dim: axis for f in value.families if (axis := solved.axis(f.labels))}
        return Shape(value.shape, axes)
    if isinstance(value, dict):
        return {key: _shapes(solved, part) for key, part in value.items()}
    if isinstance(value, tuple):
        return tuple(_shapes(solved, part) for part in value)
    return Number(value) if isinstance(value, (int, float)) else None


def _are_alike(one: Any, other: Any) -> bool:
    """Tell whether tensors follow the widths in the same way."""
    if isinstance(one, Shape) and isinstance(other, Shape):
        return len(one.sizes) == len(other.sizes) and all(
            one.axes.get(dim) is other.axes.get(dim)
            and (dim not in one.axes or one.sizes[dim] == other.sizes[dim])
            for dim in range(len(one.sizes))
        )
    if isinstance(one, tuple) and isinstance(other, tuple):
        return len(one) == len(other) and all(map(_are_alike, one, other))
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(_are_alike(one[k], other[k]) for k in one)
    return type(one) is type(other)


def _given(node: fx.Node) -> Any:
    """Return what a Record keeps of an argument that another node gives."""
    result = node.meta[KEY].result
    return result if isinstance(result, Number) and result.follows and not result.free else None


def _size_of(shape: Shape, dim: int) -> Number:
    dim %= len(shape.sizes)
    return Number(shape.sizes[dim], dim in shape.axes, dim not in shape.axes)
