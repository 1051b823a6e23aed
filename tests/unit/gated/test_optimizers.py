"""Several optimisers, wrapped ones, new ones, skipped steps: state stays with its channel."""

import copy
from typing import Any

import pytest
import timm.optim
import torch
from torch import Tensor, nn

from fxprune import GatedModule, attach, instrument
from fxprune.errors import FxpruneWarning, GateError, RunError
from tests.support.law import choose
from tests.support.nets import BY_NAME
from tests.support.oracle import loss_of, moments, resting
from tests.support.training import build, dense, sgd, train_step

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
        chosen = gated._selection
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


class Sharpness(torch.optim.Optimizer):
    """A wrapper in the manner of SAM: the state is that of the one inside."""

    def __init__(self, base: torch.optim.Optimizer) -> None:
        super().__init__(base.param_groups, {})
        self.base = base

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        self.base.step(closure)


@pytest.mark.parametrize("wrap", [Sharpness, timm.optim.Lookahead])
def test_the_state_of_a_wrapped_optimizer_follows(wrap: Any) -> None:
    plain = instrument(NET.model().train(), NET.inputs(), policy="random")
    wrapped = copy.deepcopy(plain)
    optimizer, inner = sgd(plain.parameters()), sgd(wrapped.parameters())
    outer = wrap(inner)
    attach(plain, optimizer)
    attach(wrapped, outer)
    for step in range(4):
        train_step(plain, optimizer, NET, step)
        train_step(wrapped, outer, NET, step)
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
        executes = ~resting(gated, key.split("/", 1)[1], gated._selection)
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
    gated.select(type(gated._selection)(everyone, gated.channels.layout.sizes))
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
    chosen = gated._selection
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
        executes = ~resting(gated, key.split("/", 1)[1], gated._selection)
        assert torch.equal(tensor[executes], before[key][executes]), key


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


def test_an_optimizer_that_was_not_attached_is_warned_of() -> None:
    gated = instrument(NET.model().train(), NET.inputs(), policy="random")
    parameters = [*gated.parameters()]
    one, two = sgd(parameters[::2]), sgd(parameters[1::2])
    attach(gated, one)
    loss_of(gated, NET, 0).backward()
    with pytest.warns(FxpruneWarning, match="no attached optimiser holds the parameter"):
        one.step()
    loss_of(gated, NET, 1).backward()
    one.step()  # once
    attach(gated, two)
    two.step()
