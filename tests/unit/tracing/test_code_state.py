"""What a model's code keeps outside of the model is as it was after a trace."""

import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fxprune

IMAGE = torch.randn(2, 3, 8, 8)
TABLE: dict[str, Tensor] = {}
GRID: Tensor | None = None


class Slots:
    """An object without a `__dict__`."""

    __slots__ = ("grid",)

    def __init__(self) -> None:
        self.grid: Tensor | None = None


class Registry:
    """A class that keeps what all have."""

    table: dict[str, Tensor] = {}

    @classmethod
    def grid(cls, y: Tensor) -> Tensor:
        return cls.table.setdefault("grid", torch.ones_like(y))


def remembering(function: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    memory: list[Tensor] = []

    @functools.wraps(function)
    def remembered(y: Tensor) -> Tensor:
        if not memory:
            memory.append(function(y))
        return memory[0]

    return remembered


@remembering
def in_closure(y: Tensor) -> Tensor:
    return torch.ones_like(y)


def in_global(y: Tensor) -> Tensor:
    global GRID
    GRID = torch.ones_like(y) if GRID is None else GRID
    return GRID


def in_table(y: Tensor) -> Tensor:
    return TABLE.setdefault("grid", torch.ones_like(y))


def in_default(y: Tensor, table: dict[str, Tensor] = {}) -> Tensor:  # noqa: B006
    return table.setdefault("grid", torch.ones_like(y))


def in_attribute(y: Tensor) -> Tensor:
    if not hasattr(in_attribute, "grid"):
        in_attribute.grid = torch.ones_like(y)
    return in_attribute.grid


class Base(nn.Module):
    """Adds a grid, which it keeps somewhere."""

    grid: Tensor | None = None
    slots = Slots()

    def __init__(self, own_code: bool, get: Any) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 16, 3), nn.Conv2d(16, 4, 3)
        self.own_code, self.get = own_code, get

    def forward(self, x: Tensor) -> Tensor:
        if self.own_code and x.max() > 1e9:
            x = x * 0
        y = self.b(self.a(x).relu())
        return y + self.get(self, y)

    def in_class(self, y: Tensor) -> Tensor:
        if type(self).grid is None:
            type(self).grid = torch.ones_like(y)
        return type(self).grid

    def in_slots(self, y: Tensor) -> Tensor:
        if self.slots.grid is None:
            self.slots.grid = torch.ones_like(y)
        return self.slots.grid


class Derived(Base):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * 2


PLACES: dict[str, Callable[[Any, Tensor], Tensor]] = {
    "class": Base.in_class,
    "slots": Base.in_slots,
    "class of another": lambda _, y: Registry.grid(y),
    "closure": lambda _, y: in_closure(y),
    "global": lambda _, y: in_global(y),
    "global table": functools.partial(lambda _, y, of: of(y), of=in_table),
    "default": lambda _, y: in_default(y),
    "attribute of a function": lambda _, y: in_attribute(y),
}


@pytest.mark.sampled(5)
@pytest.mark.parametrize("own_code", [False, True])
@pytest.mark.parametrize("place", PLACES)
def test_no_cache_keeps_what_a_trace_put_into_it(place: str, own_code: bool) -> None:
    model = Derived(own_code, PLACES[place])
    gated = fxprune.instrument(model, (IMAGE,)).eval()
    again = fxprune.instrument(model, (IMAGE,)).eval()
    gated.settle(gated.best())
    again.settle(gated.best())
    small = torch.randn(1, 3, 8, 8)
    assert torch.equal(gated(small), again(small))
    assert type(model(small)) is Tensor
    assert model(small).shape == (1, 4, 4, 4)  # no grid of another call's size was left
