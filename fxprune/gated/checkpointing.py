"""Checkpointing: training code that recomputes the user's checkpointed parts in backward."""

import copy
import operator
import weakref
from typing import Any

from torch import fx, nn
from torch.utils.checkpoint import checkpoint

from fxprune.tracing.checkpoints import checkpointed_parts
from fxprune.tracing.regions import Code, function_of


def checkpointed(network: nn.Module, graph: fx.Graph) -> Code | None:
    """Compile a graph whose checkpointed parts keep no activations.

    Args:
        network: the module whose graph it is; the code takes it as its first argument.
        graph: it is not changed.

    Returns:
        None where nothing is checkpointed.
    """
    if not any(checkpointed_parts(graph)):
        return None
    outer = copy.deepcopy(graph)
    for number, nodes in enumerate([*checkpointed_parts(outer)]):
        _outline(network, outer, nodes, number)
    return function_of(network, outer)


def _outline(network: nn.Module, outer: fx.Graph, nodes: list[fx.Node], number: int) -> None:
    """Put one call in the place of the nodes of a part."""
    inside = {*nodes}
    inner = fx.Graph()
    inputs: dict[fx.Node, fx.Node] = {}
    for node in nodes:
        for used in node.all_input_nodes:
            if used not in inside and used not in inputs:
                inputs[used] = inner.placeholder(used.name)
    copied = dict(inputs)
    for node in nodes:
        copied[node] = inner.node_copy(node, copied.__getitem__)
    outputs = [node for node in nodes if any(user not in inside for user in node.users)]
    inner.output(tuple(copied[node] for node in outputs))
    with outer.inserting_after(nodes[-1]):
        call = outer.call_function(_call(network, function_of(network, inner), number), (*inputs,))
    with outer.inserting_after(call):
        for at, node in reversed([*enumerate(outputs)]):
            output = outer.call_function(operator.getitem, (call, at))
            node.replace_all_uses_with(output, lambda user: user not in inside)
    for node in reversed(nodes):
        outer.erase_node(node)


def _call(network: nn.Module, code: Code, number: int) -> Code:
    held = weakref.ref(network)

    def part(*inputs: Any) -> Any:
        return checkpoint(code, held(), *inputs, use_reentrant=False)

    part.__name__ = part.__qualname__ = f"checkpointed_{number}"
    return part
