"""Several optimisers, wrapped ones, new ones, skipped steps: state stays with its channel."""

import copy
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import pytest
import timm.optim
import torch
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    get_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)

from fxprune import GatedModule, attach, instrument
from fxprune.bank.exchange import Selection
from fxprune.errors import GateError, RunError
from tests.support.nets import BY_NAME
from tests.support.oracle import loss_of, moments, resting
from tests.support.training import build, dense, sgd, train_step

NET = BY_NAME["resnet_projection"]
FALL = {"schedule": "linear{begin=0.1,end=0.9}", "steps": 8}


@pytest.mark.parametrize("kind", ["MADGRAD", "Lookahead", "own"])
def test_a_state_that_is_a_copy_of_its_parameter(kind: str) -> None:
    """With next to no learning rate it keeps the weights; zeros in it would shrink them."""

    class Free(torch.optim.Optimizer):
        """An average of its own, whose constructor cannot be called for a trial."""

        def __init__(self, weights: Any, rate: float) -> None:
            super().__init__(weights, {"lr": rate})

        @torch.no_grad()
        def step(self, _: Any = None) -> None:  # type: ignore[override]
            for p in self.param_groups[0]["params"]:
                z = self.state[p].setdefault("z", p.clone())
                p.lerp_(z, 0.5)

    model = nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 4, 3))
    gated = instrument(model, (torch.zeros(2, 3, 9, 9),), policy="random")
    weights = [*gated.parameters()]
    optimizer = {
        "MADGRAD": lambda: timm.optim.MADGRAD(weights, 1e-7),
        "Lookahead": lambda: timm.optim.Lookahead(torch.optim.SGD(weights, 1e-9), k=2),
        "own": lambda: Free(weights, 1e-9),
    }[kind]()
    attach(gated, optimizer)
    before = gated.dense_state_dict()
    for _ in range(8):
        gated(torch.randn(2, 3, 9, 9)).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    for name, tensor in gated.dense_state_dict().items():
        torch.testing.assert_close(tensor, before[name], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("loaded", [False, True])
def test_a_new_optimizer_begins_without_the_momentum_of_the_old(loaded: bool) -> None:
    gated, optimizer = build(NET, policy="random")
    for step in range(4):
        train_step(gated, optimizer, NET, step)
    if loaded:
        other = instrument(NET.model().train(), NET.inputs(), policy="random")
        other.load_state_dict(gated.state_dict())
        gated = other
    fresh = torch.optim.SGD(gated.parameters(), 0.05, momentum=0.9)
    attach(gated, fresh)
    for step in range(4):
        loss_of(gated, NET, step).backward()
        for parameter in gated.parameters():
            parameter.grad.zero_()
        fresh.step()
        fresh.zero_grad()
    assert not any(tensor.any() for tensor in moments(gated, fresh).values())


@pytest.mark.parametrize("schedule", [False, True])
def test_momentum_keeps_its_channel_when_the_network_goes_back(schedule: bool) -> None:
    """The optimiser is not loaded: each executing channel keeps the momentum that it has."""
    gated = instrument(NET.model().train(), NET.inputs(), policy="random")
    optimizer = sgd(gated.parameters())
    attach(gated, optimizer, **(FALL if schedule else {}))
    for step in range(2):
        train_step(gated, optimizer, NET, step)
    earlier = copy.deepcopy(gated.state_dict())
    for step in range(2, 5):
        train_step(gated, optimizer, NET, step)
    before = moments(gated, optimizer)
    gated.load_state_dict(earlier)
    after = moments(gated, optimizer)
    for key, tensor in after.items():
        executes = ~resting(gated, key.split("/", 1)[1], Selection(gated.executing, gated.widths))
        assert torch.equal(tensor[executes], before[key][executes]), key
    train_step(gated, optimizer, NET, 5)


def test_a_loaded_optimizer_is_left_alone() -> None:
    """In whatever order the two are loaded."""
    gated, optimizer = build(NET, policy="random")
    for step in range(3):
        train_step(gated, optimizer, NET, step)
    states = copy.deepcopy(gated.state_dict()), copy.deepcopy(optimizer.state_dict())
    wanted = moments(gated, optimizer)
    for step in range(3, 6):
        train_step(gated, optimizer, NET, step)
    for first in (0, 1):
        for number in (first, 1 - first):
            (gated, optimizer)[number].load_state_dict(copy.deepcopy(states[number]))
        found = moments(gated, optimizer)
        assert all(torch.equal(found[key], wanted[key]) for key in wanted)


def test_momentum_survives_a_change_of_dtype() -> None:
    gated, optimizer = build(NET, policy="random")
    for step in range(3):
        train_step(gated, optimizer, NET, step)
    before = moments(gated, optimizer)
    gated.double()
    everyone = torch.arange(gated.channels.layout.total)
    gated.select(Selection(everyone, gated.channels.layout.sizes))
    for key, tensor in moments(gated, optimizer).items():
        assert torch.equal(tensor, before[key]), key


def test_lbfgs_is_told_of_whatever_its_first_parameter_is() -> None:
    model = nn.Sequential(nn.Conv2d(3, 3, 1), nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3))
    gated = instrument(model, (torch.zeros(2, 3, 9, 9),), policy="random")
    outside = nn.Parameter(torch.zeros(3))
    optimizer = torch.optim.LBFGS([outside, *gated.parameters()], 0.01, max_iter=2)
    attach(gated, optimizer)

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = gated(torch.ones(2, 3, 9, 9)).square().mean() + outside.square().sum()
        loss.backward()
        return loss

    with pytest.warns(UserWarning, match="of LBFGS does not follow") as told:
        optimizer.step(closure)
    assert "the state 'd' of LBFGS does not follow the channels" in str(told[0].message)


@pytest.mark.parametrize(
    "change", [{"policy": "cucb"}, {"budget": "keep=0.25"}, {"round_to": 2}], ids=str
)
def test_the_state_of_another_policy_or_budget_is_refused(change: dict[str, Any]) -> None:
    gated, optimizer = build(NET, policy="random")
    train_step(gated, optimizer, NET, 0)
    settings = {"policy": "random", "budget": "keep=0.5", **change}
    other: GatedModule = instrument(NET.model(), NET.inputs(), **settings)
    before = other.training_state()
    with pytest.raises(
        RunError, match="belongs to another policy or budget\n  why  it was trained"
    ):
        other.load_state_dict(gated.state_dict())
    after = other.training_state()
    assert all(torch.equal(after[key], before[key]) for key in before if key[:6] != "dense/")


def test_what_shards_parameters_is_refused() -> None:
    class FullyShardedDataParallel(nn.Module):
        """By its name; the real one needs a process group before it looks at the module."""

        def __init__(self, module: nn.Module) -> None:
            super().__init__()
            self.module = module

    gated = instrument(NET.model(), NET.inputs())
    with pytest.raises(GateError, match="cannot be sharded over processes"):
        FullyShardedDataParallel(gated)


def test_the_state_of_other_parameters_stays() -> None:
    """Adafactor's factors of a layer that is not gated, while widths change."""
    gated = instrument(NET.model().train(), NET.inputs(), policy="random")
    other = nn.Linear(4, 4)
    optimizer = torch.optim.Adafactor([*gated.parameters(), *other.parameters()], 0.01)
    attach(gated, optimizer, **FALL)

    def train(step: int) -> None:
        optimizer.zero_grad()
        (loss_of(gated, NET, step) + other(torch.ones(4)).square().sum()).backward()
        optimizer.step()

    with pytest.warns(UserWarning, match="of Adafactor does not follow"):
        train(0)
    for step in range(1, 5):
        train(step)
    assert int(optimizer.state[other.weight]["step"]) == 5


@pytest.mark.sampled(2)
@pytest.mark.parametrize("hooks_first", [False, True])
@pytest.mark.parametrize("policy", ["cucb", "utility{warmup=2,reallocate=2}", "random"])
def test_steps_inside_backward_are_as_steps_after_it(policy: str, hooks_first: bool) -> None:
    """An optimiser for each parameter steps as soon as its gradient is there, which then goes."""

    def trained(inside: bool) -> GatedModule:
        gated = instrument(NET.model().train(), NET.inputs(), policy=policy)
        each = {p: torch.optim.SGD([p], 0.05, momentum=0.9) for p in gated.parameters()}

        def step(parameter: Tensor) -> None:
            each[parameter].step()
            each[parameter].zero_grad()

        def hook() -> None:
            for parameter in each:
                parameter.register_post_accumulate_grad_hook(step)

        if inside and hooks_first:
            hook()
        for optimizer in each.values():
            attach(gated, optimizer)
        if inside and not hooks_first:
            hook()
        for number in range(6):
            loss_of(gated, NET, number).backward()
            for parameter in each if not inside else ():
                step(parameter)
        return gated

    one, two = trained(True), trained(False)
    assert one.steps == two.steps == 6
    first, second = one.training_state(), two.training_state()
    assert [key for key in first if not torch.equal(first[key], second[key])] == []


@pytest.mark.sampled(3)
@pytest.mark.parametrize("attached_first", [False, True])
@pytest.mark.parametrize("target", ["same", "copy"])
@pytest.mark.parametrize("policy", ["random", "utility{warmup=3,reallocate=2}"])
def test_a_kept_copy_and_a_kept_optimizer_state_go_on(
    policy: str, target: str, attached_first: bool
) -> None:
    """The copy has followed its source to other slots since the optimiser's state was kept."""
    gated, optimizer = build(NET, policy=policy)
    for step in range(3):
        train_step(gated, optimizer, NET, step)
    wanted, bank = moments(gated, optimizer), dense(gated)
    kept, state = copy.deepcopy(gated), copy.deepcopy(optimizer.state_dict())
    for step in range(3, 7):
        train_step(gated, optimizer, NET, step)
    if target == "same":
        gated.load_state_dict(kept.state_dict())
        optimizer.load_state_dict(state)
        network = gated
    else:
        network, optimizer = kept, sgd(kept.parameters())
        if attached_first:
            attach(network, optimizer)
        optimizer.load_state_dict(state)
        if not attached_first:
            attach(network, optimizer)
    assert not any(k.startswith("fxprune") for group in optimizer.param_groups for k in group)
    optimizer.state_dict()  # puts the loaded state in order
    found = moments(network, optimizer)
    assert found.keys() == wanted.keys()
    assert [key for key in wanted if not torch.equal(found[key], wanted[key])] == []
    now = dense(network)
    assert [name for name in bank if not torch.equal(now[name], bank[name])] == []


class Sam(torch.optim.Optimizer):
    """The published recipe of SAM, which leaves a parameter on the memory of its own state."""

    def __init__(self, parameters: Any) -> None:
        super().__init__(parameters, {"lr": 0.0, "rho": 0.05})
        self.inner = torch.optim.SGD(self.param_groups, 0.0, momentum=0.9)

    @torch.no_grad()
    def step(self, closure: Any) -> Any:
        loss = torch.enable_grad()(closure)()
        parameters = [p for group in self.param_groups for p in group["params"]]
        for p in parameters:
            self.state[p]["old_p"] = p.detach().clone()
            p.add_(p.grad, alpha=0.05)
        torch.enable_grad()(closure)()
        for p in parameters:
            p.data = self.state[p]["old_p"]
        self.inner.step()
        return loss


@pytest.mark.parametrize("policy", ["random", "utility{warmup=2,reallocate=2}"])
def test_a_state_that_is_the_parameters_own_memory(policy: str) -> None:
    gated, optimizer = build(NET, Sam, policy=policy)
    before = dense(gated)
    for step in range(6):

        def closure(step: int = step) -> Tensor:
            optimizer.zero_grad()
            loss = loss_of(gated, NET, step)
            loss.backward()
            return loss

        optimizer.step(closure)
    names = [name for name, _ in gated.named_parameters()]
    after = dense(gated)
    assert [name for name in names if not torch.equal(before[name], after[name])] == []


class Outer(torch.optim.Optimizer):
    """A wrapper that shows the state of the one inside as its own."""

    def __init__(self, inside: torch.optim.Optimizer) -> None:
        super().__init__(inside.param_groups, {})
        self.inside, self.state, self.param_groups = inside, inside.state, inside.param_groups

    def step(self, closure: Any = None) -> None:
        self.inside.step(closure)


def test_a_state_that_a_wrapper_shares_is_exchanged_once() -> None:
    """Packed tensors were; of larger ones the cells that changed went back to other channels."""
    model = nn.Sequential(nn.Conv2d(3, 300, 3), nn.ReLU(), nn.Conv2d(300, 300, 1), nn.ReLU())
    whole = nn.Sequential(*model, nn.Conv2d(300, 4, 1))
    gated = instrument(whole, (torch.zeros(2, 3, 4, 4),), policy="random")
    optimizer = Outer(torch.optim.SGD(gated.parameters(), 0.0, momentum=1.0))
    attach(gated, optimizer)
    for _ in range(5):
        for parameter in gated.parameters():
            parameter.grad = parameter.detach().clone()
        optimizer.step()
    for parameter in gated.parameters():
        times = optimizer.state[parameter]["momentum_buffer"] / parameter.detach()
        torch.testing.assert_close(times, times.round(), rtol=0.0, atol=1e-4)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_a_step_that_only_makes_the_state_is_none_of_a_training(momentum: float) -> None:
    """It is taken after the network's state was read, which was then of other channels."""
    gated, optimizer = build(
        NET, lambda p: torch.optim.SGD(p, 0.05, momentum=momentum), policy="random"
    )
    if not momentum:
        train_step(gated, optimizer, NET, 0)
    optimizer.zero_grad()
    steps, before = gated.steps, dense(gated)
    saved = copy.deepcopy(get_state_dict(gated, optimizer)[0])
    assert gated.steps == steps
    train_step(gated, optimizer, NET, 1)
    gated.load_state_dict(saved)  # a warning is an error here
    for name, tensor in dense(gated).items():
        assert torch.equal(tensor, before[name])


def _assign_nothing(optimizer: torch.optim.Optimizer) -> None:
    optimizer.state = defaultdict(dict)  # as fastai's `OptimWrapper.clear_state`


def _pop(optimizer: torch.optim.Optimizer) -> None:
    for state in optimizer.state.values():
        state.pop("momentum_buffer")


CLEARINGS: dict[str, Callable[[torch.optim.Optimizer], object]] = {
    "clear": lambda optimizer: optimizer.state.clear(),
    "another dict": _assign_nothing,
    "its key": _pop,
    "set to None": lambda optimizer: [
        state.update(momentum_buffer=None) for state in optimizer.state.values()
    ],
}


@pytest.mark.parametrize("name", CLEARINGS)
def test_momentum_that_is_cleared_is_gone_from_resting_channels_too(name: str) -> None:
    """With gradients like the weights, momentum counts the steps of each channel."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3))
    gated = instrument(model.train(), (torch.zeros(2, 3, 9, 9),), policy="random")
    optimizer = torch.optim.SGD(gated.parameters(), lr=0.0, momentum=1.0)
    attach(gated, optimizer)

    def most(steps: int) -> float:
        for _ in range(steps):
            for parameter in gated.parameters():
                parameter.grad = parameter.detach().clone()
            optimizer.step()
        own = ((p, optimizer.state[p]["momentum_buffer"]) for p in gated.parameters())
        return max(float((momentum / p.detach()).abs().max()) for p, momentum in own)

    assert most(8) > 4
    CLEARINGS[name](optimizer)
    assert most(1) == 1
    assert most(3) == pytest.approx(4)


def test_momentum_comes_home_where_the_optimizer_is_loaded_after_the_network() -> None:
    """The second of the two takes a step of rate 0, to have a state to load into."""

    def made() -> tuple[GatedModule, torch.optim.Optimizer]:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3))
        gated = instrument(model.train(), (torch.zeros(2, 3, 9, 9),), policy="random")
        optimizer = torch.optim.SGD(gated.parameters(), lr=0.1, momentum=0.9)
        attach(gated, optimizer)
        return gated, optimizer

    gated, optimizer = made()
    for _ in range(6):
        gated(torch.ones(2, 3, 9, 9)).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    network, state = copy.deepcopy(get_state_dict(gated, optimizer))
    other, loaded = made()
    set_model_state_dict(other, network)
    set_optimizer_state_dict(other, loaded, state)
    for one, own in ((gated, optimizer), (other, loaded)):
        one(torch.ones(2, 3, 9, 9)).square().mean().backward()
        own.step()
    expected = gated.training_state()
    for name, tensor in other.training_state().items():
        assert torch.equal(tensor, expected[name]), name
