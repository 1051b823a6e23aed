"""CUCB against Chen, Wang and Yuan's rule, written out arm by arm."""

import math
import random

import pytest
import torch

from fxprune.channels.graph import Layout
from fxprune.policies import parse, top

LAYOUT = Layout((6, 9))
WIDTHS = (3, 4)


class Reference:
    """Algorithm 1 of Chen, Wang and Yuan (ICML 2013), for super-arms of k arms of each group."""

    def __init__(self, sizes: tuple[int, ...], prior: list[float], c: float) -> None:
        self.sizes, self.c, self.prior = sizes, c, prior
        self.rewards: list[list[float]] = [[] for _ in range(sum(sizes))]
        self.rounds = 0

    def groups(self) -> list[list[int]]:
        arms = iter(range(sum(self.sizes)))
        return [[next(arms) for _ in range(size)] for size in self.sizes]

    def index(self, arm: int) -> float:
        plays = len(self.rewards[arm])
        if plays == 0:
            return math.inf
        mean = sum(self.rewards[arm]) / plays
        return mean + self.c * math.sqrt(3 * math.log(self.rounds + 1) / (2 * plays))

    def rank(self, arm: int) -> tuple[float, float, int]:
        """Unplayed arms by their prior; equals among the others in the order of their numbers."""
        return -self.index(arm), 0.0 if self.rewards[arm] else -self.prior[arm], arm

    def best(self, widths: tuple[int, ...]) -> list[list[int]]:
        return [sorted(group, key=self.rank)[:width] for group, width in zip(self.groups(), widths)]

    def play(self, chosen: list[list[int]], raw: list[float]) -> None:
        for arms in chosen:
            largest = max(raw[arm] for arm in arms)
            for arm in arms:
                self.rewards[arm].append(raw[arm] / largest)
        self.rounds += 1


@pytest.mark.parametrize("c", [0.0, 0.1, 1.0])
def test_plays_what_the_published_rule_plays(c: float) -> None:
    chance = random.Random(4)
    prior = [chance.random() for _ in range(LAYOUT.total)]
    worth = [chance.random() for _ in range(LAYOUT.total)]
    policy = parse(f"cucb{{c={c}}}")
    state = policy.start(LAYOUT, torch.tensor(prior), 0)
    reference = Reference(LAYOUT.sizes, prior, c)
    for _ in range(200):
        chosen = reference.best(WIDTHS)
        selection = top(policy.score(state, LAYOUT, True), LAYOUT, WIDTHS)
        assert selection.tolist() == [arm for arms in chosen for arm in arms]

        raw = [w * chance.uniform(0.5, 1.5) for w in worth]
        reference.play(chosen, raw)
        policy.observe(state, LAYOUT, selection, torch.tensor(raw)[selection])

    played = [arm for arm, rewards in enumerate(reference.rewards) if rewards]
    index = policy.score(state, LAYOUT, True)[played]
    expected = torch.tensor([reference.index(arm) for arm in played])
    torch.testing.assert_close(index, expected, rtol=1e-5, atol=1e-6)
    mean = [sum(reference.rewards[arm]) / len(reference.rewards[arm]) for arm in played]
    export = policy.score(state, LAYOUT, False)[played]
    torch.testing.assert_close(export, torch.tensor(mean), rtol=1e-5, atol=1e-6)


def test_every_arm_is_played_once_before_any_is_played_again() -> None:
    policy = parse("cucb")
    state = policy.start(LAYOUT, torch.rand(LAYOUT.total), 0)
    for _ in range(3):  # 6 / 3 and 9 / 4, rounded up
        selection = top(policy.score(state, LAYOUT, True), LAYOUT, WIDTHS)
        policy.observe(state, LAYOUT, selection, torch.rand(len(selection)))
    assert state["plays"].tolist()[:6] == [2 if plays == 2 else 1 for plays in state["plays"][:6]]
    assert state["plays"].min() == 1
    assert state["plays"].sum() == 3 * sum(WIDTHS)


def test_hand_worked_example() -> None:
    layout = Layout((3,))
    policy = parse("cucb{c=0.5}")
    state = policy.start(layout, torch.tensor([1.0, 2.0, 3.0]), 0)
    policy.observe(state, layout, torch.tensor([0, 1]), torch.tensor([2.0, 4.0]))  # 0.5 and 1
    policy.observe(state, layout, torch.tensor([1, 2]), torch.tensor([3.0, 12.0]))  # 0.25 and 1
    bonus = [0.5 * math.sqrt(3 * math.log(3) / (2 * plays)) for plays in (1, 2, 1)]
    expected = torch.tensor([0.5 + bonus[0], 0.625 + bonus[1], 1.0 + bonus[2]])
    torch.testing.assert_close(policy.score(state, layout, True), expected)
    torch.testing.assert_close(policy.score(state, layout, False), torch.tensor([0.5, 0.625, 1.0]))


def test_discounted_plays_and_means_are_those_of_discounted_ucb() -> None:
    """Garivier and Moulines (2011), section 3: sums of gamma^(t - s) over the rounds s."""
    layout, gamma, c = Layout((2,)), 0.8, 0.3
    policy = parse(f"cucb{{c={c},discount={gamma}}}")
    state = policy.start(layout, torch.tensor([1.0, 0.5]), 0)
    rewards: list[dict[int, float]] = [{0: 1.0, 1: 0.25}, {0: 1.0}, {0: 1.0, 1: 0.5}, {1: 1.0}]
    for played in rewards:
        arms = torch.tensor(list(played))
        policy.observe(state, layout, arms, torch.tensor(list(played.values())))
    weights = [gamma ** (len(rewards) - 1 - s) for s in range(len(rewards))]
    for arm in (0, 1):
        plays = sum(w for w, played in zip(weights, rewards) if arm in played)
        mean = sum(w * played[arm] for w, played in zip(weights, rewards) if arm in played) / plays
        bonus = c * math.sqrt(1.5 * math.log(sum(weights) + 1) / plays)
        assert policy.score(state, layout, False)[arm].item() == pytest.approx(mean, rel=1e-5)
        assert policy.score(state, layout, True)[arm].item() == pytest.approx(
            mean + bonus, rel=1e-5
        )


def test_with_discount_a_long_rested_channel_is_tried_again() -> None:
    layout = Layout((2,))
    policy = parse("cucb{discount=0.9}")
    state = policy.start(layout, torch.ones(2), 0)
    policy.observe(state, layout, torch.tensor([0, 1]), torch.tensor([1.0, 0.1]))
    chosen = []
    for _ in range(1000):
        selection = top(policy.score(state, layout, True), layout, (1,))
        policy.observe(state, layout, selection, torch.ones(1))
        chosen.append(selection.item())
    assert 0 < chosen.index(1) < 60


def test_without_exploration_the_mean_alone_decides() -> None:
    layout = Layout((2,))
    policy = parse("cucb{c=1.0}")
    state = policy.start(layout, torch.ones(2), 0)
    policy.observe(state, layout, torch.tensor([0, 1]), torch.tensor([1.0, 0.9]))
    for _ in range(20):
        policy.observe(state, layout, torch.tensor([0]), torch.tensor([1.0]))
    assert policy.score(state, layout, True).argmax() == 1  # the less known
    assert policy.score(state, layout, False).argmax() == 0


def test_the_form_of_the_saliency_is_an_option() -> None:
    assert parse("cucb").observes == "batch"
    assert parse("cucb{saliency=sample}").observes == "sample"
