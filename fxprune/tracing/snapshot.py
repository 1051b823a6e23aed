"""Puts a model back as it was, in depth: what its forward left in it while it was traced.

A forward may fill attributes, caches in dicts, lists and sets, the hook tables of modules, objects
of its own classes, and what its code keeps outside of the model. All of them are noted before and
put back after; buffers and other tensors that were written in place get their values back. So do
parameters, where the code names what may write to them behind torch.fx's back, as the averages of
a teacher do: `for p in self.teacher.parameters(): p.data.mul_(0.99)`.
"""

import contextlib
import functools
import types
from collections import OrderedDict, defaultdict, deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.parameter import is_lazy

from fxprune.draws import OwnDraws, is_generator
from fxprune.tracing.code_state import CodeState, is_users, names_in, read, write
from fxprune.tracing.module import TracedModule, has_leaves, modules_of

_ATOMS = frozenset({type(None), bool, int, float, complex, str, bytes, type(...)})
_CONTAINERS = (dict, list, set, deque)
_PLAIN = frozenset({*_CONTAINERS, tuple, OrderedDict, defaultdict})
_CODE = (type, types.FunctionType, types.MethodType, functools.partial)
_FOREIGN = (
    types.ModuleType,
    types.BuiltinFunctionType,
    fx.Graph,
    fx.Node,
    fx.Proxy,
)
"""Objects that are not looked into: what they hold is not the model's."""

_WRITERS = frozenset({"data", "parameters", "named_parameters", "_parameters", "state_dict"})
"""Names in code that may write to tensors, other than through a proxy, unseen by their version."""

CONSTANT = "_tensor_constant"
"""So begin the names under which torch.fx keeps tensors of forward's own on the model."""


class Snapshot:
    """What all containers in a model hold, for each module of it.

    Attributes:
        writes: whether the code may write to parameters without a change of their version.
        generators: what the code draws random numbers from, other than everyone's.
    """

    def __init__(self, model: nn.Module) -> None:
        self._seen: set[int] = set()
        self._kept: list[tuple[Any, Any]] = []
        self._tables: set[int] = set()
        self._tensors: list[tuple[Tensor, Tensor, Tensor, int]] = []
        self.generators: list[Any] = []
        self._of: dict[int, slice] = {}
        self._code = CodeState()
        self._places: list[tuple[Any, str, Any]] = []
        for module in modules_of(model).values():
            self._code.note(type(module))
            first = len(self._kept)
            tables = vars(module)["_parameters"], vars(module)["_buffers"]
            self._tables.update(map(id, tables))
            self._seen.add(id(tables[0]))
            self._kept.append((tables[0], dict(tables[0])))
            self._note(vars(module))
            self._of[id(module)] = slice(first, len(self._kept))
        self._note_code()
        self._draws = OwnDraws(self.generators)
        code = [function.__code__ for function in self._code.functions]
        self.writes = any(not _WRITERS.isdisjoint(names_in(part)) for part in code)
        if self.writes:
            for parameter in model.parameters():
                self._note_tensor(parameter)

    def restore(self) -> None:
        """Put everything back, but for torch.fx's constants."""
        self._put_back(self._kept)
        for holder, name, value in self._places:
            write(holder, name, value)
        self._draws.put_back()
        for kind, names in self._classes:
            for name in vars(kind).keys() - names:
                delattr(kind, name)
        for tensor, memory, values, version in self._tensors:
            plain = tensor.layout is torch.strided and not tensor.is_meta
            if plain and tensor.data_ptr() != memory.data_ptr():  # `x.data = y`
                tensor.data = memory
            unseen = plain and self.writes and not torch.equal(memory, values)
            if unseen or tensor._version != version:
                memory.copy_(values)

    def knows(self, tensor: Tensor) -> bool:
        """Tell whether a tensor, or what it is a view of, was there when this was noted."""
        return any(memory_of(known) == memory_of(tensor) for known, *_ in self._tensors)

    def has_changed(self) -> bool:
        """Tell whether anything is another object, but for modes, parameters and buffers.

        Of parameters and buffers it tells whether one was added or taken away.
        """
        return any(read(holder, name) is not value for holder, name, value in self._places) or any(
            _given(container) != _given(values or {})
            if id(container) in self._tables
            else not _holds(container, _in_mode_of(container, values))
            for container, values in self._kept
        )

    def restore_parts(self, modules: Iterable[nn.Module]) -> None:
        """Put back what these modules hold, but for their mode."""
        for module in modules:
            if id(module) in self._of:
                own = vars(module)
                mode = own.get("training")  # `module.training` may be a proxy meanwhile
                self._put_back(self._kept[self._of[id(module)]])
                if mode is not None:
                    own["training"] = mode

    def _put_back(self, kept: list[tuple[Any, Any]]) -> None:
        for container, values in kept:
            if values or container:  # most are empty tables of hooks
                _refill(container, values)

    def _note(self, root: Any) -> None:
        waiting = [root]
        while waiting:
            value = waiting.pop()
            kind = type(value)
            if kind in _ATOMS or id(value) in self._seen:
                continue
            if kind is dict or kind is OrderedDict:
                self._seen.add(id(value))
                self._kept.append((value, dict(value) if value else None))
                waiting += [part for part in value.values() if type(part) not in _ATOMS]
            elif kind is tuple:
                waiting += [part for part in value if type(part) not in _ATOMS]
            elif is_generator(value):
                self._seen.add(id(value))
                self.generators.append(value)
                waiting += [vars(value)] if hasattr(value, "__dict__") else []
            elif isinstance(value, Tensor):
                self._note_tensor(value)  # of parameters, one that stands outside of their table
            elif isinstance(value, _CONTAINERS):
                self._seen.add(id(value))
                self._kept.append((value, _shallow(value)))
                waiting += value.values() if isinstance(value, dict) else value
                if hasattr(value, "__dict__"):
                    waiting.append(vars(value))
            elif isinstance(value, _CODE):
                self._code.note(value)
                if isinstance(value, functools.partial):
                    waiting += [value.args, value.keywords]
            elif not isinstance(value, (nn.Module, *_FOREIGN)):
                self._seen.add(id(value))
                waiting += [vars(value)] if hasattr(value, "__dict__") else []
                waiting += [self._note_place(value, name) for name in _slots(type(value))]

    def _note_code(self) -> None:
        """Note what the code keeps outside of the model; objects of other libraries are left."""
        places = list(self._code.places())
        self._classes = [(kind, set(vars(kind))) for kind in self._code.classes]
        values = [self._note_place(holder, name) for holder, name in places]
        for function in list(self._code.functions):
            values += [vars(function), function.__defaults__, function.__kwdefaults__]
        for value in values:
            kind = type(value)
            if kind in _PLAIN or isinstance(value, Tensor) or is_users(kind) or is_generator(value):
                self._note(value)

    def _note_place(self, holder: Any, name: str) -> Any:
        """Note and return what a holder has under a name."""
        value = read(holder, name)
        self._places.append((holder, name, value))
        return value

    def _note_tensor(self, tensor: Tensor) -> None:
        """Note the memory and the values of a tensor."""
        if id(tensor) in self._seen or tensor.is_inference() or is_lazy(tensor):
            return
        self._seen.add(id(tensor))
        self._tensors.append((tensor, tensor.data, tensor.detach().clone(), tensor._version))


def snapshot_of(network: nn.Module) -> Snapshot | None:
    """Note how a network is; None for a traced one that no run changes but for its buffers.

    Recurrent layers change: they keep a list of the weights that they ran with last.
    """
    recurrent = any(isinstance(part, nn.RNNBase) for part in modules_of(network).values())
    if isinstance(network, TracedModule) and not recurrent and not has_leaves(network):
        return None
    return Snapshot(network)


@contextlib.contextmanager
def state_kept(network: nn.Module) -> Iterator[None]:
    """Put back, after the block, what the user's modules in a network have left in themselves."""
    snapshots: list[Snapshot] = []
    seen: set[nn.Module] = set()
    for part in network.modules():
        if part not in seen and is_users(type(part)):
            snapshots.append(Snapshot(part))
            seen.update(part.modules())
    try:
        yield
    finally:
        for snapshot in snapshots:
            snapshot.restore()


def forgetting(network: nn.Module, call: Callable[..., Any] | None = None) -> Callable[..., Any]:
    """Return a function that calls a network and puts back what that leaves in it.

    Args:
        network: the network.
        call: how it is called, if not as itself.
    """

    def alone(*tensors: Tensor) -> Any:
        with state_kept(network):
            return (call or network)(*tensors)

    return alone


def _slots(kind: type) -> list[str]:
    """List the attributes that objects of a class have beside their `__dict__`."""
    slots = (vars(base).get("__slots__", ()) for base in kind.__mro__ if is_users(base))
    names = [name for own in slots for name in ([own] if isinstance(own, str) else own)]
    return [name for name in names if name not in ("__dict__", "__weakref__")]


def _shallow(value: Any) -> Any:
    if isinstance(value, dict):
        return dict(value.items()) if value else None
    return list(value)


def memory_of(tensor: Tensor) -> int:
    """Return a number that a tensor has in common with those that share its memory."""
    return int(tensor.untyped_storage()._cdata)


def _given(table: Mapping[str, Any]) -> set[str]:
    """Name what a table has a tensor of."""
    return {name for name, tensor in table.items() if tensor is not None}


def _in_mode_of(container: Any, values: Any) -> Any:
    """Return what a container held, a module's attributes with the mode that it now has."""
    if isinstance(values, dict) and isinstance(values.get("training"), bool):
        return {**values, "training": container.get("training")}
    return values


def _holds(container: Any, values: Any) -> bool:
    """Tell whether a container holds what it held."""
    kept = values or ()
    if len(container) != len(kept):
        return False
    if not isinstance(container, dict):
        return all(a is b for a, b in zip(container, kept))
    return not kept or all(
        key in container and container[key] is part for key, part in kept.items()
    )


def _refill(container: Any, values: Any) -> None:
    """Give a container what it held; one that still holds it is not written to."""
    if _holds(container, values):
        return
    if isinstance(container, dict):
        kept = values or {}
        constants = {
            name: part
            for name, part in container.items()
            if isinstance(name, str) and name.startswith(CONSTANT)
        }
        kind: Any = OrderedDict if isinstance(container, OrderedDict) else dict
        kind.clear(container)
        kind.update(container, kept | constants)
        return
    container.clear()
    if isinstance(container, set):
        container.update(values)
    else:
        container.extend(values)
