"""Budgets are met from below, within one rounding step, and refused in plain words."""

import itertools
import math
from typing import Literal

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fxprune.budget.budget import Budget, rounding_step
from fxprune.budget.widths import global_widths, uniform_widths
from fxprune.channels.cost import CostModel
from fxprune.channels.graph import Factor, Layout, Term
from fxprune.errors import BudgetError
from tests.support.chains import Case, chain

Kind = Literal["keep", "macs", "params"]


@st.composite
def cases(draw: st.DrawFn) -> Case:
    sizes = tuple(draw(st.lists(st.integers(1, 40), min_size=1, max_size=5)))
    scales = draw(st.lists(st.integers(1, 64), min_size=len(sizes) + 1, max_size=len(sizes) + 1))
    return chain(sizes, tuple(scales))


kinds = st.sampled_from(["keep", "macs", "params"])
values = st.floats(0.01, 1.0)
steps = st.sampled_from([None, 1, 2, 8])
floors = st.sampled_from([0.0, 0.05, 0.3])


def count(kind: str, cost: CostModel, widths: tuple[int, ...]) -> int:
    if kind == "keep":
        return sum(widths)
    return cost.macs(widths) if kind == "macs" else cost.params(widths)


def exact(kind: Kind, value: float, floor: float = Budget.floor) -> Budget:
    """A budget whose widths are not rounded."""
    return Budget(kind, value, 1, floor)


def one_step_wider(widths: tuple[int, ...], layout: Layout, budget: Budget) -> tuple[int, ...]:
    steps = [rounding_step(budget.round_to, size) for size in layout.sizes]
    return tuple(min((w // step + 1) * step, n) for w, n, step in zip(widths, layout.sizes, steps))


def check_met(budget: Budget, layout: Layout, cost: CostModel, widths: tuple[int, ...]) -> None:
    """From below, and above it one rounding step wider; widths are allowed ones."""
    limit = budget.value * count(budget.kind, cost, layout.sizes) + 1e-6
    assert count(budget.kind, cost, widths) <= limit
    wider = one_step_wider(widths, layout, budget)
    assert widths == layout.sizes or count(budget.kind, cost, wider) > limit
    for width, size in zip(widths, layout.sizes):
        assert width == size or width % rounding_step(budget.round_to, size) == 0
        assert 1 <= width <= size


# --- uniform -----------------------------------------------------------------------------------


def test_keep_gives_every_group_its_share() -> None:
    layout, cost = chain((16, 32, 64))
    assert uniform_widths(exact("keep", 0.5), layout, cost) == (8, 16, 32)
    assert uniform_widths(exact("keep", 0.3), layout, cost) == (4, 9, 19)
    assert uniform_widths(Budget("keep", 0.5, round_to=16), layout, cost) == (16, 16, 32)
    assert uniform_widths(exact("keep", 0.01), layout, cost) == (1, 1, 1)
    assert uniform_widths(Budget("keep", 1.0, round_to=24), layout, cost) == (16, 32, 64)


def test_shares_that_are_whole_numbers_are_not_lost_to_floating_point() -> None:
    layout, cost = chain((100, 10))
    assert 0.29 * 100 < 29
    assert uniform_widths(exact("keep", 0.29), layout, cost) == (29, 2)


def test_a_quarter_of_the_macs_is_half_of_the_channels() -> None:
    layout = Layout((64, 64))
    square = Term("conv", 9, (Factor(0, ((0, 1),)), Factor(0, ((1, 1),))))
    cost = CostModel((square,), (square,), layout.sizes)
    assert uniform_widths(exact("macs", 0.25), layout, cost) == (32, 32)


def test_what_is_left_over_widens_single_groups() -> None:
    layout = Layout((4, 4))
    terms = tuple(Term("t", scale, (Factor(0, ((g, 1),)),)) for g, scale in enumerate((10, 3)))
    cost = CostModel(terms, (), layout.sizes)
    # 26 of 52 buys 2 and 2; of 29.1 the first group's next step (10) does not fit, b's (3) does.
    assert uniform_widths(exact("macs", 0.56), layout, cost) == (2, 3)


@given(cases(), values, steps)
def test_uniform_keep_is_within_one_step_in_each_group(
    case: Case, value: float, round_to: int | None
) -> None:
    layout, cost = case
    widths = uniform_widths(Budget("keep", value, round_to), layout, cost)
    for width, size in zip(widths, layout.sizes, strict=True):
        step = rounding_step(round_to, size)
        assert width <= value * size + 1e-6 or width == min(step, size)
        assert width == size or width + step > value * size
        assert width == size or width % step == 0


@given(cases(), st.sampled_from(["macs", "params"]), values, steps)
def test_uniform_budgets_are_met(case: Case, kind: Kind, value: float, step: int | None) -> None:
    budget = Budget(kind, value, step)
    try:
        widths = uniform_widths(budget, *case)
    except BudgetError:
        least = tuple(min(rounding_step(step, size), size) for size in case[0].sizes)
        assert not budget.fits(least, case[1])
        return
    check_met(budget, *case, widths)


@given(cases(), st.sampled_from(["macs", "params"]), values)
def test_uniform_widths_share_one_ratio(case: Case, kind: Kind, value: float) -> None:
    layout, cost = case
    try:
        widths = uniform_widths(exact(kind, value), layout, cost)
    except BudgetError:
        return
    # Every group holds more than (w - 1) / n and less than (w + 1) / n of its channels, w being
    # the width of any other at its own n, give or take the extra step that was left over.
    low = max((w - 2) / n for w, n in zip(widths, layout.sizes))
    high = min((w + 1) / n if w < n else math.inf for w, n in zip(widths, layout.sizes))
    assert low < high


@given(cases(), kinds, values, values, steps)
def test_a_larger_budget_never_buys_less(
    case: Case, kind: Kind, one: float, two: float, step: int | None
) -> None:
    layout, cost = case
    small, large = Budget(kind, min(one, two), step), Budget(kind, max(one, two), step)
    try:
        narrow = uniform_widths(small, layout, cost)
    except BudgetError:
        return
    assert count(kind, cost, narrow) <= count(kind, cost, uniform_widths(large, layout, cost))


# --- global ------------------------------------------------------------------------------------


def test_the_best_channels_of_the_whole_network_stay() -> None:
    layout, cost = chain((4, 4))
    scores = torch.tensor([0.9, 0.1, 0.8, 0.7, 0.2, 0.6, 0.3, 0.0])
    assert global_widths(exact("keep", 0.5), layout, cost, scores) == (3, 1)
    assert global_widths(exact("keep", 0.75), layout, cost, scores) == (3, 3)


def test_a_group_never_falls_below_its_floor() -> None:
    layout, cost = chain((10, 10))
    scores = torch.cat([torch.ones(10), torch.zeros(10)])
    assert global_widths(exact("keep", 0.5), layout, cost, scores) == (9, 1)
    assert global_widths(exact("keep", 0.5, floor=0.3), layout, cost, scores) == (7, 3)
    assert global_widths(Budget("keep", 0.5, 4, floor=0.3), layout, cost, scores) == (4, 4)


def test_rounding_weighs_the_mean_of_a_step() -> None:
    layout, cost = chain((4, 4))
    scores = torch.tensor([0.9, 0.8, 0.5, 0.0, 0.9, 0.8, 0.3, 0.3])  # 0.25 against 0.3
    assert global_widths(Budget("keep", 0.75, 2), layout, cost, scores) == (2, 4)


def test_a_last_step_that_is_shorter_is_weighed_by_its_mean_too() -> None:
    layout, cost = chain((8, 6))
    scores = torch.tensor([1.0] * 4 + [0.4] * 4 + [1.0] * 4 + [0.7] * 2)  # sums 1.6 and 1.4
    assert global_widths(Budget("keep", 12 / 14, 4), layout, cost, scores) == (4, 6)


def test_equal_scores_climb_step_by_step() -> None:
    layout, cost = chain((19,))
    scores = torch.full((19,), 0.1, dtype=torch.float64)  # its mean over 3 can exceed that over 8
    assert global_widths(Budget("keep", 0.9, 8), layout, cost, scores) == (16,)


def test_scores_that_are_not_finite_take_their_place_in_the_order() -> None:
    layout, cost = chain((3, 3))
    scores = torch.tensor([math.nan, math.nan, 0.1, 0.0, math.inf, -math.inf])
    assert global_widths(exact("keep", 0.5), layout, cost, scores) == (1, 2)


@given(cases(), kinds, values, steps, floors, st.data())
def test_global_budgets_are_met_and_floors_hold(
    case: Case, kind: Kind, value: float, round_to: int | None, floor: float, data: st.DataObject
) -> None:
    layout, cost = case
    score = st.floats(-2, 2, width=32) | st.just(0.5)
    scores = torch.tensor(data.draw(st.lists(score, min_size=layout.total, max_size=layout.total)))
    budget = Budget(kind, value, round_to, floor)
    steps = ((rounding_step(round_to, n), n) for n in layout.sizes)
    floors = tuple(min(max(s, math.ceil(floor * n / s - 1e-6) * s), n) for s, n in steps)
    try:
        widths = global_widths(budget, layout, cost, scores)
    except BudgetError:
        assert not budget.fits(floors, cost)
        return
    check_met(budget, layout, cost, widths)
    assert all(width >= least for width, least in zip(widths, floors))


@given(cases(), values, st.data())
def test_where_channels_are_counted_only_the_order_of_the_scores_matters(
    case: Case, value: float, data: st.DataObject
) -> None:
    layout, cost = case
    order = data.draw(st.permutations(range(layout.total)))
    scores = torch.tensor(order, dtype=torch.float64)
    budget = exact("keep", value, floor=0.0)
    try:
        widths = global_widths(budget, layout, cost, scores)
    except BudgetError:
        return
    assert widths == global_widths(budget, layout, cost, (scores / 10).exp())


def test_a_channel_must_be_worth_its_price() -> None:
    """Two convolutions in a row whose channels have the same scores; the first sees 4 x as many
    positions, so a channel of the first group costs 4 x the macs and the same params."""
    layout, cost = chain((8, 8), scales=(16, 1, 1))
    scores = torch.cat([torch.linspace(2, 1, 8)] * 2)
    assert cost.macs((8, 8)) - cost.macs((4, 8)) > cost.macs((8, 8)) - cost.macs((8, 4))
    narrow, wide = global_widths(exact("macs", 0.5), layout, cost, scores)
    assert narrow < wide
    assert global_widths(exact("keep", 0.5), layout, cost, scores) == (4, 4)
    dear = torch.cat([10 * scores[:8], scores[8:]])
    assert global_widths(exact("macs", 0.7), layout, cost, dear)[0] > narrow


def test_the_less_is_left_of_a_group_the_more_its_next_channel_is_worth() -> None:
    """The same scores for the same price, but for a tenth: none keeps all at the other's cost."""
    layout, cost = chain((64, 64))
    scores = torch.cat([torch.full((64,), 1.0), torch.full((64,), 1.1)])
    narrow, wide = global_widths(exact("macs", 0.4), layout, cost, scores)
    assert 0.8 * wide < narrow <= wide


@given(cases(), kinds, values, values, st.data())
def test_a_larger_global_budget_never_buys_less(
    case: Case, kind: Kind, one: float, two: float, data: st.DataObject
) -> None:
    layout, cost = case
    scores = torch.tensor(data.draw(st.permutations(range(layout.total))), dtype=torch.float32)
    try:
        narrow = global_widths(exact(kind, min(one, two)), layout, cost, scores)
    except BudgetError:
        return
    wide = global_widths(exact(kind, max(one, two)), layout, cost, scores)
    assert count(kind, cost, narrow) <= count(kind, cost, wide)


def walked(budget: Budget, case: Case, shares: list[list[float]]) -> tuple[int, ...]:
    """The module's rule for round_to = 1 without its bisection: one walk, step by step.

    Args:
        budget: the budget.
        case: groups and costs.
        shares: for each group the urgency of its 1st, 2nd, … channel; falling.
    """
    layout, cost = case
    widths = [1] * len(layout.sizes)
    steps = sorted(
        (-share, group, place)
        for group, part in enumerate(shares)
        for place, share in enumerate(part, start=1)
        if place > 1
    )
    tried: set[int] | None = None  # none while everything was paid so far
    for _, group, place in steps:
        if tried is not None and group in tried:
            continue
        wider = (*widths[:group], place, *widths[group + 1 :])
        fits = budget.fits(wider, cost)
        if not fits and tried is None:
            tried = set()
        if tried is not None:
            tried.add(group)
        if fits:
            widths[group] = place
    return tuple(widths)


@given(cases(), st.sampled_from(["macs", "params"]), values, st.data())
def test_widths_are_those_of_a_plain_walk(
    case: Case, kind: Kind, value: float, data: st.DataObject
) -> None:
    layout, cost = case
    budget = exact(kind, value, floor=0.0)
    if not budget.fits((1,) * len(layout.sizes), cost):
        return
    even = [[-place / n for place in range(1, n + 1)] for n in layout.sizes]
    assert uniform_widths(budget, layout, cost) == walked(budget, case, even)

    order = data.draw(st.permutations(range(layout.total)))
    scores = torch.tensor(order, dtype=torch.float32)
    ranked = []
    for group, part in enumerate(torch.split(scores, list(layout.sizes))):
        size = layout.sizes[group]
        half = max(size // 2, 1)
        narrow = (*layout.sizes[:group], half, *layout.sizes[group + 1 :])
        saved = count(kind, cost, layout.sizes) - count(kind, cost, narrow)
        price = saved / max(size - half, 1) or 1e-6
        kept = list(itertools.accumulate(sorted(part.tolist(), reverse=True)))
        left = [kept[-1] / part if part else 1.0 for part in kept]  # 0: a single channel's
        gains = [kept[-1] * (low - high) for low, high in itertools.pairwise(left)]
        ranked.append([math.inf, *(gain / price for gain in gains)])
    assert global_widths(budget, layout, cost, scores) == walked(budget, case, ranked)


# --- both --------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["keep", "macs", "params"])
def test_all_of_it_is_the_dense_network(kind: Kind) -> None:
    layout, cost = chain((5, 17, 8))
    assert uniform_widths(Budget(kind, 1.0, 8), layout, cost) == layout.sizes
    assert global_widths(Budget(kind, 1.0, 8), layout, cost, torch.randn(30)) == layout.sizes


def test_a_network_without_groups() -> None:
    layout, cost = chain((), pinned=10)
    assert uniform_widths(exact("keep", 0.5), layout, cost) == ()
    with pytest.raises(BudgetError, match=r"the least possible is macs=1:"):
        uniform_widths(exact("macs", 0.5), layout, cost)
    with pytest.raises(BudgetError, match=r"the least possible is macs=1:"):
        global_widths(exact("macs", 0.5), layout, cost, torch.zeros(0))


def test_what_the_pinned_channels_cost_cannot_be_saved() -> None:
    layout, cost = chain((8, 8), pinned=1440)  # 9 * (3 * 8 + 8 * 8 + 8 * 10) + 1440 = 2952
    with pytest.raises(BudgetError) as error:
        uniform_widths(exact("macs", 0.5), layout, cost)
    assert str(error.value) == (
        "the budget macs=0.5 cannot be met\n"
        "  why  the least possible is macs=0.5305: pinned channels stay, and each of the 2 groups "
        "keeps its smallest width\n"
        "  do   raise the budget, or lower its floor or round_to"
    )
    assert uniform_widths(exact("macs", 0.5305), layout, cost) == (1, 1)


def test_share_is_what_the_widths_really_cost() -> None:
    _, cost = chain((8, 8))
    assert exact("keep", 0.5).share((4, 2), cost) == 6 / 16
    assert exact("macs", 0.5).share((4, 2), cost) == (12 + 8 + 20) / (24 + 64 + 80)


# --- text --------------------------------------------------------------------------------------


@given(kinds, st.floats(0, 1, exclude_min=True), st.floats(0, 1))
def test_text_round_trip(kind: Kind, value: float, floor: float) -> None:
    budget = Budget(kind, value, floor=floor)
    assert Budget.parse(str(budget)) == budget


def test_parse() -> None:
    assert Budget.parse(" macs = 0.25 ", round_to=8) == Budget("macs", 0.25, 8)
    assert Budget.parse("keep=0.5,floor=0.2") == Budget("keep", 0.5, floor=0.2)
    budget = Budget("params", 0.11, 4)
    assert Budget.parse(budget) is budget
    assert Budget.parse(budget, round_to=8) == Budget("params", 0.11, 8)
    assert Budget.parse("speedup=2") == Budget("latency", 0.5)
    assert str(Budget.parse("speedup=4,widths=8/16")) == "latency=0.25,widths=8/16"


OUT_OF_RANGE = "is out of range\n  why  it is a share of the dense network: above 0 and at most 1"
HOW = (
    "write keep=…, macs=…, params=… or latency=… with a share of the dense network, such as "
    "keep=0.5, or speedup=2 for latency=0.5"
)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("keep=0", f"the budget keep=0.0 {OUT_OF_RANGE}\n  do   {HOW}"),
        ("keep=1.5", f"the budget keep=1.5 {OUT_OF_RANGE}"),
        ("macs=50", f"the budget macs=50.0 {OUT_OF_RANGE}\n  do   write macs=0.5 for 50 %"),
        ("macs=-0.1", f"the budget macs=-0.1 {OUT_OF_RANGE}"),
        ("params=nan", f"the budget params=nan {OUT_OF_RANGE}"),
        ("keep=inf", f"the budget keep=inf {OUT_OF_RANGE}"),
        ("speedup=0.5", "a speedup cannot be 0.5\n  why  it says how many times"),
        ("speedup=inf", "a speedup cannot be inf"),
        ("flops=0.5", f"unknown budget 'flops'\n  do   {HOW}"),
        ("keep=0.5,widths=4", "the budget keep=0.5,widths=4 cannot have widths"),
        ("latency=0.5,widths=4/a", "cannot read the budget 'latency=0.5,widths=4/a'"),
        ("0.5", f"cannot read the budget '0.5'\n  do   {HOW}"),
        ("", f"cannot read the budget ''\n  do   {HOW}"),
        ("keep=half", "cannot read the budget 'keep=half'\n  why  'half' is not a number"),
        ("keep=0.5 macs=0.2", "cannot read the budget 'keep=0.5 macs=0.2'"),
        ("keep=0.5,floor=2", "the floor of a budget cannot be 2.0\n  do   give the share"),
        ("keep=0.5,floor=x", "cannot read the budget 'keep=0.5,floor=x'\n  why  'x' is not"),
    ],
)
def test_bad_texts_are_refused(text: str, message: str) -> None:
    with pytest.raises(BudgetError) as error:
        Budget.parse(text)
    assert str(error.value).startswith(message)


def test_bad_fields_are_refused() -> None:
    with pytest.raises(BudgetError, match="round_to cannot be 0"):
        Budget.parse("keep=0.5", round_to=0)
    with pytest.raises(BudgetError, match="the budget keep=nan is out of range"):
        Budget("keep", math.nan)
    with pytest.raises(BudgetError, match="unknown budget 'flops'"):
        Budget("flops", 0.5)  # type: ignore[arg-type]
