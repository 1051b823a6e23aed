"""An optimiser that steps a gated network and is not attached is warned of, once."""

import copy
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.optim import SGD, Adam, Optimizer

from fxprune import GatedModule, attach
from fxprune.errors import FxpruneWarning
from tests.support.law import choose
from tests.support.nets import BY_NAME
from tests.support.training import build, dense, train_step

NET = BY_NAME["resnet_projection"]
SAYS = "steps a gated network, and is not attached"


def in_turns(gated: GatedModule, one: Optimizer, other: Optimizer, step: int) -> None:
    train_step(gated, (one, other)[step % 2], NET, step)


def both(gated: GatedModule, one: Optimizer, other: Optimizer, step: int) -> None:
    train_step(gated, one, NET, step)
    other.step()


def the_other(gated: GatedModule, one: Optimizer, other: Optimizer, step: int) -> None:
    del one
    train_step(gated, other, NET, step)


@pytest.mark.sampled(2)
@pytest.mark.parametrize("kind", [SGD, Adam])
@pytest.mark.parametrize("loop", [in_turns, both, the_other])
def test_a_second_optimizer_is_warned_of_once(loop: Callable[..., None], kind: Any) -> None:
    gated, optimizer = build(NET, policy="random")
    train_step(gated, optimizer, NET, 0)
    other = kind(gated.parameters(), lr=0.01)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for step in range(9):
            loop(gated, optimizer, other, step)
    assert [SAYS in str(each.message) for each in caught] == [True]


def test_a_new_optimizer_in_place_of_one_that_is_gone() -> None:
    gated, optimizer = build(NET, policy="random")
    train_step(gated, optimizer, NET, 0)
    del optimizer
    with pytest.warns(FxpruneWarning, match="the selection does not change"):
        train_step(gated, SGD(gated.parameters(), 0.1), NET, 1)


class Wrapping(Optimizer):
    """As Lookahead: steps another one; slow weights on demand."""

    def __init__(self, inner: Optimizer, slow: bool) -> None:
        super().__init__(inner.param_groups, {})
        self.inner, self.slow = inner, slow

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        self.inner.step(closure)
        for group in self.param_groups if self.slow else []:
            for parameter in group["params"]:
                self.state[parameter]["slow"] = parameter.detach().clone()


@pytest.mark.filterwarnings("error")
def test_what_needs_not_be_attached() -> None:
    """Before any is, once the selection is fixed, of another network, or around one that is."""
    gated = NET.gated(policy="random").train()
    train_step(gated, SGD(gated.parameters(), 0.1), NET, 0)
    inner = SGD(gated.parameters(), 0.1)
    attach(gated, inner)
    for step in range(5):
        train_step(gated, Wrapping(inner, slow=False), NET, step)
    net = torch.nn.Linear(2, 2)
    other = Adam(net.parameters())
    net(torch.ones(1, 2)).sum().backward()
    other.step()
    gated.settle()
    train_step(gated, Adam(gated.parameters()), NET, 6)


def test_that_attach_was_forgotten_is_warned_of_once() -> None:
    gated = NET.gated(policy="random").train()
    optimizer = SGD(gated.parameters(), 0.01)
    for step in range(7):
        train_step(gated, optimizer, NET, step)
    with pytest.warns(FxpruneWarning, match=rf"SGD {SAYS}.*\n.*no optimiser is attached"):
        train_step(gated, optimizer, NET, 7)
    for step in range(8, 20):
        train_step(gated, optimizer, NET, step)


def test_a_selection_that_the_loop_changes_itself_needs_no_attached_one() -> None:
    gated = NET.gated(policy="random").train()
    optimizer = SGD(gated.parameters(), 0.01)
    for step in range(9):
        gated.select(choose(gated.channels, gated.trained.widths, step))
        train_step(gated, optimizer, NET, step)


def test_a_wrapper_with_state_of_its_own() -> None:
    gated, optimizer = build(NET, policy="random")
    with pytest.warns(FxpruneWarning, match=f"Wrapping {SAYS}"):
        train_step(gated, Wrapping(optimizer, slow=True), NET, 0)


@pytest.mark.sampled(1)
@pytest.mark.parametrize("steps", [0, 2])
@pytest.mark.parametrize("kind", [SGD, Adam])
def test_a_copy_that_another_optimizer_trains_goes_its_own_way(kind: Any, steps: int) -> None:
    """It is warned of, and its momentum stays with its channels."""
    trained = []
    for goes_on in (False, True):
        gated, optimizer = build(NET, policy="random")
        for step in range(steps):
            train_step(gated, optimizer, NET, step)
        alone = copy.deepcopy(gated)
        options = {"momentum": 0.9} if kind is SGD else {}
        other = kind(alone.parameters(), lr=0.01, **options)
        with pytest.warns(FxpruneWarning, match=SAYS):
            train_step(alone, other, NET, 0)
        for step in range(6):
            other.zero_grad()
            if goes_on:
                train_step(gated, optimizer, NET, steps + step)
            train_step(alone, other, NET, step)
        trained.append(dense(alone))
    assert all(torch.equal(trained[0][name], trained[1][name]) for name in trained[0])
