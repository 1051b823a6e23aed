"""Utility against the published code's rule, written out channel by channel."""

import math
import random

import pytest
import torch

from fxprune.budget.budget import Budget
from fxprune.budget.widths import global_widths
from fxprune.channels.cost import CostModel
from fxprune.channels.graph import Layout
from fxprune.policies import parse, top

LAYOUT = Layout((4, 7, 5))
COST = CostModel((), (), LAYOUT.sizes)
ALL = torch.arange(LAYOUT.total)


def groups() -> list[list[int]]:
    return [list(range(o, o + n)) for o, n in zip(LAYOUT.offsets, LAYOUT.sizes)]


def scaled(raw: list[float], executed: set[int], scale: str) -> list[float]:
    """v / max(v) or v / |v|_2 in each group; channels that do not execute have no gradient."""
    values = [raw[i] if i in executed else 0.0 for i in range(LAYOUT.total)]
    for group in groups():
        part = [values[i] for i in group]
        norm = max(part) if scale == "max" else math.sqrt(sum(v * v for v in part))
        for i in group:
            values[i] = values[i] / norm if norm else 0.0
    return values


@pytest.mark.parametrize("scale", ["max", "l2"])
def test_runs_as_the_published_code_does(scale: str) -> None:
    """10 of 16 channels execute after a warm-up; the learning rate is cut four times."""
    chance = random.Random(1)
    worth = [chance.uniform(0.6, 1.0) for _ in range(LAYOUT.total)]
    policy = parse(f"utility{{decay=0.6,scale={scale},reallocate=1,warmup=5}}")
    state = policy.start(LAYOUT, torch.rand(LAYOUT.total), 0)
    utility, decay = [0.0] * LAYOUT.total, 0.6
    executed = set(range(LAYOUT.total))
    churn = compared = 0
    for step in range(60):
        if step >= 5:
            before = executed
            ranked = sorted(range(LAYOUT.total), key=lambda i: -utility[i])
            executed = set(ranked[:10])  # the threshold is the 11th; strictly greater survives
            churn += len(before - executed)
        selection = torch.tensor(sorted(executed))
        if step >= 5 and all(executed & set(group) for group in groups()):
            score = policy.score(state, LAYOUT, True)
            widths = global_widths(Budget("keep", 10 / 16, 1, floor=0.0), LAYOUT, COST, score)
            assert torch.equal(top(score, LAYOUT, widths).sort().values, selection)
            compared += 1

        raw = [w * chance.uniform(0.2, 1.8) for w in worth]
        value = scaled(raw, executed, scale)
        utility = [
            (decay * u if i in executed else u) + v for i, (u, v) in enumerate(zip(utility, value))
        ]
        policy.observe(state, LAYOUT, selection, torch.tensor(raw)[selection])
        torch.testing.assert_close(
            policy.score(state, LAYOUT, False), torch.tensor(utility), rtol=1e-5, atol=1e-6
        )
        if step in (20, 30, 40, 50):
            policy.milestone(state)
            decay = min(decay + 0.1, 1.0)
    assert decay == pytest.approx(1.0)
    assert compared > 40
    assert churn > 10  # channels really leave and come back


def test_decay_ends_at_one() -> None:
    policy = parse("utility{decay=0.6}")
    layout = Layout((1,))
    seen = []
    for milestones in range(7):
        state = policy.start(layout, torch.ones(1), 0)
        for _ in range(milestones):
            policy.milestone(state)
        policy.observe(state, layout, torch.tensor([0]), torch.tensor([3.0]))  # U = 1
        policy.observe(state, layout, torch.tensor([0]), torch.tensor([0.0]))  # U = lambda
        seen.append(policy.score(state, layout, False).item())
    assert seen == pytest.approx([0.6, 0.7, 0.8, 0.9, 1.0, 1.0, 1.0])


def test_a_channel_that_rests_comes_back_when_the_others_fade() -> None:
    layout = Layout((3,))
    policy = parse("utility{decay=0.6,scale=max}")
    state = policy.start(layout, torch.ones(3), 0)
    policy.observe(state, layout, torch.arange(3), torch.tensor([1.0, 0.9, 0.8]))
    assert top(policy.score(state, layout, True), layout, (2,)).tolist() == [0, 1]
    policy.observe(state, layout, torch.tensor([0, 1]), torch.tensor([1.0, 0.1]))  # 1.6 and 0.64
    assert top(policy.score(state, layout, True), layout, (2,)).tolist() == [0, 2]


def test_a_layer_that_the_global_threshold_would_delete_keeps_its_floor() -> None:
    policy = parse("utility{decay=0.6,scale=max}")
    state = policy.start(LAYOUT, torch.ones(LAYOUT.total), 0)
    saliency = torch.full((LAYOUT.total,), 1.0)
    saliency[4:11] = 0.0  # the middle layer is silent: 0 / 0 without a guard
    for _ in range(10):
        policy.observe(state, LAYOUT, ALL, saliency)
    score = policy.score(state, LAYOUT, True)
    assert torch.equal(score[4:11], torch.zeros(7))
    assert global_widths(Budget("keep", 0.5, 1), LAYOUT, COST, score) == (4, 1, 3)
    assert global_widths(Budget("keep", 0.5, 1, floor=0.4), LAYOUT, COST, score) == (3, 3, 2)


def test_the_largest_of_each_layer_starves_the_layer_with_one_strong_channel() -> None:
    """Why it is not the default: a narrow even layer against a wide one with a long tail."""
    layout = Layout((4, 64))
    cost = CostModel((), (), layout.sizes)
    saliency = torch.cat([torch.tensor([1.0, 0.3, 0.3, 0.3]), torch.linspace(1.0, 0.4, 64)])
    widths = {}
    for scale in ("max", "l2"):
        policy = parse(f"utility{{scale={scale}}}")
        state = policy.start(layout, torch.ones(layout.total), 0)
        policy.observe(state, layout, torch.arange(layout.total), saliency)
        score = policy.score(state, layout, True)
        widths[scale] = global_widths(Budget("keep", 0.5, 1), layout, cost, score)
    assert widths == {"max": (1, 33), "l2": (4, 30)}


def test_shares_of_the_network_keep_what_sets_layers_apart() -> None:
    layout = Layout((2, 3))
    policy = parse("utility{decay=0.5}")
    state = policy.start(layout, torch.ones(5), 0)
    every = torch.arange(5)
    policy.observe(state, layout, every, torch.tensor([4.0, 3.0, 1.0, 2.0, math.nan]))
    policy.observe(state, layout, every, 1e30 * torch.tensor([1.0, 1.0, 1.0, 1.0, 0.0]))
    expected = [0.5 * share + 0.25 for share in (0.4, 0.3, 0.1, 0.2)]
    torch.testing.assert_close(policy.score(state, layout, False)[:4], torch.tensor(expected))
    policy.observe(state, layout, every, torch.zeros(5))
    assert torch.isfinite(policy.score(state, layout, False)).all()


def test_defaults() -> None:
    policy = parse("utility")
    assert policy.reallocate > 0
    assert policy.warmup > 0
    assert policy.observes == "batch"
    assert parse("utility{saliency=sample}").observes == "sample"
