"""Trees of tensors with dataclasses and mappings of the user's own in them.

To `torch.utils._pytree` an object of a class that it does not know is a leaf. `opened` puts an
`_Object`, which it knows, in the place of each one that holds tensors; `closed` makes the objects
again.
"""

import copy
import dataclasses
import gc
import types
from collections import UserDict
from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor, nn
from torch.utils import _pytree as pytree

from fxprune.equivalence import parts

Path = tuple[Any, ...]


def flatten(value: Any) -> tuple[list[tuple[Path, Any]], pytree.TreeSpec]:
    """List a tree's leaves with the path to each, and return its form."""
    return pytree.tree_flatten_with_path(opened(value))


def unflatten(leaves: Iterable[Any], form: pytree.TreeSpec) -> Any:
    """Make a tree of its leaves and its form, objects of the user's classes included."""
    return closed(pytree.tree_unflatten(leaves, form))


def holds_tensors(value: Any) -> bool:
    """Tell whether a tree has a tensor among its leaves."""
    return any(isinstance(leaf, Tensor) for leaf in pytree.tree_leaves(opened(value)))


_NO_HOLDERS = (
    *(type, types.ModuleType, types.FunctionType, types.BuiltinFunctionType, types.CodeType),
    nn.Module,
)
"""What does not hold the tensors that it leads to."""


def held(value: Any, kind: type) -> list[Any]:
    """List what a value holds of a kind, in containers and in objects of any class, in order."""
    found, waiting, seen = list[Any](), [value], dict[int, Any]()
    while waiting:
        part = waiting.pop()
        if id(part) in seen or isinstance(part, _NO_HOLDERS):
            continue
        seen[id(part)] = part
        if isinstance(part, kind):
            found.append(part)
        else:
            waiting += reversed(gc.get_referents(part))
    return found


@dataclasses.dataclass(frozen=True)
class _Form:
    """What an object is made of, beside the values of its parts.

    Attributes:
        kind: its class.
        names: of its parts.
        example: the object that was opened, which `remade` copies.
    """

    kind: type
    names: tuple[Any, ...]
    example: Any = dataclasses.field(compare=False, repr=False)


@dataclasses.dataclass(frozen=True)
class _Object:
    """A node of the tree in the place of an object: its parts, in the order of the form's names."""

    form: _Form
    parts: list[Any]


pytree.register_pytree_node(
    _Object,
    lambda opened: (opened.parts, opened.form),
    lambda parts, form: _Object(form, list(parts)),
    flatten_with_keys_fn=lambda opened: (
        [(pytree.MappingKey(n), p) for n, p in zip(opened.form.names, opened.parts, strict=True)],
        opened.form,
    ),
)


def opened(value: Any) -> Any:
    """Return a copy of a tree with an `_Object` in the place of each object that holds tensors."""
    if type(value) in pytree.SUPPORTED_NODES:
        leaves, form = pytree.tree_flatten(value, is_leaf=lambda part: part is not value)
        return pytree.tree_unflatten(map(opened, leaves), form)
    entries = dataclasses.is_dataclass(value) or isinstance(value, (dict, UserDict))
    known = parts(value) if entries and not isinstance(value, type) else None
    if known is None:
        return value
    inner = [opened(part) for part in known.values()]
    if not holds_tensors(inner):
        return value  # an option, which is compared as a whole
    return _Object(_Form(type(value), tuple(known), value), inner)


def closed(tree: Any) -> Any:
    """Undo `opened`: make each object again of its parts."""

    def made(part: Any) -> Any:
        if not isinstance(part, _Object):
            return part
        inner = map(closed, part.parts)
        return remade(part.form.example, dict(zip(part.form.names, inner, strict=True)))

    return pytree.tree_map(made, tree, is_leaf=lambda part: isinstance(part, _Object))


def remade(value: Any, changed: Mapping[Any, Any]) -> Any:
    """Copy a dataclass's object or a mapping, with `changed` parts by name.

    A mapping may have its parts as attributes as well, as ModelOutput of transformers does.
    """
    before = parts(value)
    assert before is not None
    known = {id(part): changed[name] for name, part in before.items()}
    clone = copy.copy(value)
    for name, part in changed.items():
        if isinstance(clone, dict):
            dict.__setitem__(clone, name, part)
        elif isinstance(clone, UserDict):
            clone.data[name] = part
    for name, part in vars(value).items() if hasattr(value, "__dict__") else ():
        if id(part) in known:
            object.__setattr__(clone, name, known[id(part)])
    return clone
