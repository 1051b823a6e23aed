"""Arguments that are alike in each call seen, but not on a way that no search finds."""

import functools
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fxprune
from tests.support.plain import Plain

IMAGES = torch.randn(2, 3, 8, 8)


def hidden(x: Tensor) -> bool:
    return float(x.max()) == 0.1234


class Optional(Plain):
    """Has a part that options lead to."""

    def __init__(self) -> None:
        super().__init__()
        self.other = nn.Conv2d(16, 24, 1)

    def pick(self, y: Any, deep: bool = False, prompt: Any = None) -> Tensor:
        if deep or prompt is not None or isinstance(y, list):
            return self.c(self.other(y[0] if isinstance(y, list) else y))
        return self.c(self.b(y))

    def forward(self, x: Tensor, deep: bool = False) -> Tensor:
        return self.pick(self.a(x / 2 if float(x.max()) > 100 else x), deep)


class OtherClass(Optional):
    def forward(self, x: Tensor) -> Tensor:
        y = self.a(x)
        return self.pick([y] if hidden(x) else y)


class NotNone(Optional):
    def forward(self, x: Tensor) -> Tensor:
        return self.pick(self.a(x), prompt=x if hidden(x) else None)


class FromDict(Optional):
    def forward(self, x: Tensor) -> Tensor:
        options: Any = {"deep": True} if hidden(x) else {}
        return self.pick(self.a(x), **options)


class FilledOptions(Optional):
    def forward(self, x: Tensor, **options: Any) -> Tensor:
        if hidden(x):
            options["deep"] = True
        return self.pick(self.a(x), **options)


class Chain(Optional):
    """Needs one hidden option to hand over the other."""

    def forward(self, x: Tensor) -> Tensor:
        return self.first(self.a(x), x if hidden(x) else None)

    def first(self, y: Tensor, prompt: Tensor | None) -> Tensor:
        return self.second(y) if prompt is not None else self.pick(y)

    def second(self, y: Tensor) -> Tensor:
        return self.pick(y, True)


class Alias(Optional):
    choose = Optional.pick

    def forward(self, x: Tensor) -> Tensor:
        return self.choose(self.a(x), hidden(x))


class PartialMethod(Optional):
    deeper = functools.partialmethod(Optional.pick, deep=True)

    def forward(self, x: Tensor) -> Tensor:
        y = self.a(x)
        return self.deeper(y) if hidden(x) else self.pick(y)


class Default(Optional):
    def forward(self, x: Tensor, run: Any = Optional.pick) -> Tensor:
        found: Tensor = run(self, self.a(x), hidden(x))
        return found


class ByItsClass(Optional):
    def forward(self, x: Tensor) -> Tensor:
        kind = type(self)
        return kind.pick(self, self.a(x), hidden(x))


class BySuper(Optional):
    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        return super().forward(x, deep=hidden(x))


class Decorated(Optional):
    @staticmethod
    def _deeper(pick: Any) -> Any:
        @functools.wraps(pick)
        def wrapped(self: Any, x: Tensor, deep: bool = False) -> Tensor:
            found: Tensor = pick(self, x, deep or hidden(x))
            return found

        return wrapped

    @_deeper
    def pick(self, x: Tensor, deep: bool = False) -> Tensor:  # type: ignore[override]
        y = self.a(x)
        return self.c(self.other(y) if deep else self.b(y))

    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        return self.pick(x)


class Around(nn.Module):
    """Calls its part."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.part = nn.Conv2d(3, 3, 1), Optional()

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        return self.part(x)


class ByAnotherName(Around):
    def __init__(self) -> None:
        super().__init__()
        self.parts = nn.ModuleList([self.part])

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        found: Tensor = next(part(x, hidden(x)) for part in self.parts)
        return found


class ByDunder(Around):
    def forward(self, x: Tensor) -> Tensor:
        return self.part.__call__(self.first(x), hidden(x))


class ByHook(Around):
    def __init__(self) -> None:
        super().__init__()
        self.part.register_forward_pre_hook(lambda _, args: (args[0], hidden(args[0])))


class Given(Optional):
    """Hands its options on, through functions that no call runs with others."""

    def forward(self, x: Tensor, *args: Any, **options: Any) -> Tensor:
        return self.hand(self.a(x / 2 if float(x.max()) > 100 else x), *args, **options)

    def hand(self, y: Tensor, deep: bool = False, **options: Any) -> Tensor:
        return self.last(y, deep, **options)

    def last(self, y: Tensor, deep: bool, prompt: Tensor | None = None) -> Tensor:
        return self.c(self.other(y) if deep or prompt is not None else self.b(y))

    def inspect(self, x: Tensor) -> Tensor:
        return self(x, True, prompt=x)


KINDS = [
    *(OtherClass, NotNone, FromDict, FilledOptions, Chain, Alias, PartialMethod, Default),
    *(ByItsClass, BySuper, Decorated, ByAnotherName, ByDunder, ByHook),
]


@pytest.mark.parametrize(("kind", "pins"), [*((kind, True) for kind in KINDS), (Given, False)])
def test_a_parameter_that_options_lead_to(kind: type[nn.Module], pins: bool) -> None:
    reasons = [pinned.reason for pinned in fxprune.analyze(kind(), (IMAGES,)).pinned]
    assert any("no path through the code here was found" in reason for reason in reasons) == pins
