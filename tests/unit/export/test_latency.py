"""Latency budgets: the search with a stand-in for the clock, and once with ONNX Runtime."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import fxprune
from fxprune import api
from fxprune.budget.budget import Budget
from fxprune.budget.widths import allowed_widths, uniform_widths
from fxprune.channels.cost import CostModel, Widths
from fxprune.channels.graph import Layout
from fxprune.errors import BudgetError, RunError
from fxprune.export.latency import BUNDLES, CORRECTIONS, Choice, choose
from tests.unit.budget.test_budget import chain

Clock = Callable[[Widths], float]


def clock(cost: CostModel, fixed: float = 0.0, block: int = 1, noise: float = 0.0) -> Clock:
    """Seconds that grow with the macs of widths in whole blocks, over a fixed part; never equal."""

    def measure(widths: Widths) -> float:
        rounded = [min(-(-w // block) * block, n) for w, n in zip(widths, cost.sizes)]
        wobble = 1 + noise * ((hash(widths) % 2001) / 1000 - 1)
        return (fixed + cost.macs(tuple(rounded)) / cost.dense_macs) * wobble

    return measure


def counted(measure: Clock) -> tuple[Clock, list[Widths]]:
    asked: list[Widths] = []

    def call(widths: Widths) -> float:
        assert widths not in asked, "each is measured once"
        asked.append(widths)
        return measure(widths)

    return call, asked


def check(choice: Choice, budget: Budget, layout: Layout, measure: Clock) -> None:
    """The figures are those of the clock, and the budget is never exceeded by more than 5 %."""
    widths = choice.budget.widths
    assert choice.dense == measure(layout.sizes)
    assert choice.chosen == measure(widths)
    assert choice.measured[widths] == choice.chosen
    assert choice.share <= 1.05 * budget.value + 1e-9
    assert set(widths) <= {w for own in allowed_widths(budget, layout) for w in own}
    assert len(choice.measured) <= 2 + BUNDLES + CORRECTIONS


@settings(deadline=None)
@given(
    st.lists(st.integers(64, 256), min_size=3, max_size=20),
    st.floats(0.25, 0.95),
    st.sampled_from([0.0, 0.05]),
    st.sampled_from([1, 4]),
    st.sampled_from([0.0, 0.01]),
)
def test_the_budget_is_met(
    sizes: list[int], value: float, fixed: float, block: int, noise: float
) -> None:
    layout, cost = chain(tuple(sizes))
    budget = Budget("latency", value, round_to=1)
    measure = clock(cost, fixed, block, noise)
    asking, asked = counted(measure)
    choice = choose(budget, layout, cost, asking)
    check(choice, budget, layout, measure)
    assert set(asked) == set(choice.measured)
    if block == 1:
        assert choice.met
    assert choice.share >= 0.8 * value


def test_time_that_hangs_on_one_group_only() -> None:
    layout, cost = chain((64, 64, 64, 64))

    def measure(widths: Widths) -> float:
        return 0.2 + 0.8 * widths[1] / 64

    choice = choose(Budget("latency", 0.5), layout, cost, measure)
    assert choice.met
    assert choice.budget.widths[1] / 64 == pytest.approx(0.375, abs=0.05)
    assert max(choice.budget.widths) - min(choice.budget.widths) <= 2, "all keep the same share"


def test_where_rounding_leaves_no_choice_the_widths_are_below_the_budget() -> None:
    layout, cost = chain((16, 16))
    measure = clock(cost)
    budget = Budget("latency", 0.6, round_to=8)
    choice = choose(budget, layout, cost, measure)
    check(choice, budget, layout, measure)
    assert not choice.met
    assert choice.share < 0.6


def test_all_of_it_needs_no_search() -> None:
    layout, cost = chain((16, 16))
    asking, asked = counted(clock(cost))
    choice = choose(Budget("latency", 1.0), layout, cost, asking)
    assert choice.budget.widths == (16, 16)
    assert asked == [(16, 16)]


def test_what_is_not_possible_is_refused() -> None:
    layout, cost = chain((16, 16), pinned=100_000)
    with pytest.raises(BudgetError) as caught:
        choose(Budget("latency", 0.5, round_to=8), layout, cost, clock(cost))
    text = str(caught.value)
    assert text.startswith("the budget latency=0.5 cannot be met\n  why  with the smallest widths")
    assert text.endswith("do   raise the budget, or lower round_to")
    with pytest.raises(BudgetError, match="cannot be met"):
        choose(Budget("latency", 0.5, round_to=16), layout, cost, clock(cost))


def test_the_widths_belong_to_the_budget() -> None:
    layout, cost = chain((16, 32))
    budget = Budget("latency", 0.4, 4, widths=(8, 12))
    assert str(budget) == "latency=0.4,widths=8/12"
    assert Budget.parse(str(budget), 4) == budget
    assert uniform_widths(budget, layout, cost) == (8, 12)
    assert budget.at(0.4, layout.sizes) is not budget.at(0.7, layout.sizes)
    assert uniform_widths(budget.at(0.4, layout.sizes), layout, cost) == (8, 12)
    assert uniform_widths(budget.at(0.7, layout.sizes), layout, cost) == (12, 20)
    assert uniform_widths(budget.at(1.0, layout.sizes), layout, cost) == (16, 32)
    with pytest.raises(BudgetError, match=r"latency=0\.4 has not been measured"):
        uniform_widths(Budget("latency", 0.4), layout, cost)
    for widths in ((8,), (8, 33)):
        with pytest.raises(BudgetError, match="does not fit the channel groups"):
            uniform_widths(Budget("latency", 0.4, widths=widths), layout, cost)


def test_a_policy_that_allocates_keeps_the_widths_that_were_measured() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3))
    policy = "utility{warmup=1,reallocate=1}"
    gated = fxprune.instrument(model, (torch.zeros(2, 3, 9, 9),), policy, "latency=0.5,widths=3")
    optimizer = torch.optim.SGD(gated.parameters(), lr=0.1)
    fxprune.attach(gated, optimizer)
    seen = []
    for _ in range(4):
        seen.append(gated.widths)
        gated(torch.randn(2, 3, 9, 9)).square().mean().backward()
        optimizer.step()
    assert seen == [(8,), (3,), (3,), (3,)]


@pytest.mark.slow
def test_with_onnx_runtime(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It completes, its figures are consistent, and nothing is measured twice."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    model = nn.Sequential(
        *(nn.Conv2d(3, 32, 3, padding=1), nn.ReLU()),
        *(nn.Conv2d(32, 32, 3, padding=1), nn.ReLU(), nn.Conv2d(32, 4, 1)),
    )
    inputs = (torch.zeros(2, 3, 24, 24),)
    budget = Budget("latency", 0.7, round_to=8)
    choice = api.fit_latency(model, inputs, budget)
    assert all(seconds > 0 for seconds in choice.measured.values())
    assert choice.chosen == choice.measured[choice.budget.widths]
    assert choice.dense == choice.measured[32, 32]
    assert choice.share <= 1.05 * 0.7
    (file,) = (tmp_path / "fxprune" / "latency").iterdir()
    before = file.stat().st_mtime_ns
    gated = fxprune.instrument(model, inputs, budget="latency=0.7", round_to=8)
    assert gated.widths == choice.budget.widths
    assert file.stat().st_mtime_ns == before
    fxprune.save(gated, tmp_path / "gated.safetensors")
    file.unlink()
    again = fxprune.load(tmp_path / "gated.safetensors", model)  # as it was, without measuring
    assert again.widths == gated.widths
    assert not file.exists()


@pytest.mark.parametrize("content", ["[]", "null", '{"8": -1.0}', '{"8": "fast"}', '{"8": NaN}'])
def test_damaged_measurements(
    content: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 1))
    inputs = (torch.zeros(2, 3, 8, 8),)
    api.fit_latency(model, inputs, Budget("latency", 1.0))
    (file,) = (tmp_path / "fxprune" / "latency").iterdir()
    file.write_text(content)
    with pytest.raises(RunError, match="does not hold seconds by widths\n  do   delete it"):
        api.fit_latency(model, inputs, Budget("latency", 1.0))
