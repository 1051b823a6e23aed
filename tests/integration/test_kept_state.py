"""What a forward keeps from one call to the next, as spiking and recurrent networks do."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fxprune
from tests.support.law import at_random, gap, zeroed

CALLS = [torch.randn(2, 3, 8, 8, dtype=torch.float64) for _ in range(3)]


class Keeps(nn.Module):
    """Three convolutions with a state after the second."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 16, 3, padding=1)
        self.head, self.potential, self.last, self.calls = nn.Conv2d(16, 4, 1), 0.0, None, 0
        self.cache: dict[str, Any] = {}

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.keep(self.b(self.a(x).relu())))

    def keep(self, x: Tensor) -> Tensor:
        raise NotImplementedError


class Leaky(Keeps):
    def keep(self, x: Tensor) -> Tensor:
        self.potential = self.potential * 0.5 + x
        return self.potential.tanh()


class FirstIsNone(Keeps):
    def keep(self, x: Tensor) -> Tensor:
        before = x if self.last is None else self.last
        self.last = x.detach()
        return x - before * 0.5


class InADict(Keeps):
    def keep(self, x: Tensor) -> Tensor:
        hidden = self.cache.get("hidden", torch.zeros_like(x))
        self.cache["hidden"] = (x + hidden).tanh()
        return self.cache["hidden"]


class Counts(Keeps):
    def keep(self, x: Tensor) -> Tensor:
        self.calls += 1
        return x * self.calls


class FromAnotherLayer(Keeps):
    """The second call adds channels of one layer to those of another, the first does not."""

    def forward(self, x: Tensor) -> Tensor:
        y = self.a(x).relu()
        if self.last is not None:
            y = y + self.last
        self.last = self.b(y)
        return self.head(self.last)


class AsksToo(Leaky):
    """Asks for what is in a tensor, beside: in one that no removed channel changes."""

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = super().forward(x)
        return y + 1 if x.abs().max() > 3 else y


KINDS = [Leaky, FirstIsNone, InADict, Counts, FromAnotherLayer, AsksToo]


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_the_calls_after_the_first_are_right(kind: Callable[[], Keeps]) -> None:
    model = kind().double().eval()
    gated = fxprune.instrument(model, (CALLS[0],), round_to=1).eval()
    chosen = at_random(gated.channels, 1)
    gated.settle(chosen)
    dense, compact = zeroed(model, gated, chosen), fxprune.shrink(gated)
    for x in CALLS:
        wanted = dense(x)
        assert gap(wanted, gated(x)) < 1e-10
        assert gap(wanted, compact(x)) < 1e-10


@torch.no_grad()
def test_shrink_leaves_the_state_alone() -> None:
    model = Leaky().double().eval()
    gated = fxprune.instrument(model, (CALLS[0],), round_to=1).eval()
    other = copy.deepcopy(model)
    other.load_state_dict(fxprune.zeroed(gated, model).state_dict())
    for x in CALLS:
        fxprune.shrink(gated)
        assert gap(other(x), gated(x)) < 1e-10


def test_a_file_computes_the_first_call(tmp_path: Path) -> None:
    model = Leaky().eval()
    image = CALLS[0].float()
    gated = fxprune.instrument(model, (image,)).eval()
    compact = fxprune.shrink(gated)
    report = fxprune.export_onnx(
        compact, (image,), tmp_path / "net.onnx", reference=fxprune.reference_of(gated, model)
    )
    assert report.max_rel_error <= report.tolerance
