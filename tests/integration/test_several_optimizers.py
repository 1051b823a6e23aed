"""Several optimisers of one network: they take turns, wrap each other, miss a round."""

import copy
import warnings
from typing import Any

import pytest
import timm.optim
import torch
from torch import nn

from fxprune import attach, instrument
from fxprune.bank.exchange import Selection
from fxprune.errors import FxpruneWarning
from tests.support.law import choose
from tests.support.nets import BY_NAME
from tests.support.oracle import loss_of, moments, resting
from tests.support.training import dense, sgd, train_step

NET = BY_NAME["resnet_projection"]

FALL = {"schedule": "linear{begin=0.1,end=0.9}", "steps": 8}


@pytest.mark.parametrize("schedule", [False, True])
def test_two_optimizers_share_the_parameters(schedule: bool) -> None:
    gated = instrument(NET.model().train(), NET.inputs(), policy="random")
    parts: list[list[nn.Parameter]] = [[], []]
    for parameter in gated.parameters():
        parts[parameter.dim() > 1].append(parameter)
    optimizers = [torch.optim.AdamW(parts[0], 0.01), sgd(parts[1])]
    attach(gated, optimizers[0], **(FALL if schedule else {}))
    attach(gated, optimizers[1])
    for step in range(6):
        executing, before = gated.executing.clone(), dense(gated)
        chosen = Selection(gated.executing, gated.widths)
        loss_of(gated, NET, step).backward()
        optimizers[0].step()
        assert torch.equal(gated.executing, executing), "not before both have stepped"
        optimizers[1].step()
        assert gated.steps == step + 1
        assert not torch.equal(gated.executing, executing) or schedule
        for name, tensor in dense(gated).items():
            rests = resting(gated, name, chosen)
            assert torch.equal(tensor[rests], before[name][rests]), name
        for optimizer in optimizers:
            optimizer.zero_grad()
    keys = {key for states in gated.bank.states.values() for key in states}
    assert keys == {"exp_avg", "exp_avg_sq", "momentum_buffer"}


def test_a_schedule_goes_with_its_optimizer() -> None:
    gated = instrument(NET.model().train(), NET.inputs(), policy="random")
    first = attach(gated, sgd(gated.parameters()), schedule="linear{begin=0,end=0.5}", steps=8)
    train_step(gated, first.optimizer, NET, 0)
    widths = gated.widths
    assert widths > gated.best().widths
    first.detach()
    second = sgd(gated.parameters())
    attach(gated, second)
    for step in range(1, 6):
        train_step(gated, second, NET, step)
    assert gated.widths == widths


@pytest.mark.parametrize("settled", [False, True])
def test_optimizers_that_step_in_turns_are_warned_of_once(settled: bool) -> None:
    """Each after a backward pass of its own, so that no round has the steps of both."""
    x = torch.ones(1, 1, 1, 1)
    gated = instrument(nn.Sequential(nn.Conv2d(1, 8, 1), nn.Conv2d(8, 2, 1)), x)
    optimizers = [sgd(gated.get_submodule(name).parameters()) for name in "01"]
    for optimizer in optimizers:
        attach(gated, optimizer)
    if settled:
        gated.settle()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for step in range(140):
            gated(x).sum().backward()
            optimizers[step % 2].step()
            optimizers[step % 2].zero_grad()
    texts = [str(each.message) for each in caught]
    assert len(texts) == (not settled)
    assert settled or "the selection has not changed for 64 steps" in texts[0]


class Sharpness(torch.optim.Optimizer):
    """A wrapper in the manner of SAM: the state is that of the one inside."""

    def __init__(self, base: torch.optim.Optimizer) -> None:
        super().__init__(base.param_groups, {})
        self.base = base

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        self.base.step(closure)


@pytest.mark.sampled(1)
@pytest.mark.parametrize("alone", [False, True], ids=["", "steps of the inner one"])
@pytest.mark.parametrize("wrap", [Sharpness, timm.optim.Lookahead])
def test_the_state_of_a_wrapped_optimizer_follows(wrap: Any, alone: bool) -> None:
    """The loop steps the wrapper or, as with SAM's two halves, only the optimiser inside."""
    plain = instrument(NET.model().train(), NET.inputs(), policy="random")
    wrapped = copy.deepcopy(plain)
    optimizer, inner = sgd(plain.parameters()), sgd(wrapped.parameters())
    outer = wrap(inner)
    attach(plain, optimizer)
    attach(wrapped, outer)
    for step in range(4):
        train_step(plain, optimizer, NET, step)
        train_step(wrapped, inner if alone else outer, NET, step)
    assert wrapped.steps == plain.steps
    one, two = moments(plain, optimizer), moments(wrapped, inner)
    assert all(torch.equal(one[key], two[key]) for key in one)


def test_two_wrapped_optimizers() -> None:
    plain = instrument(NET.model().train(), NET.inputs(), policy="random")
    wrapped = copy.deepcopy(plain)
    optimizer = sgd(plain.parameters())
    attach(plain, optimizer)
    halves = [[*wrapped.parameters()][part::2] for part in (0, 1)]
    inner = [sgd(half) for half in halves]
    outer = [Sharpness(one) for one in inner]
    for one in outer:
        attach(wrapped, one)
    for step in range(4):
        train_step(plain, optimizer, NET, step)
        loss_of(wrapped, NET, step).backward()
        for one in outer:
            one.step()
        wrapped.zero_grad()
    one = moments(plain, optimizer)
    two = {**moments(wrapped, inner[0]), **moments(wrapped, inner[1])}
    assert all(torch.equal(one[key], two[key]) for key in one)


def test_attached_again_and_again() -> None:
    """What is tracked twice would be exchanged twice; large tensors would go wrong by that."""
    model = nn.Sequential(nn.Conv2d(3, 160, 3), nn.ReLU(), nn.Conv2d(160, 96, 3), nn.ReLU())
    model.append(nn.Conv2d(96, 4, 1))
    gated = instrument(model, (torch.zeros(2, 3, 9, 9),), policy="random")
    optimizer = torch.optim.SGD(gated.parameters(), 0.0, momentum=1.0)
    attach(gated, optimizer).detach()
    controller = attach(gated, optimizer)
    for _ in range(3):
        gated(torch.randn(2, 3, 9, 9)).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    controller.detach()
    attach(gated, optimizer)
    before = moments(gated, optimizer)
    chosen = Selection(gated.executing, gated.widths)
    gated.select(choose(gated.channels, gated.widths, seed=7))
    gated.select(chosen)
    after = moments(gated, optimizer)
    assert all(torch.equal(after[key], before[key]) for key in before)


@pytest.mark.parametrize("missing", [0, 1])
def test_a_round_in_which_one_is_missing_exchanges_nothing(missing: int) -> None:
    gated = instrument(NET.model().train(), NET.inputs(), policy="random")
    parameters = [*gated.parameters()]
    optimizers = [sgd(parameters[::2]), sgd(parameters[1::2])]
    for optimizer in optimizers:
        attach(gated, optimizer)
    for step in range(6):
        executing = gated.executing.clone()
        loss_of(gated, NET, step).backward()
        for number, optimizer in enumerate(optimizers):
            if step % 3 or number != missing:
                assert torch.equal(gated.executing, executing), "gradients are of these channels"
                optimizer.step()
            optimizer.zero_grad()
        assert torch.equal(gated.executing, executing) == (step % 3 == 0)


def test_an_evaluation_between_two_optimizers() -> None:
    gated = instrument(NET.model().train(), NET.inputs(), policy="random")
    parameters = [*gated.parameters()]
    one, two = sgd(parameters[::2]), sgd(parameters[1::2])
    attach(gated, one)
    attach(gated, two)
    loss_of(gated, NET, 0).backward()
    one.step()
    before = [parameter.detach().clone() for parameter in parameters]
    gated.eval()
    gated(*NET.inputs())
    assert all(torch.equal(p, b) for p, b in zip(parameters, before, strict=True))
    del before  # or training warns of kept parameters
    two.step()
    assert gated.steps == 1


def test_momentum_inside_a_wrapper_when_the_network_goes_back() -> None:
    gated = instrument(NET.model().train(), NET.inputs(), policy="random")
    inner = sgd(gated.parameters())
    outer = Sharpness(inner)
    attach(gated, outer)
    train_step(gated, outer, NET, 0)
    earlier = copy.deepcopy(gated.state_dict())
    for step in (1, 2):
        train_step(gated, outer, NET, step)
    before = moments(gated, inner)
    gated.load_state_dict(earlier)
    for key, tensor in moments(gated, inner).items():
        executes = ~resting(gated, key.split("/", 1)[1], Selection(gated.executing, gated.widths))
        assert torch.equal(tensor[executes], before[key][executes]), key


def test_one_optimizer_of_two_networks_saves_both_orders() -> None:
    pair = [instrument(NET.model().train(), NET.inputs(), policy="random", seed=s) for s in (0, 1)]
    optimizer = sgd([p for gated in pair for p in gated.parameters()])
    for gated in pair:
        attach(gated, optimizer)
    steps = range(3)
    for step in [*steps]:
        for gated in pair:
            loss_of(gated, NET, step).backward()
        optimizer.step()
        optimizer.zero_grad()
    wanted, state = [moments(g, optimizer) for g in pair], copy.deepcopy(optimizer.state_dict())
    for step in steps:
        for gated in pair:
            loss_of(gated, NET, step).backward()
        optimizer.step()
        optimizer.zero_grad()
    executing = [moments(g, optimizer) for g in pair]
    optimizer.load_state_dict(state)
    optimizer.state_dict()
    for gated, old, new in zip(pair, wanted, executing, strict=True):
        found = moments(gated, optimizer)
        for key, tensor in found.items():
            either = (tensor == old[key]) | (tensor == new[key])
            assert either.all(), key


def test_an_optimizer_that_was_not_attached_is_warned_of() -> None:
    gated = instrument(NET.model().train(), NET.inputs(), policy="random")
    parameters = [*gated.parameters()]
    one, two = sgd(parameters[::2]), sgd(parameters[1::2])
    attach(gated, one)
    loss_of(gated, NET, 0).backward()
    with pytest.warns(FxpruneWarning, match="no attached optimiser holds the parameter"):
        one.step()
    gated.zero_grad()
    loss_of(gated, NET, 1).backward()
    one.step()  # once
    attach(gated, two)
    two.step()


class Private(torch.optim.Optimizer):
    """Has another optimiser apply what it made of the gradients, and no hooks: opacus' is such."""

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self.original_optimizer = optimizer
        self.param_groups, self.state = optimizer.param_groups, optimizer.state

    def step(self, closure: Any = None) -> Any:
        return self.original_optimizer.step(closure)

    def zero_grad(self, set_to_none: bool = True) -> None:
        self.original_optimizer.zero_grad(set_to_none)


def test_an_optimizer_without_hooks_is_attached_through_the_one_inside() -> None:
    gated = instrument(NET.model().train(), NET.inputs(), policy="random")
    optimizer = Private(sgd(gated.parameters()))
    assert attach(gated, optimizer).optimizer is optimizer.original_optimizer
    before = gated.trained
    train_step(gated, optimizer, NET, 0)
    assert gated.steps == 1
    assert gated.trained is not before
