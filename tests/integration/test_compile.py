"""torch.compile sees an ordinary narrow network: it compiles once for its widths, and stays right.

The backends are those that need no C++ compiler; what dynamo traces and guards is the same.
"""

import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.utils import counters
from torch.nn import functional as F

from fxprune import GatedModule, attach, instrument
from fxprune.bank.exchange import Selection

POLICIES = ["cucb{c=1}", "random", "cucb{c=1,saliency=sample}"]


@pytest.fixture(autouse=True)
def fresh() -> None:
    torch._dynamo.reset()
    counters.clear()


def build(policy: str) -> tuple[GatedModule, torch.optim.Optimizer]:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.ReLU(),
        nn.Conv2d(8, 12, 3), nn.BatchNorm2d(12), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(12, 4),
    )  # fmt: skip
    gated = instrument(model.train(), (torch.zeros(1, 1, 8, 8),), policy=policy)
    optimizer = torch.optim.SGD(gated.parameters(), 0.05, momentum=0.9)
    attach(gated, optimizer)
    return gated, optimizer


def batch(step: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(step)
    images = torch.randn(8, 1, 8, 8, generator=generator)
    return images, torch.randint(4, (8,), generator=generator)


def train(network: Any, optimizer: torch.optim.Optimizer, step: int) -> None:
    images, labels = batch(step)
    optimizer.zero_grad()
    F.cross_entropy(network(images), labels).backward()
    optimizer.step()


def assert_same(one: GatedModule, two: GatedModule) -> None:
    """Nothing but the order of sums differs."""
    first, second = one.training_state(), two.training_state()
    for key, value in first.items():
        torch.testing.assert_close(second[key], value, rtol=1e-5, atol=1e-6)


@pytest.mark.sampled(1)
@pytest.mark.parametrize("policy", POLICIES)
def test_selections_that_change_in_every_step_compile_once(policy: str) -> None:
    gated, optimizer = build(policy)
    plain, plain_optimizer = build(policy)
    compiled = torch.compile(gated, backend="aot_eager", fullgraph=True)
    seen = []
    for step in range(12):
        train(compiled, optimizer, step)
        train(plain, plain_optimizer, step)
        seen.append(tuple(gated.executing.tolist()))
        assert torch.equal(gated.executing, plain.executing)
    assert len(set(seen)) > 6
    assert counters["stats"]["unique_graphs"] == 1
    assert not counters["graph_break"]
    assert_same(plain, gated)


@pytest.mark.slow
@pytest.mark.parametrize("policy", ["random", "cucb{c=1,saliency=sample}"])
@torch._dynamo.config.patch(recompile_limit=8)
def test_new_widths_compile_once_each(policy: str) -> None:
    """As often as they change; dynamo gives up on a function only if its code stays the same.

    It would at its limit, the eighth time.
    """
    gated, optimizer = build(policy)
    plain, plain_optimizer = build(policy)
    compiled = torch.compile(gated, backend="aot_eager", fullgraph=True)
    for number in range(9):
        chosen = Selection(torch.tensor([*range(2 + number % 3), *range(8, 10 + number % 4)]),
                        (2 + number % 3, 2 + number % 4))  # fmt: skip
        for one in (gated, plain):
            one.select(chosen)
        for step in range(2):
            train(compiled, optimizer, 2 * number + step)
            train(plain, plain_optimizer, 2 * number + step)
        assert counters["stats"]["unique_graphs"] == number + 1
    assert_same(plain, gated)


@pytest.mark.slow
def test_evaluation_in_between() -> None:
    gated, optimizer = build("cucb{c=1}")
    compiled = torch.compile(gated, backend="aot_eager", fullgraph=True)
    for step in range(8):
        train(compiled, optimizer, step)
        compiled.eval()
        with torch.no_grad():
            out = compiled(batch(0)[0])
            torch.testing.assert_close(out, gated(batch(0)[0]))
        compiled.train()
    assert counters["stats"]["unique_graphs"] == 2


@pytest.mark.sampled(1)
@pytest.mark.parametrize("policy", ["cucb{c=1}", "utility{warmup=4,reallocate=100}"])
def test_a_whole_step(policy: str) -> None:
    """Dynamo leaves out zero_grad, backward and what happens around the optimiser's step."""
    gated, optimizer = build(policy)
    plain, plain_optimizer = build(policy)

    def step_of(number: int) -> None:
        images, labels = batch(number)
        whole(images, labels)
        train(plain, plain_optimizer, number)
        assert torch.equal(gated.executing, plain.executing)

    @torch.compile(backend="eager")
    def whole(images: Tensor, labels: Tensor) -> Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(gated(images), labels)
        loss.backward()
        optimizer.step()
        return loss

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # dynamo's, of what it does not trace
        for number in range(3):
            step_of(number)
        if gated.settings.policy.warmup:  # all channels before, the budget after
            for number in range(3, 7):
                step_of(number)
        before = counters["stats"]["unique_graphs"]
        with torch._dynamo.config.patch(error_on_recompile=True):
            for number in range(7, 15):
                step_of(number)
    assert counters["stats"]["unique_graphs"] == before
    assert_same(plain, gated)
