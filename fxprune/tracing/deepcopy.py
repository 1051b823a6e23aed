"""Deep copies of modules: what `copy.deepcopy` gives, in a fraction of its time.

A module is some twenty attributes, most of them numbers or empty dictionaries of hooks, which
`copy.deepcopy` takes apart and rebuilds by the general protocol, one by one. It also shares
functions with the original; here a function that holds the module, such as
`self.f = lambda x: self.conv(x)`, becomes one that holds the copy.
"""

import copy
import functools
import gc
import types
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from torch import Tensor, nn

_ATOMS = frozenset({type(None), bool, int, float, str})
_SHARED = (type, types.ModuleType, types.FunctionType, types.CodeType)
"""What `copy.deepcopy` does not copy."""

_VIEWS: dict[Any, Any] = {type(view({})): view for view in (dict.keys, dict.values, dict.items)}
"""What `copy.deepcopy` cannot copy: `self.names = self.layers.keys()`."""


def copied(value: Any, memo: dict[int, Any]) -> Any:
    """Copy a module in depth, or what one has as an attribute.

    Args:
        value: what to copy; other things than modules are fine.
        memo: as that of `copy.deepcopy`.
    """
    clone = _copied(value, memo)
    rebind({key: part for key, part in memo.items() if isinstance(part, nn.Module)})
    return clone


def rebind(clones: Mapping[int, nn.Module]) -> None:
    """Replace functions in the attributes and hooks of copies by ones that hold the copies.

    Args:
        clones: the copies, changed in place, by the ids of the modules that they are copies of.
    """
    led: dict[int, Any] = {**clones}
    for clone in clones.values():
        for name, value in vars(clone).items():
            leads = id(value) in led or (type(value) in _LEADING and value)
            if leads and name not in _OWN_TABLES:
                vars(clone)[name] = _led(value, led)


def lead_to(modules: Iterable[nn.Module], others: Iterable[nn.Module]) -> bool:
    """Tell whether attributes of modules lead to others, that are none of their children."""
    led = {id(other): other for other in others}
    return any(
        _leads(value, led, set())
        for module in modules
        for name, value in vars(module).items()
        if name not in _OWN_TABLES
    )


_OWN_TABLES = frozenset({"_parameters", "_buffers", "_modules"})
_LEADING = frozenset(
    {list, tuple, set, dict, OrderedDict}
    | {types.FunctionType, types.MethodType, functools.partial}
)
"""What may lead from an attribute to the module that has it."""

_EMPTY = types.CellType()


def _parts(value: Any) -> list[Any]:
    """List what a container holds, or what a function has beside its arguments."""
    match value:
        case types.MethodType():
            return [value.__self__]
        case functools.partial():
            return [value.func, value.args, value.keywords]
        case types.FunctionType():
            cells = [cell.cell_contents for cell in value.__closure__ or () if cell != _EMPTY]
            return [*cells, value.__defaults__, value.__kwdefaults__]
        case dict():
            return list(value.values())
    return list(value)


def _leads(value: Any, led: Mapping[int, Any], seen: set[int]) -> bool:
    """Tell whether a value is, or holds at any depth, an object that `led` replaces."""
    if id(value) in led:
        return True
    if type(value) not in _LEADING or id(value) in seen:
        return False
    seen.add(id(value))
    return any(_leads(part, led, seen) for part in _parts(value))


def _led(value: Any, led: dict[int, Any]) -> Any:
    """Copy a value with the objects in it replaced; return the value itself if none is.

    Args:
        value: an attribute, or a part of one.
        led: the replacements by the id of what they replace; the copy is added.
    """
    key = id(value)
    if key in led or not _leads(value, led, set()):
        return led.get(key, value)
    clone: Any
    match value:
        case types.FunctionType():
            cells = [led.setdefault(id(c), types.CellType()) for c in value.__closure__ or ()]
            name, space = value.__name__, value.__globals__
            clone = led[key] = types.FunctionType(value.__code__, space, name, None, tuple(cells))
            clone.__defaults__ = _led(value.__defaults__, led)
            clone.__kwdefaults__ = _led(value.__kwdefaults__, led)
            clone.__qualname__ = value.__qualname__
            vars(clone).update(vars(value))
            for cell, own in zip(cells, value.__closure__ or (), strict=True):
                if own != _EMPTY and cell == _EMPTY:
                    cell.cell_contents = _led(own.cell_contents, led)
        case types.MethodType():
            clone = types.MethodType(value.__func__, _led(value.__self__, led))
        case functools.partial():
            function, given, named = (_led(part, led) for part in _parts(value))
            clone = functools.partial(function, *given, **named)
        case dict():
            clone = led[key] = type(value)()
            clone.update({name: _led(part, led) for name, part in value.items()})
        case list():
            clone = led[key] = []
            clone += [_led(part, led) for part in value]
        case _:
            clone = type(value)(_led(part, led) for part in value)
    return led.setdefault(key, clone)


def _copied(value: Any, memo: dict[int, Any]) -> Any:
    kind = type(value)
    if kind in _ATOMS or (kind is tuple and all(type(part) in _ATOMS for part in value)):
        return value
    if id(value) in memo:
        return memo[id(value)]
    if kind is dict or kind is OrderedDict:
        table = memo[id(value)] = kind()
        for key, part in value.items():
            table[_copied(key, memo)] = _copied(part, memo)
        return table
    if kind is set and all(type(part) in _ATOMS for part in value):
        memo[id(value)] = set(value)
        return memo[id(value)]
    if isinstance(value, nn.Module) and _is_plain(kind):
        clone = memo[id(value)] = object.__new__(kind)
        state: dict[str, Any] = value.__getstate__()  # type: ignore[no-untyped-call]
        clone.__setstate__({name: _copied(part, memo) for name, part in state.items()})
        return clone
    if kind in _VIEWS:
        (table,) = gc.get_referents(value)
        return _VIEWS[kind](_copied(table, memo))
    for tensor in _computed(value):
        memo.setdefault(id(tensor), tensor.detach().clone())
    return copy.deepcopy(value, memo)


def _computed(value: Any) -> Iterator[Tensor]:
    """Yield what a value holds that PyTorch does not copy: tensors that gradients flow through.

    Such are a weight that a hook computed (torch.nn.utils.weight_norm), and features that a
    forward keeps in a list.
    """
    waiting, seen = [value], set[int]()
    while waiting:
        part = waiting.pop()
        if type(part) in _ATOMS or isinstance(part, _SHARED) or id(part) in seen:
            continue
        seen.add(id(part))
        if isinstance(part, Tensor):
            yield from [] if part.is_leaf else [part]
        elif not hasattr(part, "__deepcopy__"):
            waiting += gc.get_referents(part)


def _is_plain(kind: type[nn.Module]) -> bool:
    """Tell whether its modules are copied by their state, as those are that say nothing else."""
    own, default = (kind.__reduce_ex__, kind.__reduce__), (object.__reduce_ex__, object.__reduce__)
    return own == default and not hasattr(kind, "__deepcopy__")
