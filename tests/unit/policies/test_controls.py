"""The controls: magnitude, bn_scale, random, fixed."""

import pytest
import torch
from torch import Tensor

from fxprune.channels.graph import Layout
from fxprune.policies import Policy, parse, top
from fxprune.policies.base import State
from fxprune.policies.draw import draw

LAYOUT = Layout((4, 6))
WIDTHS = (2, 3)


def step(policy: Policy, state: State, saliency: Tensor) -> list[int]:
    """Selects, observes `saliency` [N] there, and tells what was selected."""
    selection = top(policy.score(state, LAYOUT, True), LAYOUT, WIDTHS)
    policy.observe(state, LAYOUT, selection, saliency[selection])
    return selection.tolist()


def test_magnitude_follows_the_weights() -> None:
    policy = parse("magnitude")
    prior = torch.tensor([4.0, 3.0, 2.0, 1.0, 60.0, 50.0, 40.0, 30.0, 20.0, 10.0])
    state = policy.start(LAYOUT, prior, 0)
    assert step(policy, state, prior) == [0, 1, 4, 5, 6]
    shrunk = prior.clone()
    shrunk[1], shrunk[4] = 1.5, 35.0
    assert step(policy, state, shrunk) == [0, 1, 4, 5, 6]  # seen only now
    assert step(policy, state, shrunk) == [0, 2, 5, 6, 4]
    assert policy.score(state, LAYOUT, True).tolist() == shrunk.tolist()


def test_bn_scale_tries_every_channel_once_and_then_ranks_by_scale() -> None:
    policy = parse("bn_scale")
    scale = torch.tensor([0.1, 0.2, 0.3, 0.4, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1])
    state = policy.start(LAYOUT, torch.arange(10, 0, -1.0), 0)
    assert step(policy, state, scale) == [0, 1, 4, 5, 6]
    assert step(policy, state, scale) == [2, 3, 7, 8, 9]
    assert step(policy, state, scale) == [3, 2, 4, 5, 6]
    torch.testing.assert_close(policy.score(state, LAYOUT, False), scale)


def test_random_depends_on_seed_and_step_alone() -> None:
    policy = parse("random")
    zeros = torch.zeros(LAYOUT.total)

    def run(seed: int) -> list[list[int]]:
        state = policy.start(LAYOUT, zeros, seed)
        return [step(policy, state, zeros) for _ in range(8)]

    torch.manual_seed(1)
    first = run(0)
    torch.manual_seed(2)
    assert run(0) == first
    assert run(1) != first
    assert len({tuple(selection) for selection in first}) > 4
    assert run(-5) != run(2**40)  # any whole number is a seed


def test_random_exports_one_draw() -> None:
    policy = parse("random")
    zeros = torch.zeros(LAYOUT.total)
    state = policy.start(LAYOUT, zeros, 0)
    first = step(policy, state, zeros)
    while not state["seen"].all():
        step(policy, state, zeros)
    assert top(policy.score(state, LAYOUT, False), LAYOUT, WIDTHS).tolist() == first


def test_draws_are_even_and_unrelated() -> None:
    channels = torch.arange(2000)
    values = torch.stack(
        [
            draw(torch.tensor(seed), torch.tensor(step), channels)
            for seed in (0, 1)
            for step in range(50)
        ]
    )
    assert values.min() >= 0
    assert values.max() < 1
    counts = torch.histc(values, bins=20, min=0, max=1)
    assert (counts - 10000).abs().max() < 5 * 100  # 5 standard deviations
    # 100 draws of 2000: correlations between any two are below 5 / sqrt(2000).
    correlation = torch.corrcoef(values) - torch.eye(100)
    assert correlation.abs().max() < 5 / 2000**0.5


def test_draws_are_the_published_hash() -> None:
    """lowbias32 of small numbers, worked out with plain integers."""

    def mix(x: int) -> int:
        x ^= x >> 16
        x = x * 0x7FEB352D % 2**32
        x ^= x >> 15
        x = x * 0x846CA68B % 2**32
        return x ^ (x >> 16)

    for seed, at in ((0, 0), (7, 3), (2**32 - 1, 10**6)):
        expected = [
            (mix((c + mix((at + mix(seed)) % 2**32)) % 2**32) >> 8) / 2**24 for c in range(5)
        ]
        values = draw(torch.tensor(seed), torch.tensor(at), torch.arange(5))
        assert values.tolist() == expected


@pytest.mark.parametrize("choice", ["magnitude", "first", "random"])
def test_fixed_never_moves(choice: str) -> None:
    policy = parse(f"fixed{{choice={choice}}}")
    generator = torch.Generator().manual_seed(0)
    state = policy.start(LAYOUT, torch.rand(10, generator=generator), 5)
    first = step(policy, state, torch.rand(10, generator=generator))
    for _ in range(10):
        assert step(policy, state, 100 * torch.rand(10, generator=generator)) == first
        policy.milestone(state)
        assert top(policy.score(state, LAYOUT, False), LAYOUT, WIDTHS).tolist() == first


def test_what_fixed_chooses() -> None:
    prior = torch.tensor([1.0, 3.0, 2.0, 4.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0])

    def first(choice: str, seed: int = 0) -> list[int]:
        policy = parse(f"fixed{{choice={choice}}}")
        return step(policy, policy.start(LAYOUT, prior, seed), prior)

    assert first("magnitude") == [3, 1, 9, 8, 7]
    assert first("first") == [0, 1, 4, 5, 6]
    assert first("random") == first("random")
    assert len({tuple(first("random", seed)) for seed in range(5)}) > 2
