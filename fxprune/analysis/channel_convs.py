"""Layers that slide along the channels (ECA, local response norm), made to run at any selection.

Neighbours matter to such a layer, and a compact tensor has others than the dense one. So
its input is spread over the dense positions, with zeros where a channel is gone, and what it
returns is gathered back:

    full = x.new_zeros(n, 1, C).index_copy(2, positions, x)
    y = conv(full).index_select(2, positions)

`positions` is a buffer with one entry a channel. In the bank it counts from 0 to C - 1, and its
compact form holds the positions of the channels that execute, like any other buffer's.
"""

from collections.abc import Callable

import torch
from torch import fx, nn
from torch.nn import functional as F

from fxprune.analysis.context import Slide
from fxprune.analysis.labelled import Labelled, Value
from fxprune.tracing.module import TracedModule

POSITIONS = "fxprune_places_"
"""The buffers are the network's own; their names are this and a number."""


def run_at_dense_positions(module: TracedModule, labelled: Labelled) -> bool:
    """Rewrite layers that slide along channels, in place; return whether there are any.

    Args:
        module: the traced network.
        labelled: a run of it.
    """
    device = next((tensor.device for tensor in module.parameters()), None)
    mine = [slide for slide in labelled.context.sliding if _is_rewritable(module, slide.node)]
    ranks = [_rank(labelled, slide.node.args[0]) for slide in mine]  # before nodes are added
    for number, (slide, rank) in enumerate(zip(mine, ranks, strict=True)):
        positions = torch.arange(len(slide.labels), device=device)
        module.register_buffer(f"{POSITIONS}{number}", positions)
        _rewrite(slide, f"{POSITIONS}{number}", rank)
    return bool(mine)


def drop_unused_positions(module: TracedModule, fixed: Callable[[str], bool]) -> bool:
    """Undo `run_at_dense_positions` for pinned channels, in place; return whether any were.

    Args:
        module: the network that was rewritten.
        fixed: whether all channels of a buffer of positions are pinned.
    """
    vain = [
        name for name, _ in module.named_buffers() if name.startswith(POSITIONS) and fixed(name)
    ]
    for name in vain:
        delattr(module, name)
    for graph in module.graphs:
        for index in [node for node in graph.nodes if node.op == "get_attr"]:
            if index.target in vain:
                for user in list(index.users):
                    user.replace_all_uses_with(user.args[-1 if user.target == "index_copy" else 0])
                    graph.erase_node(user)
                graph.erase_node(index)
        if vain:
            graph.eliminate_dead_code(_stays)
    return bool(vain)


def _stays(node: fx.Node) -> bool:
    """Tell whether a node has to stay though nothing uses it: all but what `_rewrite` adds."""
    return node.target not in ("size", "new_zeros")


def _is_rewritable(module: TracedModule, node: fx.Node) -> bool:
    if node.op == "call_module":  # and no leaf, whose convolutions are out of reach
        return isinstance(module.get_submodule(str(node.target)), _LAYERS)
    return node.op == "call_function" and node.target in _FUNCTIONS


_LAYERS = (nn.modules.conv._ConvNd, nn.LocalResponseNorm)
_FUNCTIONS = (F.conv1d, F.conv2d, F.conv3d, F.local_response_norm)


def _rank(labelled: Labelled, node: fx.Node) -> int:
    """Return the number of dimensions of a node's tensor."""
    found = (values.get(node.name) for values in labelled.values)
    return next(len(value.shape) for value in found if isinstance(value, Value))


def _rewrite(slide: Slide, positions: str, rank: int) -> None:
    node, dim, graph = slide.node, slide.dim, slide.node.graph
    x = node.args[0]
    with graph.inserting_before(node):
        index = graph.get_attr(positions)
        sizes = [
            len(slide.labels) if other == dim else graph.call_method("size", (x, other))
            for other in range(rank)
        ]
        zeros = graph.call_method("new_zeros", (x, tuple(sizes)))
        full = graph.call_method("index_copy", (zeros, dim, index, x))
    node.args = (full, *node.args[1:])
    with graph.inserting_after(node):
        gathered = graph.call_method("index_select", (node, dim, index))
    node.replace_all_uses_with(gathered, delete_user_cb=lambda user: user is not gathered)
    for new in (index, *sizes, zeros, full, gathered):
        if isinstance(new, fx.Node):
            new.stack_trace = node.stack_trace
