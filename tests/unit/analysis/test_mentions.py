"""What a module's code names: parts that no way leads to pin, parts that it never uses do not."""

import functools
from collections import OrderedDict
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fxprune
from tests.support.law import at_random, gap, zeroed
from tests.support.plain import Plain

IMAGES = torch.randn(2, 3, 8, 8)


def test_a_parameter_on_no_way_that_was_found_pins() -> None:
    class Hidden(Plain):
        def __init__(self) -> None:
            super().__init__()
            self.other = nn.Conv2d(16, 24, 1)

        def forward(self, x: Tensor) -> Tensor:
            y = self.a(x)
            loudest = float(y.abs().max())
            return self.c(self.other(y) if loudest == 0.1234 else self.b(y))

    model = nn.Sequential(nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1), Hidden())
    reasons = [pinned.reason for pinned in fxprune.analyze(model, (IMAGES,)).pinned]
    assert any("no path through the code here was found" in reason for reason in reasons)


def _conv() -> nn.Conv2d:
    return nn.Conv2d(16, 24, 1)


class OwnConv(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x)


class OwnSequence(nn.Sequential):
    def forward(self, x: Tensor) -> Tensor:
        for part in self:
            x = part(x)
        return x


class Handed(nn.Module):
    """Hands what it is asked for on to its part."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Module()
        self.inner.conv = _conv()

    def __getattr__(self, name: str) -> Any:
        return super().__getattr__(name) if name == "inner" else getattr(self.inner, name)


PARTS: list[tuple[Callable[[], nn.Module], Callable[[Any, Tensor], Tensor]]] = [
    (lambda: OwnConv(16, 24, 1), lambda part, y: part(y)),
    (lambda: nn.Sequential(OrderedDict(conv=_conv())), lambda part, y: part(y)),
    (lambda: OwnSequence(OrderedDict(conv=_conv())), lambda part, y: part(y)),
    (lambda: nn.ModuleDict({"conv": _conv()}), lambda part, y: part["conv"](y)),
    (lambda: nn.RNN(8, 8), lambda part, y: y + part(y.flatten(0, 2))[0].view(y.shape)),
    (Handed, lambda part, y: part.conv(y)),
]


@pytest.mark.sampled(2)
@pytest.mark.parametrize(("make", "run"), PARTS)
def test_parts_of_a_part_that_its_code_does_not_name(
    make: Callable[[], nn.Module], run: Callable[[Any, Tensor], Tensor]
) -> None:
    class Part(Plain):
        def __init__(self) -> None:
            super().__init__()
            self.other = make()

        def forward(self, x: Tensor) -> Tensor:
            y = self.a(x)
            return self.c(run(self.other, y) if float(y.max()) == 0.1234 else self.b(y))

    reasons = [pinned.reason for pinned in fxprune.analyze(Part(), IMAGES).pinned]
    assert any("no path through the code here was found" in reason for reason in reasons)


def _passed_on(forward: Callable[..., Tensor]) -> Callable[..., Tensor]:
    @functools.wraps(forward)
    def wrapped(*args: Any, **kwargs: Any) -> Tensor:
        return forward(*args, **kwargs)

    return wrapped


class WithLabels(Plain):
    """Has a part that only labels lead to."""

    def __init__(self) -> None:
        super().__init__()
        self.other = nn.Conv2d(16, 24, 1)

    @_passed_on
    def forward(self, x: Tensor, labels: Tensor | None = None) -> Tensor:
        y = self.a(x)
        if y.max() > 100:
            y = y / 2
        if self.training and labels is not None:
            return self.c(self.other(y) * labels)
        return self.c(self.b(y))


class WithMadeLabels(WithLabels):
    """The same, where the labels are made inside."""

    @_passed_on
    def forward(self, x: Tensor, labels: Tensor | None = None) -> Tensor:
        y = self.a(x)
        if float(y.max()) == 0.1234:
            labels = torch.ones(())
        if labels is not None:
            return self.c(self.other(y) * labels)
        return self.c(self.b(y))


class Head(Plain):
    """Has a part that only its `prompt` uses, which another module's code calls."""

    def __init__(self) -> None:
        super().__init__()
        self.other = nn.Conv2d(3, 16, 1)

    def prompt(self, y: Tensor | None) -> Tensor | None:
        return None if y is None else self.other(y)

    def forward(self, x: Tensor, prompt: Tensor | None) -> Tensor:
        y = self.a(x)
        return self.c(self.b(y if prompt is None else y + prompt))


class Prompted(nn.Module):
    """Hands its options on, and calls a method of its part."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.head = nn.Conv2d(3, 3, 1), Head()

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        return self.predict(self.first(x), *args, **kwargs)

    def predict(self, x: Tensor, prompt: Tensor | None = None) -> Tensor:
        if float(x.max()) > 100:
            x = x / getattr(self, "largest", 2)
        prompt = self.head.prompt(prompt) if prompt is not None else None
        return self.head(x, prompt)


class PromptedInside(Prompted):
    """The same, where the prompt is made inside, on a way that is not found."""

    def predict(self, x: Tensor, prompt: Tensor | None = None) -> Tensor:
        if float(x.max()) == 0.1234:
            prompt = torch.ones_like(x)
        prompt = self.head.prompt(prompt) if prompt is not None else None
        return self.head(x, prompt)


class CalledFromOutside(Prompted):
    """The same, where the part's method runs on a way that is not found."""

    def predict(self, x: Tensor, prompt: Tensor | None = None) -> Tensor:
        return self.head(x, self.head.prompt(x) if float(x.max()) == 0.1234 else prompt)


class Inherited(Plain):
    """Hides a way in what `super()` leads to."""

    def __init__(self) -> None:
        super().__init__()
        self.other = nn.Conv2d(16, 24, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.a(x)
        return self.c(self.other(y) if float(y.abs().max()) == 0.1234 else self.b(y))


class Inheriting(Inherited):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x)


class Profiled(Inherited):
    """Can run all its parts, which an option and a dict lead to, and code that it replaces."""

    def forward(self, x: Any, *args: Any) -> Tensor:
        if isinstance(x, dict | list):
            return self.run_all(x["image"])
        return self.predict(x, *args)

    def predict(self, x: Tensor, profile: bool = False) -> Tensor:
        if profile is True:
            x = self.run_all(x)
        y = self.a(x)
        if float(y.max()) > 100:
            y = y / 2
        return self.c(self.b(y))

    def run_all(self, x: Tensor) -> Tensor:
        for part in self.children():
            x = part(x)
        return x


class ProfiledInside(Profiled):
    """The same, where the option comes from values, on a way that is not found."""

    def forward(self, x: Tensor) -> Tensor:
        return self.predict(x, float(x.max()) == 0.1234)


class ProfiledByAnotherName(Profiled):
    """The same, by another name of the method."""

    def forward(self, x: Tensor) -> Tensor:
        predict = self.predict
        return predict(x, float(x.max()) == 0.1234)


class OfTwoKinds(Inherited):
    """Has a part that a list leads to, which is made on a way that is not found."""

    def forward(self, x: Tensor) -> Tensor:
        y = self.a(x)
        return self.step([y] if float(y.max()) == 0.1234 else y)

    def step(self, y: Any) -> Tensor:
        return self.c(self.other(y[0]) if isinstance(y, list) else self.b(y))


class WithOptions(Inherited):
    """Has a part that an option of `forward` leads to, which is on by default."""

    def forward(self, x: Tensor, deep: bool = True) -> Tensor:
        y = self.a(x)
        if float(y.max()) > 100:
            y = y / 2
        return self.c(self.other(y) if deep else self.b(y))


class OptionOff(nn.Module):
    """Turns it off."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.part = nn.Conv2d(3, 3, 1), WithOptions()

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        return self.part(x / 2 if float(x.max()) > 100 else x, deep=False)


class OptionFromValues(OptionOff):
    """Turns it on, on a way that is not found."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        return self.part(x, deep=float(x.max()) == 0.1234)


class Replaced(Inherited):
    """Replaces the code that uses a part."""

    def forward(self, x: Tensor) -> Tensor:
        y = self.a(x)
        if float(y.max()) > 100:
            y = y / 2
        return self.c(self.b(y))


ABSENT = [
    (Profiled, False),
    (ProfiledInside, True),
    (ProfiledByAnotherName, True),
    (OfTwoKinds, True),
    (OptionOff, False),
    (OptionFromValues, True),
    (Replaced, False),
    (WithLabels, False),
    (WithMadeLabels, True),
    (Prompted, False),
    (PromptedInside, True),
    (CalledFromOutside, True),
    (Inheriting, True),
]


@pytest.mark.parametrize(("kind", "pins"), ABSENT)
def test_a_parameter_that_only_other_arguments_use(kind: type[nn.Module], pins: bool) -> None:
    reasons = [pinned.reason for pinned in fxprune.analyze(kind(), (IMAGES,)).pinned]
    assert any("no path through the code here was found" in reason for reason in reasons) == pins


class FlagOff(Plain):
    """Has a part behind a flag that `__init__` sets."""

    def __init__(self) -> None:
        super().__init__()
        self.other, self.use_other, self.mode = nn.Conv2d(16, 24, 1), False, "fast"

    def forward(self, x: Tensor) -> Tensor:
        y = self.a(x)
        if y.isnan().any():
            raise ValueError("not a number")
        return self.c(self.other(y) if self.use_other else self.b(y))


class ModeOff(FlagOff):
    def forward(self, x: Tensor) -> Tensor:
        y = self.a(x)
        if y.isnan().any():
            raise ValueError("not a number")
        if self.mode == "deep" or (self.use_other and not self.training):
            return self.c(self.other(y))
        return self.c(self.b(y))


class ConfigOff(FlagOff):
    """The same, where the flag stands in a config."""

    def __init__(self) -> None:
        super().__init__()
        self.config = SimpleNamespace(use_other=False)

    def forward(self, x: Tensor) -> Tensor:
        y = self.a(x)
        if y.isnan().any():
            raise ValueError("not a number")
        return self.c(self.other(y) if self.config.use_other or self.mode == "deep" else self.b(y))


class FlagOfAMethod(FlagOff):
    """The same, where a method sets the flag."""

    def enable(self) -> None:
        self.use_other = True


class FlagByName(FlagOff):
    """The same, where a method may set any attribute."""

    def enable(self, name: str) -> None:
        setattr(self, name, True)


class FlagFromOutside(nn.Module):
    """Sets a flag of its part."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.part = nn.Conv2d(3, 3, 1), FlagOff()

    def forward(self, x: Tensor) -> Tensor:
        self.part.use_other = float(x.max()) == 0.1234
        return self.part(self.first(x))


class FlagOfAnother(FlagOff):
    """Asks another module under the name that its method gives it."""

    def forward(self, x: Tensor) -> Tensor:
        if float(x.max()) == 0.1234:
            self = self.instead()
        return self.c(self.other(self.a(x)) if self.use_other else self.b(self.a(x)))

    def instead(self) -> "FlagOfAnother":
        return self


class FlagOfAProperty(FlagOff):
    """The same, where a property sets the flag."""

    @property
    def deep(self) -> bool:
        return self.use_other

    @deep.setter
    def deep(self, value: bool) -> None:
        self.use_other = value


class FlagOfAFunction(FlagOff):
    """The same, where a function sets the flag."""

    def forward(self, x: Tensor) -> Tensor:
        enable(self, float(x.max()) == 0.1234)
        return super().forward(x)


class FlagOfAHook(FlagOff):
    """The same, where a hook sets the flag."""

    def __init__(self) -> None:
        super().__init__()
        self.a.register_forward_hook(lambda _, x, __: enable(self, float(x[0].max()) == 0.1234))


def enable(module: Any, value: Any) -> None:
    module.use_other = bool(value)


class Config:
    def __init__(self) -> None:
        self.use_other = False

    def enable(self) -> None:
        self.use_other = True


class FlagOfAConfig(ConfigOff):
    """The same, where the config sets the flag."""

    def __init__(self) -> None:
        super().__init__()
        self.config: Any = Config()


class Zero(FlagOff):
    """Compares a number with False."""

    def __init__(self) -> None:
        super().__init__()
        self.steps = 0

    def forward(self, x: Tensor) -> Tensor:
        y = self.a(x)
        if self.steps is not False and float(y.max()) == 0.1234:
            y = self.other(y).narrow(1, 0, 16)
        return self.c(self.b(y))


class AskedFirst(FlagOff):
    """Asks a part before the flag that is off."""

    def forward(self, x: Tensor) -> Tensor:
        y = self.a(x)
        if float(y.max()) == 0.1234 and self.other(y).mean() > 0 and self.use_other:
            y = y + 1
        return self.c(self.b(y))


class Helper:
    @staticmethod
    def run(module: Any, y: Tensor) -> Tensor:
        found: Tensor = module.other(y)
        return found


class ByAnotherClass(FlagOff):
    """Runs its part in code of another class."""

    def forward(self, x: Tensor) -> Tensor:
        y = self.a(x)
        return self.c(Helper.run(self, y) if float(y.max()) == 0.1234 else self.b(y))


RUNS = {"part": Helper.run}


class ByATable(FlagOff):
    """Runs its part by a function in a table."""

    def forward(self, x: Tensor) -> Tensor:
        y = self.a(x)
        return self.c(RUNS["part"](self, y) if float(y.max()) == 0.1234 else self.b(y))


class ByALookup(FlagOff):
    """Names its part behind a flag, and finds it by a name that is made, too."""

    def forward(self, x: Tensor) -> Tensor:
        y = self.a(x)
        if self.use_other:
            return self.c(self.other(y))
        return self.c(getattr(self, ("b", "other")[float(y.max()) == 0.1234])(y))


FLAGS = [
    (FlagOff, False),
    (ModeOff, False),
    (ConfigOff, False),
    (FlagOfAMethod, True),
    (FlagByName, True),
    (FlagFromOutside, True),
    (FlagOfAnother, True),
    (FlagOfAProperty, True),
    (FlagOfAFunction, True),
    (FlagOfAHook, True),
    (FlagOfAConfig, True),
    (Zero, True),
    (AskedFirst, True),
    (ByAnotherClass, True),
    (ByATable, True),
    (ByALookup, True),
]


@pytest.mark.sampled(8)
@pytest.mark.parametrize(("kind", "pins"), FLAGS)
def test_a_parameter_behind_a_flag_that_is_off(kind: type[nn.Module], pins: bool) -> None:
    model = nn.Sequential(nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1), kind()).double().eval()
    graph = fxprune.analyze(model, IMAGES.double())
    found = [pin for pin in graph.pinned if "no path through the code here was found" in pin.reason]
    assert bool(found) == pins
    if not pins:
        gated = fxprune.instrument(model, IMAGES.double()).eval()
        gated.settle(chosen := at_random(gated.channels, 1))
        with torch.no_grad():
            wanted = gated(IMAGES.double())
            for other in (fxprune.shrink(gated), zeroed(model, gated, chosen)):
                assert gap(wanted, other(IMAGES.double())) <= 1e-12


class EitherPart(Plain):
    """Makes the same calls on one part or on another."""

    def __init__(self) -> None:
        super().__init__()
        self.other = nn.Conv2d(16, 24, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.a(x)
        return self.c(self.other(y) if float(y.abs().max()) > 5 else self.b(y))


def test_ways_of_the_same_calls_on_other_parts() -> None:
    graph = fxprune.analyze(EitherPart(), (IMAGES,))
    assert [group.size for group in graph.groups] == [16, 24]
    makers = {member.parameter for member in graph.groups[1].producers}
    assert makers >= {"b.weight", "other.weight"}
