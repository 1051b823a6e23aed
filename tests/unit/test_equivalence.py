"""Random inputs, and whether two networks compute the same on them."""

import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fxprune import instrument, zeroed
from fxprune.bank.exchange import Selection
from fxprune.equivalence import difference, fresh_inputs


def test_fresh_inputs_are_like_the_example() -> None:
    example = (
        torch.randn(50, 3, 4, 4) * 2 + 5,
        torch.tensor([3, 9]).repeat(25),
        torch.ones(7, 2),
        torch.zeros(50, 1),
    )
    drawn = fresh_inputs(example, 200, torch.Generator().manual_seed(0))
    assert [tuple(t.shape) for t in drawn] == [(200, 3, 4, 4), (200,), (7, 2), (200, 1)]
    assert [t.dtype for t in drawn] == [t.dtype for t in example]
    assert float(drawn[0].mean()) == pytest.approx(5, abs=0.2)
    assert float(drawn[0].std()) == pytest.approx(2, abs=0.1)
    assert drawn[1].unique().tolist() == [3, 9]
    assert float(drawn[3].std()) == pytest.approx(1, abs=0.2)


class AsksForNode(nn.Module):
    """What is traced has a node, so that the trace goes the other way, which need not run."""

    def __init__(self, other: str) -> None:
        super().__init__()
        self.conv, self.fc, self.other = nn.Conv2d(3, 8, 3), nn.Linear(8, 2), other

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        if hasattr(x, "node") and self.training == (self.other == "training"):
            x = x + torch.zeros(1, 8, 1, 1, device="meta" if self.other == "fails" else "cpu") + 1
        return self.fc(x.mean((2, 3)))


@pytest.mark.parametrize("other", ["runs", "fails", "training"])
def test_modules_whose_trace_is_another_network_keep_their_code(other: str) -> None:
    model = nn.Sequential(AsksForNode(other), nn.Tanh()).double().train()
    x = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    gated = instrument(model, (x,), budget="keep=0.5")
    assert all(module.training for module in model.modules())
    with torch.no_grad():
        for mode in (True, False):
            wanted = zeroed(gated.train(mode), model)(x)
            assert torch.allclose(gated(x), wanted, atol=1e-12)
    assert [group.size for group in gated.channels.groups] == [8]


Network = Callable[..., Any]


def _dead(x: Tensor) -> Tensor:
    return (x - 30).relu()


def _by_chance(x: Tensor) -> Tensor:
    return x * random.random() * np.random.rand()


class Counts(nn.Module):
    """Does not do the same twice."""

    calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return x * self.calls


@pytest.mark.parametrize(
    ("model", "other", "wanted"),
    [
        (nn.Dropout(0.5), nn.Dropout(0.5), 0.0),
        (_by_chance, _by_chance, 0.0),
        (nn.Identity(), lambda x: 1.5 * x, 0.5),
        (nn.Identity(), lambda x: (x, x), float("inf")),
        (nn.Identity(), lambda x: x / 0, float("inf")),
        (Counts(), lambda x: 3 * x, None),
        (nn.Conv2d(4, 2, 3), nn.Identity(), None),
        (_dead, lambda x: 1.5 * _dead(x), 0.5),
        (_dead, _dead, 0.0),
        (torch.zeros_like, torch.zeros_like, 0.0),
    ],
    ids=[
        *("same", "same by chance", "more", "two outputs", "not finite", "changes", "does not run"),
        *("zeros alone", "the same zeros", "always zeros"),
    ],
)
def test_difference(model: Network, other: Network, wanted: float | None) -> None:
    found = difference(model, other, (torch.zeros(2, 3, 8, 8),))
    assert found == (wanted if wanted is None else pytest.approx(wanted))


@pytest.mark.parametrize(("least", "sides"), [(1, [56]), (100, [56, 112]), (200, [56, 112, 224])])
def test_large_images_are_cut_as_far_as_the_model_takes_them(least: int, sides: list[int]) -> None:
    asked: list[int] = []

    def model(x: Tensor) -> Tensor:
        asked.append(x.shape[-1])
        assert x.shape[-1] >= least
        return x

    assert difference(model, nn.Identity(), (torch.zeros(2, 3, 224, 224),)) == 0
    assert asked == sides


def test_zeros_of_large_images_say_nothing() -> None:
    example = (torch.zeros(2, 3, 224, 224),)
    assert difference(_dead, lambda x: 1.5 * _dead(x), example) == pytest.approx(0.5)


class ByFirstBatch(nn.Module):
    """Takes its scale from the first batch that it sees."""

    def __init__(self, flag: str) -> None:
        super().__init__()
        self.scale, self.known = nn.Parameter(torch.ones(1, 4, 1, 1)), False
        self.register_buffer("seen", torch.tensor(0))
        self.flag = flag

    def forward(self, x: Tensor) -> Tensor:
        if not (self.known if self.flag == "attribute" else self.seen > 0):
            self.scale.data.copy_(1 / x.detach().std((0, 2, 3), keepdim=True))
            self.seen += 1
            self.known = True
        return x * self.scale


@pytest.mark.parametrize("flag", ["attribute", "buffer"])
def test_what_the_first_batch_decides_is_left_to_the_first_batch(flag: str) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 6, 3), nn.Conv2d(6, 4, 3), ByFirstBatch(flag))
    inputs = (torch.randn(4, 3, 8, 8),)
    gated = instrument(model, inputs)
    assert torch.equal(model[2].scale, torch.ones(1, 4, 1, 1))
    assert int(model[2].seen) == 0
    assert model[2].known is False
    sizes = gated.channels.layout.sizes
    gated.settle(Selection(torch.arange(sum(sizes)), sizes))
    for _ in range(3):
        x = torch.randn(4, 3, 8, 8)
        assert torch.equal(gated(x), model(x))


def test_differences_inside_autocast_are_those_outside_of_it() -> None:
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Conv2d(3, 64, 1), nn.Conv2d(64, 2, 1)), torch.randn(1, 3, 4, 4)
    order = torch.randperm(64)
    other = nn.Sequential(nn.Conv2d(3, 64, 1), nn.Conv2d(64, 2, 1))
    with torch.no_grad():
        other[0].weight.copy_(model[0].weight[order])
        other[0].bias.copy_(model[0].bias[order])
        other[1].weight.copy_(model[1].weight[:, order])
        other[1].bias.copy_(model[1].bias)
        other[1].bias[0] += 0.001
    outside = difference(model, other, (x,))
    with torch.autocast("cpu", torch.bfloat16):
        assert difference(model, other, (x,)) == outside
