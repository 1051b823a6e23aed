"""Balance: widths move to where a channel is worth most, channels stay in their order."""

import math
import random

import pytest
import torch
from torch import Tensor

from fxprune.budget.budget import Budget
from fxprune.budget.widths import global_widths, uniform_widths
from fxprune.channels.cost import CostModel
from fxprune.channels.graph import Layout
from fxprune.policies import parse, top
from fxprune.policies.balance import RESTING, Balance
from fxprune.policies.base import State

LAYOUT = Layout((16, 16, 8))
COST = CostModel((), (), LAYOUT.sizes)
HALF = Budget("keep", 0.5, round_to=1)


def worth(widths: tuple[int, ...], value: tuple[float, ...]) -> Tensor:
    """Saliencies of a selection of these widths: each place of a group is worth less."""
    return torch.tensor([v * 0.8**i for v, w in zip(value, widths) for i in range(w)])


def played(
    policy: Balance, value: tuple[float, ...], rounds: int
) -> tuple[State, list[tuple[int, ...]], list[Tensor]]:
    """Trains as the chooser does: ten steps, then new widths, and so on."""
    state = policy.start(LAYOUT, torch.rand(LAYOUT.total), 0)
    widths = uniform_widths(HALF, LAYOUT, COST)
    seen, selections = [widths], []
    for _ in range(rounds):
        for _ in range(10):
            chosen = top(policy.score(state, LAYOUT, True), LAYOUT, widths)
            policy.observe(state, LAYOUT, chosen, worth(widths, value))
        selections.append(chosen)
        widths = global_widths(HALF, LAYOUT, COST, policy.score(state, LAYOUT, True))
        seen.append(widths)
    return state, seen, selections


def test_widths_move_to_where_a_channel_is_worth_most() -> None:
    """The least of each group are worth the same where the first has 6 more than the second.

    And 2 more than the third; a group of 11 grows by 2 at a time, so it may be 2 off.
    """
    _, seen, _ = played(Balance(), (1.0, 0.8**6, 0.8**2), 12)
    assert seen[0] == (8, 8, 4)
    wide, narrow, middle = seen[-1]
    assert wide + narrow + middle == 20
    assert abs(wide - narrow - 6) <= 2
    assert abs(wide - middle - 2) <= 3


def test_a_group_grows_by_a_share_of_its_width_at_a_time() -> None:
    _, seen, _ = played(Balance(grow=0.25), (1.0, 1e-4, 1e-4), 3)
    assert [widths[0] for widths in seen] == [8, 10, 13, 16]


def test_widths_move_in_rounding_steps_too() -> None:
    """A group may enter a step of which only a part is near: its mean is what the step is worth."""
    layout = Layout((64, 64))
    cost, budget = CostModel((), (), layout.sizes), Budget("keep", 0.5)
    policy = Balance()
    state = policy.start(layout, torch.rand(layout.total), 0)
    widths = uniform_widths(budget, layout, cost)
    seen = [widths]
    for _ in range(3):
        chosen = top(policy.score(state, layout, True), layout, widths)
        saliency = torch.cat([torch.full((w,), v) for v, w in zip((1.0, 0.01), widths)])
        policy.observe(state, layout, chosen, saliency)
        widths = global_widths(budget, layout, cost, policy.score(state, layout, True))
        seen.append(widths)
    assert seen == [(32, 32), (40, 24), (48, 16), (56, 8)]


def test_channels_come_in_the_order_of_their_weights() -> None:
    state, seen, selections = played(Balance(), (1.0, 0.3, 0.6), 6)
    order = top(state["prior"], LAYOUT, LAYOUT.sizes)
    for widths, selection in zip(seen, selections):
        groups = order.split(list(LAYOUT.sizes))
        assert torch.equal(selection, torch.cat([g[:w] for g, w in zip(groups, widths)]))


def test_export_takes_the_channels_that_execute() -> None:
    policy = Balance()
    for rounds in (1, 2, 5):
        state, seen, _ = played(policy, (1.0, 0.3, 0.6), rounds)
        assert global_widths(HALF, LAYOUT, COST, policy.score(state, LAYOUT, False)) == seen[-2]


def test_a_step_of_which_nothing_is_finite_moves_no_widths() -> None:
    policy = Balance()
    state, seen, selections = played(policy, (1.0, 0.3, 0.6), 5)
    before = policy.score(state, LAYOUT, True)
    policy.observe(state, LAYOUT, selections[-1], torch.full((sum(seen[-2]),), math.nan))
    assert torch.equal(policy.score(state, LAYOUT, True), before)


@pytest.mark.parametrize("explore", [True, False])
def test_the_score_is_that_of_a_loop_over_channels(explore: bool) -> None:
    chance = random.Random(2)
    policy = parse("balance{decay=0.9,grow=0.3}")
    assert isinstance(policy, Balance)
    state = policy.start(LAYOUT, torch.rand(LAYOUT.total), 0)
    sums, weights = [0.0] * LAYOUT.total, [0.0] * LAYOUT.total
    for _ in range(6):
        widths = tuple(chance.randint(1, size) for size in LAYOUT.sizes)
        chosen = top(policy.score(state, LAYOUT, True), LAYOUT, widths)
        saliency = torch.tensor([chance.uniform(0.1, 1) for _ in chosen])
        policy.observe(state, LAYOUT, chosen, saliency)
        for channel, value in zip(chosen.tolist(), (saliency / saliency.sum()).tolist()):
            sums[channel] = 0.9 * sums[channel] + value
            weights[channel] = 0.9 * weights[channel] + 1
    wanted = [0.0] * LAYOUT.total
    executing = set(chosen.tolist())
    for offset, size in zip(LAYOUT.offsets, LAYOUT.sizes):
        group = sorted(range(offset, offset + size), key=lambda i: -float(state["prior"][i]))
        worths = sorted((sums[i] / weights[i] for i in group if i in executing), reverse=True)
        near = math.ceil(len(worths) * 1.3) if explore else 0
        for place, channel in enumerate(group):
            if place < len(worths):
                wanted[channel] = worths[place]
            elif place < near:
                wanted[channel] = worths[-1]
            elif explore or state["seen"][channel]:
                wanted[channel] = RESTING * worths[-1]
            else:
                wanted[channel] = float(state["prior"][channel]) - 2
    score = policy.score(state, LAYOUT, explore)
    torch.testing.assert_close(score, torch.tensor(wanted), rtol=1e-4, atol=1e-8)


def test_another_default_dtype() -> None:
    state = Balance().start(LAYOUT, torch.rand(LAYOUT.total), 0)
    torch.set_default_dtype(torch.float64)
    try:
        assert Balance().score(state, LAYOUT, True).dtype == torch.float32
    finally:
        torch.set_default_dtype(torch.float32)
