"""Records of the dense sizes of every node and tensor, from which a network can be resized.

The sizes that the dense run saw are kept on each node as a `Record`; those of a compact network
are worked out from them.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from fxprune.channels.graph import Axis, ChannelGraph, Widths

KEY = "fxprune"
"""Where a node's `Record` is kept in `node.meta`."""


@dataclass(frozen=True, eq=False)
class Shape:
    """A tensor's dense sizes, and the axes along which it follows the widths."""

    sizes: tuple[int, ...]
    axes: Mapping[int, Axis]

    def at(self, widths: Widths) -> tuple[int, ...]:
        """Compute the sizes at these widths."""
        return tuple(
            self.axes[dim].length(widths) if dim in self.axes else size
            for dim, size in enumerate(self.sizes)
        )


@dataclass(frozen=True)
class Number:
    """A Python number that the network computes, and what it comes from.

    Attributes:
        value: what it was in the dense run.
        follows: whether a size that follows the widths is in it.
        free: whether any other size is in it, such as the batch's or an image's.
    """

    value: float
    follows: bool = False
    free: bool = False


@dataclass(frozen=True, eq=False)
class Record:
    """What is known of one node.

    Attributes:
        result: the Shape of its tensor, a Number, a tuple or dict of such for several, or None.
        target: its target in the dense graph.
        args: its dense arguments. One that another node computes is its Number, if only sizes
            that follow the widths are in that, else None.
        kwargs: likewise.
    """

    result: Any
    target: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    @cached_property
    def is_computed(self) -> bool:
        """Whether a number that follows the widths is among its arguments, or in a list there."""
        return _holds_number((*self.args, *self.kwargs.values()))


def _holds_number(values: tuple[Any, ...] | list[Any]) -> bool:
    return any(
        isinstance(value, Number) or (isinstance(value, (list, tuple)) and _holds_number(value))
        for value in values
    )


def compact_shape(name: str, channels: ChannelGraph, widths: Widths) -> tuple[int, ...]:
    """Compute the shape of a parameter or buffer at these widths."""
    axes = channels.axes.get(name, {})
    return Shape(channels.shapes[name], axes).at(widths)
