"""Tensors that forward makes, and then writes to: each call has to make new ones.

torch.fx keeps such a tensor, as that of `total = torch.zeros(1)`, as a constant of the graph. After
`total += x.mean()` the next call would go on from there.
"""

from functools import partial
from operator import is_not

from torch import Tensor, fx, nn
from torch.fx.proxy import TraceError

from fxprune.tracing.snapshot import CONSTANT, Snapshot, memory_of


def renew(graph: fx.Graph, model: nn.Module, before: Snapshot) -> None:
    """Let a graph copy, in each call, the constants that it writes to.

    Args:
        graph: what was traced; it is changed.
        model: on which torch.fx has left the constants.
        before: of the model, before it was traced: what it has noted was not made by forward.

    Raises:
        TraceError: one of them was there before, or shares its memory with another.
    """
    constants: dict[str, list[fx.Node]] = {}
    for node in graph.find_nodes(op="get_attr"):
        if str(node.target).startswith(CONSTANT):
            constants.setdefault(str(node.target), []).append(node)
    if not constants:
        return
    written = {str(node.target) for node in _written(graph)}
    for name in [name for name in constants if name in written]:
        value: Tensor = getattr(model, name)
        if before.knows(value):
            raise TraceError("forward writes to a tensor that it keeps for its next call")
        others = (getattr(model, other) for other in constants if other != name)
        if any(memory_of(other) == memory_of(value) for other in others):
            raise TraceError("forward writes to a tensor that it has made, and to parts of it")
        first, *again = constants[name]
        with graph.inserting_after(first):
            new = graph.call_method("clone", (first,))
        new.stack_trace = first.stack_trace
        first.replace_all_uses_with(new, delete_user_cb=partial(is_not, new))
        for node in again:
            node.replace_all_uses_with(new)
            graph.erase_node(node)


def _written(graph: fx.Graph) -> set[fx.Node]:
    """Return the nodes that a graph writes to, and what they may be a part of."""
    found: set[fx.Node] = set()
    for node in graph.nodes:
        given = node.kwargs.get("out")
        targets = [*given] if isinstance(given, (list, tuple)) else [given]
        if _may_be_in_place(node):
            targets += node.args[:1]
        for target in targets:
            while isinstance(target, fx.Node) and target not in found:
                found.add(target)
                target = next(iter(target.args), None)  # as of a slice
    return found


def _may_be_in_place(node: fx.Node) -> bool:
    """Tell whether a call may write to its first argument; a copy too many does no harm."""
    if node.op not in ("call_function", "call_method"):
        return node.op == "call_module"
    name = str(getattr(node.target, "__name__", node.target))
    if name.startswith("__") or getattr(node.target, "__module__", "") == "_operator":
        return name.strip("_").startswith(("set", "i"))  # as of `setitem` and `iadd`
    return name.endswith("_") or "inplace" in node.kwargs
