"""Optimisers that move all weights beside their steps, as schedule-free ones do in `eval()`."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fxprune import GatedModule, attach, instrument, shrink
from fxprune.bank.bank import put
from tests.support.interrupts import interrupted

X = torch.randn(4, 3, 9, 9, generator=torch.Generator().manual_seed(0))


class ScheduleFree(torch.optim.Optimizer):
    """Trains at y, and evaluates at x, their average; keeps z (arXiv 2405.15682)."""

    def __init__(self, params: Any, lr: float = 0.5, beta: float = 0.6) -> None:
        super().__init__(params, {"lr": lr, "beta": beta, "at_y": True, "steps": 0})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        del closure
        for group in self.param_groups:
            group["steps"] += 1
            for p in group["params"]:
                z = self.state[p].setdefault("z", p.clone())
                x = p.lerp(z, 1 - 1 / group["beta"])
                z.sub_(p.grad, alpha=group["lr"])
                p.copy_(x.lerp(z, 1 / group["steps"]).lerp(z, 1 - group["beta"]))

    @torch.no_grad()
    def _move(self, at_y: bool) -> None:
        for group in self.param_groups:
            if group["at_y"] is not at_y:
                for p in group["params"]:
                    share = group["beta"] if at_y else 1 / group["beta"]
                    p.lerp_(self.state[p]["z"], 1 - share)
                group["at_y"] = at_y

    def eval(self) -> None:
        self._move(at_y=False)

    def train(self) -> None:
        self._move(at_y=True)


class Replacing(ScheduleFree):
    """Gives its parameters other tensors, instead of writing into those that they have."""

    @torch.no_grad()
    def _move(self, at_y: bool) -> None:
        for group in self.param_groups:
            share = group["beta"] if at_y else 1 / group["beta"]
            for p in group["params"]:
                p.data = p.data.lerp(self.state[p]["z"], 1 - share)


def trained(
    kind: type[ScheduleFree], every: int = 1
) -> tuple[GatedModule, ScheduleFree, dict[str, Tensor]]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 6, 3), nn.ReLU())
    model.append(nn.Conv2d(6, 2, 3))
    gated = instrument(model.train(), (X,), policy="random", every=every)
    optimizer = kind(gated.parameters())
    attach(gated, optimizer)
    for _ in range(6):
        gated(X).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    return gated, optimizer, {k: v.clone() for k, v in gated.dense_state_dict().items()}


def assert_close(one: dict[str, Tensor], two: dict[str, Tensor]) -> None:
    for name, tensor in one.items():
        torch.testing.assert_close(tensor, two[name], rtol=0.0, atol=1e-6)


@pytest.mark.parametrize("kind", [ScheduleFree, Replacing])
def test_channels_that_rest_are_evaluated_at_the_average_too(kind: type[ScheduleFree]) -> None:
    gated, optimizer, before = trained(kind)
    optimizer.eval()
    narrow = {k: v.clone() for k, v in gated.dense_state_dict().items()}
    gated.eval()
    torch.testing.assert_close(shrink(gated)(X), gated(X), rtol=0.0, atol=1e-6)
    gated.train()
    optimizer.train()
    assert_close(gated.dense_state_dict(), before)
    gated.spend(1.0)
    optimizer.eval()
    assert max(float((narrow[k] - v).abs().max()) for k, v in before.items()) > 1e-3
    assert_close(gated.dense_state_dict(), narrow)


class Nesting(ScheduleFree):
    """Calls one of the methods that move all weights in another."""

    def sync_lookahead(self) -> None:
        pass

    def eval(self) -> None:
        self.sync_lookahead()
        super().eval()


EXCHANGES: dict[str, Callable[[GatedModule], object]] = {
    "settle": lambda gated: gated.settle(),
    "spend": lambda gated: gated.spend(0.9),
}


@pytest.mark.parametrize("kind", [ScheduleFree, Nesting])
@pytest.mark.parametrize("name", EXCHANGES)
def test_channels_that_enter_in_evaluation_come_back_to_where_they_were(
    name: str, kind: type[ScheduleFree]
) -> None:
    gated, optimizer, before = trained(kind)
    optimizer.eval()
    EXCHANGES[name](gated)
    optimizer.train()
    assert_close(gated.dense_state_dict(), before)


def test_gradients_stay_while_an_optimizer_changes_its_mode() -> None:
    gated, optimizer, _ = trained(ScheduleFree)
    gated(X).square().mean().backward()
    gradients = {name: p.grad for name, p in gated.named_parameters()}
    shapes = [p.shape for p in gated.parameters()]
    optimizer.eval()
    optimizer.train()
    assert all(p.grad is gradients[name] for name, p in gated.named_parameters())
    assert shapes == [p.shape for p in gated.parameters()]
    optimizer.step()
    assert gated.steps == 7


def test_a_mode_that_fails_leaves_the_network_narrow() -> None:
    gated, optimizer, before = trained(ScheduleFree)
    shapes = [p.shape for p in gated.parameters()]
    optimizer.param_groups[0]["beta"] = 0
    with pytest.raises(ZeroDivisionError):
        optimizer.eval()
    assert shapes == [p.shape for p in gated.parameters()]
    assert_close(gated.dense_state_dict(), before)


def test_a_mode_changes_in_inference_mode_before_the_first_exchange() -> None:
    """Lightning calls the hooks of a validation in it."""
    gated, optimizer, before = trained(ScheduleFree, every=1000)
    with torch.inference_mode():
        optimizer.eval()
        optimizer.train()
    gated.spend(0.9)
    assert_close(gated.dense_state_dict(), before)
    gated(X).square().mean().backward()
    optimizer.step()
    gated.settle()


def test_a_mode_that_is_interrupted_while_the_weights_are_put_away_changes_nothing() -> None:
    gated, optimizer, _ = trained(ScheduleFree)
    number, reached = 1, True
    while reached:
        for parameter in gated.parameters():  # newer than what rests of them
            parameter.data += 1.0
        before = {name: p.detach().clone() for name, p in gated.named_parameters()}
        reached = interrupted(optimizer.eval, number, lambda code: code is put.__code__)
        gated.ordered()
        if reached:
            assert_close(dict(gated.named_parameters()), before)
        number += 2
    assert number > 20


@pytest.mark.filterwarnings("error")
def test_a_mode_is_no_average_that_was_written_back() -> None:
    """An average that has the weights of now has those of before, after them."""
    gated, optimizer, _ = trained(ScheduleFree)
    average = copy.deepcopy(gated)
    gated(X).square().mean().backward()
    optimizer.step()
    with torch.no_grad():
        for mean, value in zip(average.parameters(), gated.parameters(), strict=True):
            mean.copy_(value)
    optimizer.eval()
    shrink(gated.eval())
