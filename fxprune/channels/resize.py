"""Resizing: set the sizes that are written into a network to those of other widths.

There are three kinds of them: attributes of modules, literals in calls, and numbers that the code
computes from widths (`view(n, heads, c // heads)`), which become literals. How the sizes of a
single op follow the widths is written in `fxprune/rules` (see `fxprune.channels.sizes`). All sizes
are computed from those of the dense run, so that a network can be resized again and again.
"""

from collections.abc import Hashable, Iterable, Mapping
from typing import Any

import torch
from torch import fx, nn

from fxprune.channels.graph import ChannelGraph, Widths
from fxprune.channels.records import KEY, Number, Record, Shape
from fxprune.channels.sizes import CallSizes, ModuleSizes, Sizes, plain
from fxprune.registry import instances
from fxprune.tracing.module import TracedModule, modules_of, tensors_of


def resize(module: TracedModule, channels: ChannelGraph, widths: Widths) -> None:
    """Set all sizes that are written into `module` to those of other widths, in place.

    The caller exchanges the parameters, and calls `recompile`, without which the module runs the
    code of its old graph.
    """
    nodes = (node for graph in module.all_graphs for node in graph.nodes)
    resize_parts(module, modules_of(module).items(), nodes, channels, widths)
    for region in module.regions.values():
        region.recompile()


def resize_parts(
    module: TracedModule,
    modules: Iterable[tuple[str, nn.Module]],
    nodes: Iterable[fx.Node],
    channels: ChannelGraph,
    widths: Widths,
) -> None:
    """Set the sizes in the given modules and nodes of `module`; else as `resize`."""
    numbers = []
    parameters, buffers = tensors_of(module)
    names = {id(tensor): name for name, tensor in (parameters | buffers).items()}
    known, calls = _modules(), _calls()
    for path, child in modules:
        # found anew: each fx.GraphModule has a class of its own, which a cache would keep
        attributes = next((rule for kind, rule in known.items() if isinstance(child, kind)), None)
        if attributes is not None:
            attributes(child, Sizes(path, child, names, channels, widths))
    for node in nodes:
        record = node.meta.get(KEY)
        if record is None:
            continue
        computed = record.is_computed
        rule = calls.get(record.target) if node.op in ("call_method", "call_function") else None
        if rule is not None and (computed or _follows(node)):
            rule(node, record, widths)
        elif computed and record.target is torch._assert:
            _assertion(node, record)
        elif computed:
            _other(node, record)
        if computed and isinstance(record.result, Number):
            numbers.append(node)
    for node in reversed(numbers):  # what is left of `(c // heads) ** -0.5` may divide by zero
        if not node.users:
            node.args = tuple(map(_dense_numbers, node.meta[KEY].args, node.args))


def _follows(node: fx.Node) -> bool:
    """Tell whether the node's tensors, or those it reads, have axes that follow the widths."""
    records = [n.meta[KEY] for n in (node, *node.all_input_nodes) if KEY in n.meta]
    return any(shape.axes for record in records for shape in _shapes(record.result))


def _shapes(result: Any) -> list[Shape]:
    if isinstance(result, Shape):
        return [result]
    if isinstance(result, dict):
        result = tuple(result.values())
    if isinstance(result, tuple):
        return [shape for part in result for shape in _shapes(part)]
    return []


def _other(node: fx.Node, record: Record) -> None:
    """Leave numbers that are no sizes (`x / c ** 0.5`) as they are in the dense network."""
    if isinstance(record.result, Shape):
        pairs = zip(record.args, node.args, strict=True)
        node.args = tuple(_dense_numbers(dense, now) for dense, now in pairs)
        node.kwargs = {
            name: _dense_numbers(record.kwargs[name], now) for name, now in node.kwargs.items()
        }


def _dense_numbers(dense: Any, now: Any) -> Any:
    """Return an argument as it is now, with the dense value of each number that follows widths."""
    if isinstance(dense, Number):
        return plain(dense)
    if isinstance(dense, (list, tuple)) and isinstance(now, (list, tuple)):
        parts = [_dense_numbers(*pair) for pair in zip(dense, now, strict=True)]
        return parts if isinstance(now, list) else tuple(parts)
    return now


def _assertion(node: fx.Node, record: Record) -> None:
    """Replace the condition of an assertion by True: it held for the dense widths."""
    if isinstance(record.args[0], Number):
        node.args = (True, *node.args[1:])


def _calls() -> Mapping[Hashable, CallSizes]:
    """Map each function, or name of a method, to the rule for its literal sizes."""
    return instances("fxprune.rules", CallSizes)  # type: ignore[type-abstract]


def _modules() -> Mapping[Any, ModuleSizes]:
    """Map each module class to the rule for the sizes in its attributes."""
    return instances("fxprune.rules", ModuleSizes)  # type: ignore[type-abstract]
