"""Schedules fall from all channels to the budget, in few jumps, and are exact at both ends."""

import copy
import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import fxprune
from fxprune.budget.budget import Budget
from fxprune.budget.schedule import KNOWN, Constant, Cubic, Linear, Schedule, StepSchedule, parse
from fxprune.budget.widths import uniform_widths
from fxprune.errors import BudgetError, OptionError
from fxprune.gated.module import GatedModule
from fxprune.registry import to_text


def small(**settings: object) -> GatedModule:
    model = nn.Sequential(
        *(nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU()),
        *(nn.Conv2d(16, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU()),
        nn.Conv2d(32, 4, 3, padding=1),
    )
    return fxprune.instrument(model, (torch.zeros(2, 1, 6, 6),), **settings)  # type: ignore[arg-type]


def step(gated: GatedModule, optimizer: torch.optim.Optimizer) -> None:
    loss = gated(torch.randn(4, 1, 6, 6)).square().mean()
    optimizer.zero_grad()
    loss.backward()
    assert all(p.grad is None or p.grad.shape == p.shape for p in gated.parameters())
    optimizer.step()


@st.composite
def schedules(draw: st.DrawFn) -> Schedule:
    begin, end = sorted(draw(st.lists(st.floats(0, 1), min_size=2, max_size=2)))
    cls = draw(st.sampled_from([Linear, Cubic]))
    return cls(begin, end, draw(st.integers(1, 100)))


@given(schedules(), st.floats(0.01, 1), st.integers(1, 5000))
def test_a_plan_falls_from_everything_to_the_budget(
    schedule: Schedule, budget: float, steps: int
) -> None:
    pace = schedule.plan(budget, steps)
    shares = [pace.share(step) for step in range(steps + 1)]
    assert all(one >= two for one, two in itertools.pairwise(shares))
    assert len(set(shares)) <= schedule.changes + 1
    assert shares[-1] == budget
    for step, share in enumerate(shares):
        if step < schedule.begin * steps - 1e-6:
            assert share == 1
        if step >= schedule.end * steps:
            assert share == budget
    assert pace.starts[0] == 0
    assert list(pace.starts) == sorted(set(pace.starts))


def test_the_shares_of_zhu_and_gupta() -> None:
    pace = Cubic(begin=0.2, end=0.6, changes=4).plan(0.5, 1000)
    assert pace.starts == (0, 300, 400, 500, 600)
    expected = [1.0, *(0.5 + 0.5 * (1 - i / 4) ** 3 for i in (1, 2, 3)), 0.5]
    assert pace.shares == pytest.approx(expected)
    assert Linear(0.2, 0.6, 4).plan(0.5, 1000).shares == pytest.approx((1, 0.875, 0.75, 0.625, 0.5))
    assert Constant().plan(0.3, 1000).shares == (0.3,)


@given(schedules())
def test_text_round_trip(schedule: Schedule) -> None:
    assert parse(to_text(schedule)) == schedule
    assert parse(schedule) is schedule


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("square", "unknown budget schedule 'square'\n  do   known: constant, linear, cubic"),
        ("cubic{to=1}", "the budget schedule 'cubic' has no option 'to'"),
        ("cubic{begin=0.6}", "a budget schedule cannot begin at 0.6 and end at 0.5"),
        ("linear{end=nan}", "a budget schedule cannot begin at 0.0 and end at nan"),
        ("linear{changes=0}", "a budget schedule cannot have 0 changes"),
        ("linear{changes=1000}", "a budget schedule cannot have 1000 changes"),
    ],
)
def test_bad_texts_are_refused(text: str, message: str) -> None:
    with pytest.raises(OptionError) as caught:
        parse(text)
    assert str(caught.value).startswith(message)


@pytest.mark.parametrize("name", KNOWN)
def test_a_loop_of_ones_own(name: str) -> None:
    text = name if name == "constant" else f"{name}{{begin=0.2,end=0.6,changes=5}}"
    gated = small(budget="macs=0.3", round_to=1)
    final = gated.widths
    optimizer = torch.optim.SGD(gated.parameters(), lr=0.01, momentum=0.9)
    fxprune.attach(gated, optimizer, schedule=text, steps=50)
    pace = parse(text).plan(0.3, 50)
    seen = []
    for _ in range(50):
        share = pace.share(gated.steps)
        wanted = Budget("macs", share, round_to=1)
        assert gated.widths == uniform_widths(wanted, gated.channels.layout, gated.cost)
        seen.append(gated.widths)
        step(gated, optimizer)
        for parameter, state in optimizer.state.items():
            assert state["momentum_buffer"].shape == parameter.shape
    assert seen[-1] == gated.widths == final
    assert (seen[0] == (16, 32)) == (name != "constant")
    assert len(set(seen)) == (1 if name == "constant" else 6)
    assert gated.eval().widths == final


def test_what_evaluation_shows_is_the_budget_from_the_start() -> None:
    gated = small(budget="keep=0.25")
    optimizer = torch.optim.SGD(gated.parameters(), lr=0.01)
    fxprune.attach(gated, optimizer, schedule="linear", steps=100)
    step(gated, optimizer)
    assert gated.widths == (16, 32)
    assert gated.eval().widths == (4, 8)
    gated.spend(0.5)
    assert gated.widths == (4, 8)
    assert gated.train().widths == (8, 16)
    compact = fxprune.shrink(gated)
    assert sum(p.numel() for p in compact.parameters()) == gated.cost.params((4, 8))
    gated.settle()
    gated.spend(0.5)  # without effect now
    assert gated.widths == (4, 8)


def test_the_fall_begins_with_all_channels_whatever_the_mode() -> None:
    gated = small(budget="keep=0.25").eval()
    optimizer = torch.optim.SGD(gated.parameters(), lr=0.01)
    fxprune.attach(gated, optimizer, schedule="linear", steps=100)
    assert gated.widths == (4, 8)
    assert gated.train().widths == (16, 32)


def test_a_policy_that_allocates_takes_the_share_of_its_time() -> None:
    gated = small(budget="macs=0.3", policy="utility{warmup=4,reallocate=3}")
    optimizer = torch.optim.SGD(gated.parameters(), lr=0.01)
    fxprune.attach(gated, optimizer, schedule="linear{end=0.5,changes=4}", steps=40)
    pace = Linear(end=0.5, changes=4).plan(0.3, 40)
    for _ in range(40):
        warm = gated.steps < 4
        share = 1.0 if warm else pace.share(gated.steps)
        macs = gated.cost.macs(gated.widths) / gated.cost.dense_macs
        assert share - 0.1 < macs <= share + 1e-9
        step(gated, optimizer)


def test_a_copy_and_a_saved_network_know_the_share() -> None:
    gated = small(budget="keep=0.25")
    gated.spend(0.75)
    assert gated.widths == (12, 24)
    other = small(budget="keep=0.25")
    other.restore(gated.training_state())
    for twin in (other, copy.deepcopy(gated)):
        assert twin.widths == (12, 24)
        twin.spend(0.25)
        assert twin.widths == (4, 8)
    older = small(budget="keep=0.25").training_state()
    del older["share"]  # files from before there were schedules
    gated.restore(older)
    assert gated.widths == (4, 8)
    gated.spend(0.75)
    assert gated.widths == (12, 24)


def test_what_is_refused() -> None:
    gated = small(budget="keep=0.5")
    optimizer = torch.optim.SGD(gated.parameters(), lr=0.01)
    for share in (0.4, 1.5, float("nan")):
        with pytest.raises(BudgetError, match=r"give a share from 0\.5 to 1"):
            gated.spend(share)
    with pytest.raises(OptionError, match="a schedule cannot be planned for no steps"):
        fxprune.attach(gated, optimizer, schedule="cubic")
    with pytest.raises(OptionError, match="unknown budget schedule 'quick'"):
        fxprune.attach(gated, optimizer, schedule="quick", steps=10)


@pytest.mark.parametrize(
    ("starts", "shares"),
    [((), ()), ((3,), (0.5,)), ((0, 5, 5), (1.0, 0.7, 0.5)), ((0, 5), (1.0,))],
)
def test_steps_that_do_not_rise_from_0_are_refused(
    starts: tuple[int, ...], shares: tuple[float, ...]
) -> None:
    with pytest.raises(OptionError, match="give steps that rise from 0, and a share for each"):
        StepSchedule(starts, shares)
