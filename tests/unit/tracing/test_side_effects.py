"""What a forward changes in its modules, it changes in every step of the gated network."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fxprune import instrument, shrink
from fxprune.tracing.trace import trace
from tests.support.law import choose
from tests.support.untouched import changes, described


class Schedules(nn.Module):
    """Counts its steps in training, and changes what it does later on."""

    def __init__(self, part: bool) -> None:
        super().__init__()
        self.conv, self.drop, self.head = nn.Conv2d(3, 8, 1), nn.Dropout(0.5), nn.Conv2d(8, 4, 1)
        self.steps, self.part = 0, part

    def forward(self, x: Tensor) -> Tensor:
        if self.part:
            self.drop.p = 0.0
        elif self.training:
            self.steps += 1
        x = self.conv(x)
        y: Tensor = self.head(self.drop(x) if self.part else x.tanh() if self.steps > 2 else x)
        return y


@pytest.mark.parametrize("part", [False, True], ids=["later", "an option of a layer"])
def test_a_forward_that_changes_numbers_does_so_in_every_step(part: bool) -> None:
    model, x = Schedules(part), torch.randn(2, 3, 4, 4)
    before = described(model)
    gated = instrument(model, (x,))
    assert changes(before, described(model)) == []
    gated.settle(choose(gated.channels, (8,)))
    for mode in (False, True):
        model.train(mode), gated.train(mode)
        for _ in range(4):
            torch.testing.assert_close(gated(x), model(x))


class SetsModes(nn.Module):
    """Sets the mode of a part in forward, as of one that is not to be trained."""

    def __init__(self, put: Callable[[nn.Module], Any]) -> None:
        super().__init__()
        self.conv, self.norm, self.head = nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8), nn.Conv2d(8, 4, 1)
        self.put = put

    def forward(self, x: Tensor) -> Tensor:
        self.put(self.norm)
        y: Tensor = self.head(self.norm(self.conv(x)))
        return y


@pytest.mark.parametrize(
    ("put", "keeps"),
    [
        (lambda part: part.eval(), True),
        (lambda part: part.train(), True),
        (lambda part: setattr(part, "training", False), True),
        (lambda part: part.train(part.training), False),
    ],
    ids=["eval", "train", "attribute", "as it is"],
)
def test_a_forward_that_sets_modes_does_so_in_every_step(
    put: Callable[[nn.Module], Any], keeps: bool
) -> None:
    model, x = SetsModes(put), torch.randn(4, 3, 4, 4)
    before = described(model)
    gated = instrument(model, (x,))
    assert changes(before, described(model)) == []
    assert trace(model, (x,)).keeps_code == keeps
    gated.settle(choose(gated.channels, (8,)))
    for mode in (True, False):
        wanted = copy.deepcopy(model).train(mode)
        network = copy.deepcopy(gated).train(mode)
        for y in (x, x + 1):
            torch.testing.assert_close(network(y), wanted(y))


Forward = Callable[[nn.Conv2d, Tensor], Tensor]
GLOBAL = torch.zeros(1)


def added(conv: nn.Conv2d, x: Tensor) -> Tensor:
    total = torch.zeros(1)
    total += conv(x).mean()
    return total


def filled(conv: nn.Conv2d, x: Tensor) -> Tensor:
    total = torch.zeros(1, 1, 4, 4)
    total[..., 1:] = conv(x).mean((0, 1), keepdim=True)[..., 1:]
    return total


def gathered(conv: nn.Conv2d, x: Tensor) -> Tensor:
    total = torch.tensor(0.0)
    for _ in range(2):
        total.add_(conv(x).mean())
    return total.view(1)


def put_out(conv: nn.Conv2d, x: Tensor) -> Tensor:
    total = torch.zeros(1, 1, 1, 1)
    torch.add(total, conv(x).detach().mean((0, 1, 2, 3), keepdim=True), out=total)
    return total


def in_parts(conv: nn.Conv2d, x: Tensor) -> Tensor:
    total = torch.zeros(2, 1)
    total[0].add_(conv(x).mean())
    total[1:].add_(conv(x).square().mean())
    return total.sum(0)


def kept_by_the_code(conv: nn.Conv2d, x: Tensor) -> Tensor:
    total = conv(x).mean().detach()
    GLOBAL.add_(total)
    return total.view(1)


class Writes(nn.Module):
    """Writes to a tensor that it has made itself, as those do that sum up losses."""

    def __init__(self, write: Forward) -> None:
        super().__init__()
        self.conv, self.head, self.write = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 4, 1), write

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.head(self.conv(x)) + self.write(self.conv, x)
        return y


@pytest.mark.parametrize(
    "write",
    [added, filled, gathered, put_out, in_parts, kept_by_the_code],
    ids=lambda f: f.__name__,
)
def test_a_tensor_that_forward_writes_to_is_new_or_kept_as_in_the_model(write: Forward) -> None:
    model, x = Writes(write), torch.randn(2, 3, 4, 4)
    gated = instrument(model, (x,))
    gated.settle(choose(gated.channels, (8,)))
    for _ in range(3):
        GLOBAL.zero_()
        wanted, kept = model(x), GLOBAL.clone()
        GLOBAL.zero_()
        found = gated(x)
        torch.testing.assert_close(found, wanted)
        torch.testing.assert_close(GLOBAL, kept)
        if found.requires_grad:
            found.sum().backward()


class Replaces(nn.Module):
    """Puts a new tensor in the place of a buffer, which its next call reads."""

    def __init__(self, way: str) -> None:
        super().__init__()
        self.a, self.b, self.way = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 4, 1), way
        if way != "first":
            self.register_buffer("level", torch.ones(1))

    def forward(self, x: Tensor) -> Tensor:
        if "level" not in self._buffers:
            self.register_buffer("level", torch.ones(1))
        if self.way == "table":
            self._buffers["level"] = self._buffers["level"] + x.mean()
        else:
            self.register_buffer("level", self.level + x.mean())
        y: Tensor = self.b(self.a(x).relu() * self.level)
        return y


@pytest.mark.parametrize("way", ["first", "register", "table"])
@pytest.mark.parametrize("part", [True, False])
def test_a_forward_that_replaces_a_buffer_does_so_in_every_step(way: str, part: bool) -> None:
    model, x = Replaces(way).eval(), torch.randn(2, 3, 4, 4)
    own = copy.deepcopy(model)
    gated = instrument(nn.Sequential(model) if part else model, (x,)).eval()
    gated.settle(choose(gated.channels, (8,)))
    with torch.no_grad():
        for number in range(4):
            torch.testing.assert_close(gated(x + number), own(x + number))


class HasPlainTensors(nn.Module):
    """Has tensors that are no buffers, one of which is trained."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 4, 1)
        self.grid, self.gain = torch.ones(1, 1, 4, 4), torch.ones(1, requires_grad=True)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.b(self.a(x) * self.grid) * self.gain
        return y


def test_tensors_that_are_no_buffers_keep_their_names_and_gradients() -> None:
    gated: Any = instrument(HasPlainTensors(), (torch.randn(2, 3, 4, 4),))
    gated.grid = gated.grid * 2
    x = torch.randn(2, 3, 4, 4)
    gated(x).sum().backward()
    assert gated.gain.grad is not None
    compact: Any = shrink(gated.eval())
    torch.testing.assert_close(compact(x), gated(x))


class MakesABuffer(nn.Module):
    """Makes a buffer, or a parameter, at its first call."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.a, self.b, self.kind = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 4, 1), kind
        if kind == "set":
            self.register_buffer("mask", None)

    def forward(self, x: Tensor) -> Tensor:
        mask = torch.arange(4.0)
        if getattr(self, "mask", None) is None:
            if self.kind == "registered":
                self.register_buffer("mask", mask, persistent=False)
            else:
                self.mask = nn.Parameter(mask) if self.kind == "parameter" else mask
        y: Tensor = self.b(self.a(x).relu() * self.mask)
        return y


@pytest.mark.parametrize("kind", ["registered", "set", "parameter"])
def test_what_is_made_at_the_first_call_is_there(kind: str) -> None:
    model = nn.Sequential(MakesABuffer(kind), nn.Conv2d(4, 4, 1)).eval()
    x = torch.randn(2, 3, 4, 4)
    before = described(model)
    gated = instrument(model, (x,)).eval()
    assert changes(before, described(model)) == []
    compact = shrink(gated)
    with torch.no_grad():
        torch.testing.assert_close(compact(x), gated(x))
