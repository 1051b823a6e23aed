"""What shares memory with what, and where that would change with the widths.

What is written in place shows in every tensor that shares the memory. As a rule these are the same
at all widths; there are two exceptions, which matter only where something is written afterwards:

* `contiguous`, `reshape` and their like copy only what does not lie in memory as it has to. With a
  single channel left it may well do, and then they copy nothing. `copy_always` gives them a copy.
* A slice of every n-th position is a view. What is left of such positions has no fixed step, so
  that it becomes a copy in a narrow network. These channels are pinned.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor, fx, nn

from fxprune.analysis.context import Notebook
from fxprune.rules.base import tensors_in
from fxprune.tracing.module import TracedModule
from fxprune.tracing.snapshot import memory_of

aten = torch.ops.aten


class Aliasing:
    """Watches the calls of a run.

    Attributes:
        copies: the nodes whose copy matters, and that may make none at other widths.
    """

    def __init__(self, context: Notebook, module: nn.Module) -> None:
        """Watch a run of a module; `context` takes the pins."""
        self.context, self.module = context, module
        self.copies: list[fx.Node] = []
        self._stepped: dict[int, list[tuple[Tensor, int]]] = defaultdict(list)
        # the copies are held, too: their memory would become another tensor's
        self._copied: dict[int, list[tuple[fx.Node, Tensor, Tensor]]] = defaultdict(list)
        self._makers: dict[int, fx.Node] = {}

    def see(self, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any], out: Any) -> None:
        """Take note of a call and its result."""
        if func is aten.slice.Tensor:
            if len(args) > 4 and args[4] != 1:
                self._stepped[memory_of(args[0])].append((args[0], args[1]))
        elif func is aten.clone.default or func is aten._to_copy.default:
            source, node = args[0], self.context.node
            perhaps = "memory_format" in kwargs and node.target not in ("clone", torch.clone)
            perhaps = perhaps and out.dtype == source.dtype  # x.clone() always copies
            perhaps = perhaps and not self._is_inner(source, node)
            if perhaps and self.context.of(source):
                for tensor in (source, out):
                    self._copied[memory_of(tensor)].append((node, source, out))
        else:
            for tensor in written(func, args, kwargs):
                self.context.overwrite(tensor)
                self._write(memory_of(tensor))
        given = {memory_of(tensor) for tensor in tensors_in((*args, *kwargs.values()))}
        for memory in {memory_of(tensor) for tensor in tensors_in((out,))} - given:
            self._makers[memory] = self.context.node

    def _is_inner(self, tensor: Tensor, node: fx.Node) -> bool:
        """Tell whether one function of torch has made a tensor for itself, as rms_norm does."""
        made_here = self._makers.get(memory_of(tensor)) is node
        return made_here and node.op in ("call_function", "call_method")

    def _write(self, memory: int) -> None:
        context = self.context
        for source, dim in self._stepped.pop(memory, ()):
            labels = context.along(source, dim)
            if labels is not None:
                context.pin(labels, "a slice of every n-th of them is written in place")
        for node, source, _ in self._copied.pop(memory, ()):
            if self._is_plain(node):
                self.copies.append(node)
            else:
                context.pin_all([source], "a copy of them, written in place, may become none")

    def _is_plain(self, node: fx.Node) -> bool:
        """Tell whether a node only copies where a copy is needed."""
        if node.op == "call_module":
            return isinstance(self.module.get_submodule(str(node.target)), nn.Flatten)
        return bool(node.args) and node.target in _PLAIN


def copy_always(module: TracedModule, nodes: Iterable[fx.Node]) -> bool:
    """Give nodes a copy of what they read, in place; return whether there are any.

    Args:
        module: the traced network.
        nodes: those of `Aliasing.copies`.
    """
    names = {node.name for node in nodes}
    for graph in module.graphs:
        for node in [node for node in graph.nodes if node.name in names]:
            kept: dict[str, Any] = {"memory_format": torch.contiguous_format}
            with graph.inserting_before(node):
                clone = graph.call_method("clone", (node.args[0],), kept)
            clone.stack_trace = node.stack_trace
            node.args = (clone, *node.args[1:])
    return bool(names)


_PLAIN = ("contiguous", "reshape", "reshape_as", "flatten", "to", torch.reshape, torch.flatten)


def written(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> list[Tensor]:
    """List the tensors that a call writes to: in place, or as its `out=`."""
    places = _written(func)
    given = [args[index] for index, _ in places if index < len(args)]
    return tensors_in((*given, *(kwargs[name] for _, name in places if name in kwargs)))


@cache
def _written(func: Any) -> tuple[tuple[int, str], ...]:
    """Tell which arguments of an op it writes to, by their places and their names."""
    named = enumerate(func._schema.arguments)
    return tuple(
        (index, argument.name)
        for index, argument in named
        if argument.alias_info is not None and argument.alias_info.is_write
    )
