"""What a step of a random network writes with: maps, layers, lines of source."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import count
from typing import Any, TypeVar

import torch

SIDE = 8
"""Height and width of the input, which has 3 channels."""
WIDEST = 24
"""Channels that a map may have; a convolution makes at most 12."""

T = TypeVar("T")

HEAD = """\
import torch
from torch import nn
from torch.nn import functional as F


{helpers}class Net(nn.Module):
    def __init__(self):
        super().__init__()
"""


class Dice:
    """The numbers of a step, one after the other."""

    def __init__(self, numbers: Sequence[int]) -> None:
        self._numbers = iter(numbers)

    def pick(self, options: Sequence[T]) -> T:
        """One of the options; the simplest stand first."""
        return options[next(self._numbers, 0) % len(options)]

    def flag(self) -> bool:
        """No or yes."""
        return self.pick((False, True))

    def width(self, x: "Map") -> int:
        """Output channels for a layer on x."""
        return self.pick((min(x.channels, 12), 4, 8, 6, 12, 2, 9, 10, 5, 3, 1))


@dataclass(eq=False)
class Map:
    """A feature map [N, channels, side, side] that forward has computed.

    Attributes:
        name: its variable.
        view_of: the map that it shares its elements with.
        kept: whether it and its views are not to be changed in place, as the input is not.
        used: whether something reads it.
    """

    name: str
    channels: int
    side: int
    view_of: "Map | None" = None
    kept: bool = False
    used: bool = False

    def __str__(self) -> str:
        self.used = True  # it is being written into a line
        return self.name

    @property
    def ours(self) -> bool:
        """Whether it may be changed in place."""
        return not self.base.kept

    @property
    def base(self) -> "Map":
        """The map that owns the elements."""
        return self if self.view_of is None else self.view_of.base

    @property
    def size(self) -> int:
        """Elements of one example."""
        return self.channels * self.side**2


@dataclass
class Writer:
    """A network that is being written.

    Attributes:
        maps: what forward has computed.
        convs: the convolutions that may be called again: each one's input channels, and a function
            that calls it.
        norms: likewise.
        weights: the names of the plain convolutions by (input channels, output channels, kernel).
    """

    maps: list[Map] = field(default_factory=lambda: [Map("x", 3, SIDE, kept=True)])
    convs: list[tuple[int, Callable[[Map], Map]]] = field(default_factory=list)
    norms: list[tuple[int, Callable[[Map], Map]]] = field(default_factory=list)
    weights: dict[tuple[int, int, int], str] = field(default_factory=dict)
    activations: dict[str, str] = field(default_factory=dict)
    _helpers: list[str] = field(default_factory=list)
    _init: list[str] = field(default_factory=list)
    _forward: list[str] = field(default_factory=list)
    _numbers: Any = field(default_factory=lambda: count(1))

    def back(self, distance: int) -> Map:
        """The map that lies so far back; the newest is at 0."""
        return self.maps[-1 - distance % len(self.maps)]

    def layer(self, code: str, name: str = "layer") -> str:
        """Gives the network a module or a parameter; returns its name, with `self.`."""
        name = f"self.{name}{next(self._numbers)}"
        self._init.append(f"{name} = {code}")
        return name

    def parameter(self, *shape: int) -> str:
        """Gives the network a parameter; returns its name, with `self.`."""
        scale = max(1, torch.Size(shape[1:]).numel()) ** 0.5
        sizes = ", ".join(map(str, shape))
        return self.layer(f"nn.Parameter(torch.randn({sizes}) / {scale:.2f})", "weight")

    def setup(self, line: str) -> None:
        """Adds a line to the constructor."""
        self._init.append(line)

    def helper(self, code: str) -> None:
        """Puts a class of its own before the network's, once."""
        if code not in self._helpers:
            self._helpers.append(code)

    def line(self, code: str) -> None:
        """Adds a line to forward."""
        self._forward.append(code)

    def variable(self, code: str) -> str:
        """A new variable of forward."""
        name = f"t{next(self._numbers)}"
        self.line(f"{name} = {code}")
        return name

    def map(self, code: str, channels: int, side: int, *, view_of: Map | None = None) -> Map:
        """A new map, computed by `code`."""
        made = Map(f"x{next(self._numbers)}", channels, side, view_of)
        self.line(f"{made.name} = {code}")
        self.maps.append(made)
        return made

    def like(self, x: Map, code: str, *, view: bool = False) -> Map:
        """A new map of the shape of x."""
        return self.map(code, x.channels, x.side, view_of=x if view else None)

    def conv(self, x: Map, out: int, kernel: int = 1, options: str = "") -> Map:
        """A convolution of x, which may be called again."""
        pad = f", padding={kernel // 2}" if kernel > 1 and "padding" not in options else ""
        name = self.layer(f"nn.Conv2d({x.channels}, {out}, {kernel}{pad}{options})", "conv")
        stride = 2 if "stride=2" in options else 1

        def call(operand: Map) -> Map:
            return self.map(f"{name}({operand})", out, -(-operand.side // stride))

        if "groups" not in options:
            self.weights.setdefault((x.channels, out, kernel), name)
        self.convs.append((x.channels, call))
        return call(x)

    def fit(self, x: Map, channels: int, side: int) -> Map:
        """x itself where it has this shape, or what is made of it."""
        if x.side > side:
            x = self.map(f"F.adaptive_avg_pool2d({x}, {side})", x.channels, side)
        elif x.side < side:
            x = self.map(f"F.interpolate({x}, size={side})", x.channels, side)
        return x if x.channels == channels else self.conv(x, channels)

    def partner(self, x: Map, wanted: Map) -> Map:
        """`wanted`, or else the newest other map, of the shape of x; made to fit if none is."""
        same = [m for m in self.maps if (m.channels, m.side) == (x.channels, x.side) and m is not x]
        if wanted in same or not same:
            return wanted if wanted in same else self.fit(wanted, x.channels, x.side)
        return same[-1]

    def finish(self, head: int) -> str:
        """Makes outputs of every map that nothing reads; returns the module's source."""
        loose = [m for m in self.maps if not m.used] or self.maps[-1:]
        # the first is read by a layer: where all are outputs as they are, no channel may go
        results = [_result(self, m, 2 if head == 3 and m is loose[0] else head) for m in loose]
        joined = ", " if head == 3 else " + "
        self.line(f"return {joined.join(results)}")
        init = "".join(f"        {line}\n" for line in self._init)
        forward = "".join(f"        {line}\n" for line in self._forward)
        head = HEAD.replace("{helpers}", "".join(self._helpers))
        return f"{head}{init}\n    def forward(self, x):\n{forward}"


def _result(w: Writer, m: Map, head: int) -> str:
    if head == 3:  # as it is, which pins it
        return str(m)
    if head == 2:
        return f"{w.conv(m, 3, 1, ', bias=False')}.mean((2, 3))"
    if head == 1 and m.size <= 600:
        return f"{w.layer(f'nn.Linear({m.size}, 3)', 'fc')}({m}.flatten(1))"
    return f"{w.layer(f'nn.Linear({m.channels}, 3)', 'fc')}({m}.mean((2, 3)))"


def divisors(number: int) -> tuple[int, ...]:
    """Those above 1, the least first; 1 for 1."""
    return tuple(d for d in range(2, number + 1) if number % d == 0) or (1,)
