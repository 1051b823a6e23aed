"""The language in which the literal sizes of an op are written.

A traced network holds sizes of two sorts: attributes of modules (`in_channels`, `num_features` …)
and literals in calls (`view(n, 512, 7, 7)`, `split([32, 64])`, `x[:, :16]` …). A family of ops says
in its own file under `fxprune/rules` how they follow the widths: by a `ModuleSizes` for its modules
and a `CallSizes` for its functions and methods. `fxprune.channels.resize` finds and applies them.
"""

import abc
from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import fx, nn

from fxprune.channels.graph import Axis, ChannelGraph, Widths
from fxprune.channels.records import KEY, Number, Record, Shape, compact_shape


@dataclass(frozen=True)
class Sizes:
    """The sizes of the parameters of one module, by its path, at given widths."""

    path: str
    module: nn.Module
    names: Mapping[int, str]
    channels: ChannelGraph
    widths: Widths

    def of(self, parameter: str) -> tuple[int, ...] | None:
        """Return a parameter's sizes at the widths; None where they are fixed."""
        name = self.name(parameter)
        if name not in self.channels.axes:
            return None
        return compact_shape(name, self.channels, self.widths)

    def name(self, parameter: str) -> str:
        """Return the name by which the channel graph knows a parameter, which may be a tied one."""
        own = vars(self.module)["_parameters"]  # a computed one would be computed by getattr
        return self.names.get(id(own.get(parameter)), "") if own.get(parameter) is not None else ""


class ModuleSizes(abc.ABC):
    """Sets the attributes of one family of modules. `keys` are classes; subclasses count too."""

    keys: ClassVar[tuple[Hashable, ...]]

    @abc.abstractmethod
    def __call__(self, module: Any, sizes: Sizes) -> None:
        """Set the sizes that `module` holds beside its parameters, in place."""


class CallSizes(abc.ABC):
    """Sets the literal sizes of one family of calls. `keys` are functions and names of methods."""

    keys: ClassVar[tuple[Hashable, ...]]

    @abc.abstractmethod
    def __call__(self, node: fx.Node, record: Record, widths: Widths) -> None:
        """Set the literals among the arguments of `node`, in place.

        Args:
            node: a call whose tensors follow the widths.
            record: its dense arguments and sizes.
            widths: the widths to follow.
        """


def plain(number: Any) -> Any:
    """Return the dense value of what may be a Number."""
    return number.value if isinstance(number, Number) else number


def shape_of(node: Any) -> Shape | None:
    """Return the Shape of a node's tensor; None where it is no single tensor."""
    result = node.meta[KEY].result if isinstance(node, fx.Node) and KEY in node.meta else None
    return result if isinstance(result, Shape) else None


def input_of(node: fx.Node) -> Shape | None:
    """Return the Shape of a call's first argument."""
    return shape_of(node.args[0]) if node.args else None


def operand(node: fx.Node, index: int, name: str) -> Shape | None:
    """Return the Shape of an argument, by its position or name."""
    return shape_of(node.args[index] if index < len(node.args) else node.kwargs.get(name))


def argument(record: Record, index: int, name: str, default: Any) -> Any:
    """Return a dense argument, by its position or name."""
    if index < len(record.args):
        return record.args[index]
    return record.kwargs.get(name, default)


def set_argument(node: fx.Node, index: int, name: str, value: Any) -> None:
    """Set an argument, by its position or name."""
    if index < len(node.args):
        node.args = (*node.args[:index], value, *node.args[index + 1 :])
    else:
        node.kwargs = {**node.kwargs, name: value}


def set_literals(node: fx.Node, first: int, dense: Any, sizes: tuple[int, ...]) -> None:
    """Replace sizes from `first` on by literals and computed widths; -1 and other nodes stay."""
    nested = first < len(dense) and isinstance(dense[first], (tuple, list))
    old = dense[first] if nested else dense[first:]
    now: Any = node.args[first] if nested else node.args[first:]
    new = literals(old, now, sizes)
    head = node.args[:first]
    node.args = (*head, new, *node.args[first + 1 :]) if nested else (*head, *new)


def literals(dense: Any, now: Any, sizes: tuple[int, ...]) -> tuple[Any, ...]:
    """Return sizes with literals and computed widths replaced; -1 and other nodes stay."""
    return tuple(
        size if isinstance(literal, (int, Number)) and literal != -1 else current
        for literal, current, size in zip(dense, now, sizes, strict=True)
    )


def kept_before(axis: Axis, position: Any, now: Any, widths: Widths) -> Any:
    """Count the kept positions before a literal one; `now` where it is no literal."""
    if isinstance(position, Number):
        position = int(position.value)
    if not isinstance(position, int):
        return now
    size = len(axis.channel)
    position = position + size if position < 0 else position
    return int((axis.template(widths) < position).sum())
