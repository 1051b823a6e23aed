"""Modules that hold functions of themselves: copies of them hold functions of the copies."""

import copy
import functools

import pytest
import torch
from torch import Tensor, nn

import fxprune
from fxprune.tracing.deepcopy import copied
from tests.support.law import gap
from tests.support.topologies.base import randomised
from tests.support.untouched import changes, described


class Three(nn.Module):
    """Three convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 24, 3, padding=1)
        self.c = nn.Conv2d(24, 4, 1)

    def all(self, x: Tensor) -> Tensor:
        return self.c(self.b(self.a(x)).relu())


class InLambda(Three):
    def __init__(self) -> None:
        super().__init__()
        self.f = lambda x: self.all(x)

    def forward(self, x: Tensor) -> Tensor:
        return self.f(x)


class InPartial(InLambda):
    def __init__(self) -> None:
        super().__init__()
        self.f = functools.partial(lambda scale, x, of: of(x) * scale, 2.0, of=self.all)


class InList(Three):
    def __init__(self) -> None:
        super().__init__()
        self.steps = [lambda x: self.b(self.a(x)).relu(), {"last": (self.c,)}["last"][0]]

    def forward(self, x: Tensor) -> Tensor:
        for step in self.steps:
            x = step(x)
        return x


class Calling(InLambda):
    """Its function calls another one, and itself."""

    def __init__(self) -> None:
        super().__init__()
        c = self.c

        def inner(x: Tensor) -> Tensor:
            return self.b(self.a(x)).relu()

        def outer(x: Tensor, again: bool = True) -> Tensor:
            return outer(x, False) if again else c(inner(x))

        self.f = outer


class InDefault(InLambda):
    def __init__(self) -> None:
        super().__init__()
        self.f = lambda x, m=self, *, last=self.c: last(m.b(m.a(x)).relu())


class BoundMethod(InLambda):
    def __init__(self) -> None:
        super().__init__()
        self.f = self.all


class OwnForward(Three):
    def __init__(self) -> None:
        super().__init__()
        self.forward = lambda x: self.all(x)


class InHook(Three):
    def __init__(self) -> None:
        super().__init__()
        self.a.register_forward_hook(lambda *given: self.b(given[-1]).relu())

    def forward(self, x: Tensor) -> Tensor:
        return self.c(self.a(x))


def _keeping_its_code(kind: type[nn.Module]) -> type[nn.Module]:
    class Keeping(kind):  # type: ignore[misc, valid-type]
        def __init__(self) -> None:
            super().__init__()
            self.own = self.forward
            self.forward = lambda x: self.own(x / 2 if x.max() > 100 else x)

    Keeping.__name__ = f"{kind.__name__}AndCode"
    return Keeping


FOLLOWED = [
    InLambda,
    InPartial,
    InList,
    Calling,
    InDefault,
    BoundMethod,
    OwnForward,
]
KINDS = FOLLOWED + [_keeping_its_code(kind) for kind in (*FOLLOWED, InHook)]


@pytest.mark.sampled(8)
@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
@torch.no_grad()
def test_a_network_is_narrow_and_right(kind: type[nn.Module]) -> None:
    torch.manual_seed(0)
    model, x = randomised(kind()).double().eval(), torch.randn(2, 3, 8, 8, dtype=torch.float64)
    before = described(model)
    gated = fxprune.instrument(model, (x,), "magnitude").eval()
    assert changes(before, described(model)) == []
    assert gated.cost.macs(gated.widths) < 0.3 * gated.cost.dense_macs
    wanted, compact, clone = gated(x), fxprune.shrink(gated), copy.deepcopy(gated)
    assert gap(wanted, fxprune.zeroed(gated, model)(x)) < 1e-12
    for parameter in [*gated.parameters(), *model.parameters()]:
        parameter.zero_()
    assert gap(wanted, compact(x)) < 1e-12
    assert gap(wanted, clone(x)) < 1e-12


def test_what_leads_elsewhere_stays() -> None:
    seen: list[Tensor] = []
    other, model = nn.Conv2d(4, 4, 1), Three()
    model.c.register_forward_hook(lambda _module, _given, y: seen.append(y))
    model.other = [lambda x: other(x)]
    clone = copied(model, {})
    clone.all(torch.ones(1, 3, 8, 8))
    assert len(seen) == 1
    assert clone.other[0] is model.other[0]
