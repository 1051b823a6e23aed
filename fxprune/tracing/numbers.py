"""Which nodes stand for numbers and tuples of Python's that are made of sizes, not for tensors."""

from collections.abc import Container

from torch import fx

_METHODS = frozenset({"size", "dim", "numel", "nelement", "ndimension", "stride"})
_ATTRIBUTES = frozenset({"shape", "ndim"})
_MODULES = frozenset({"_operator", "builtins", "math"})


def is_number(node: fx.Node, numbers: Container[fx.Node]) -> bool:
    """Tell whether a new node is made of sizes alone.

    Args:
        node: the node.
        numbers: the nodes before it that are.
    """
    if node.op == "call_method":
        return node.target in _METHODS
    if node.op != "call_function":
        return False
    if node.target is getattr:
        return node.args[1] in _ATTRIBUTES
    given = node.all_input_nodes
    computed = getattr(node.target, "__module__", "") in _MODULES
    return computed and bool(given) and all(n in numbers for n in given)
