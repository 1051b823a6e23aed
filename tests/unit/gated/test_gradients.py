"""Gradients belong to the channels that made them, whatever is evaluated or chosen meanwhile."""

import copy
from collections.abc import Callable

import pytest
import torch
from torch import nn

from fxprune import GatedModule, attach, instrument
from fxprune.errors import FxpruneWarning, GateError
from tests.support.nets import BY_NAME
from tests.support.oracle import loss_of
from tests.support.training import build, sgd, train_step

NET = BY_NAME["resnet_projection"]
FALL = {"schedule": "linear{begin=0.2,end=0.9}", "steps": 12}


def pair(schedule: bool) -> list[tuple[GatedModule, torch.optim.Optimizer]]:
    """Two equal networks with their optimisers, after some steps; evaluation has other channels."""
    found = []
    for _ in range(2):
        gated = instrument(NET.model().train(), NET.inputs(), policy="random")
        optimizer = sgd(gated.parameters())
        attach(gated, optimizer, **(FALL if schedule else {}))
        for step in range(3):
            train_step(gated, optimizer, NET, step)
        optimizer.zero_grad()
        found.append((gated, optimizer))
    return found


def same(one: GatedModule, two: GatedModule) -> bool:
    a, b = one.training_state(), two.training_state()
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


@pytest.mark.sampled(1)
@pytest.mark.parametrize("inference", [False, True])
@pytest.mark.parametrize("schedule", [False, True])
def test_an_evaluation_in_the_midst_of_an_accumulation(schedule: bool, inference: bool) -> None:
    (plain, optimizer), (looked, other) = pair(schedule)
    for half in (3, 4):
        loss_of(plain, NET, half).backward()
        loss_of(looked, NET, half).backward()
        gradients = [p.grad for p in looked.parameters()]
        with torch.inference_mode(inference):
            looked.eval()
            assert not torch.equal(looked.executing, plain.executing)
            looked(*NET.inputs())
            looked.train()
        assert all(p.grad is g for p, g in zip(looked.parameters(), gradients, strict=True))
    optimizer.step()
    other.step()
    plain.zero_grad()
    looked.zero_grad()
    # Running statistics do not differ either: evaluation leaves them alone.
    train_step(plain, optimizer, NET, 5)
    train_step(looked, other, NET, 5)
    assert same(plain, looked)


@pytest.mark.sampled(1)
@pytest.mark.parametrize("set_to_none", [True, False])
def test_what_is_zeroed_in_evaluation_mode_stays_zero(set_to_none: bool) -> None:
    (plain, optimizer), (looked, other) = pair(schedule=True)
    loss_of(looked, NET, 3).backward()
    looked.eval()
    other.zero_grad(set_to_none=set_to_none)
    looked.train()
    assert not any(p.grad is not None and p.grad.any() for p in looked.parameters())
    looked.load_state_dict(copy.deepcopy(plain.state_dict()))  # the forward moved the statistics
    train_step(plain, optimizer, NET, 4)
    train_step(looked, other, NET, 4)
    assert same(plain, looked)


def _settle(gated: GatedModule) -> None:
    gated.settle()


def _select(gated: GatedModule) -> None:
    gated.select(gated.best())


def _spend(gated: GatedModule) -> None:
    gated.spend(0.9 if gated.widths == gated.best().widths else 0.5)


@pytest.mark.sampled(2)
@pytest.mark.parametrize("change", [_settle, _select, _spend])
@pytest.mark.parametrize("schedule", [False, True])
def test_gradients_of_other_channels_are_not_applied(
    schedule: bool, change: Callable[[GatedModule], None]
) -> None:
    (gated, optimizer), _ = pair(schedule)
    loss_of(gated, NET, 3).backward()
    change(gated)
    before = {name: tensor.clone() for name, tensor in gated.state_dict().items() if name[0] != "_"}
    with pytest.raises(GateError, match="the gradients are those of other channels"):
        optimizer.step()
    assert all(torch.equal(gated.state_dict()[name], tensor) for name, tensor in before.items())
    train_step(gated.train(), optimizer, NET, 4)  # and it goes on


@pytest.mark.sampled(1)
@pytest.mark.parametrize("schedule", [False, True])
def test_a_step_in_evaluation_mode_applies_the_gradients(schedule: bool) -> None:
    """They are of the channels that the parameters hold, which an evaluation does not change."""
    (plain, optimizer), (looked, other) = pair(schedule)
    for gated in (plain, looked):
        loss_of(gated, NET, 3).backward()
    looked.eval()
    looked(*NET.inputs())
    for one in (optimizer, other):
        one.step()
    one, two = plain.dense_state_dict(), looked.dense_state_dict()
    assert all(torch.equal(one[key], two[key]) for key in one)


def test_training_in_evaluation_mode_goes_on() -> None:
    """Gradients that lie about from training do not stand in the way."""
    gated, optimizer = build(NET, policy="random")
    train_step(gated, optimizer, NET, 0)
    gated.eval()
    for step in (1, 2):
        before = gated.training_state()
        train_step(gated, optimizer, NET, step)
        assert any(not torch.equal(before[key], t) for key, t in gated.training_state().items())


def test_casts_of_what_leaves_are_not_kept() -> None:
    gated, optimizer = build(NET, policy="random")
    train_step(gated, optimizer, NET, 0)
    images = NET.inputs()
    with torch.autocast("cpu", torch.bfloat16):
        gated(*images)
        gated.eval()
        shown = gated(*images)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(gated(*images), shown)


def test_a_layer_replaced_by_one_that_does_not_fit() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3))
    gated = instrument(model, (torch.zeros(2, 3, 9, 9),))
    gated.add_module("2", nn.Conv2d(8, 4, 3))
    with pytest.raises(GateError, match=r"2\.weight was replaced .*\n  why  it is \(4, 8, 3, 3\)"):
        attach(gated, sgd(gated.parameters()))


def test_a_layer_replaced_by_one_that_fits() -> None:
    """As torch.nn.SyncBatchNorm.convert_sync_batchnorm does."""
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 3))
    gated = instrument(model.train(), (torch.zeros(2, 3, 9, 9),), policy="random")
    norm = nn.BatchNorm2d(4)
    gated.add_module("1", norm)
    optimizer = sgd(gated.parameters())
    attach(gated, optimizer)
    for _ in range(3):
        executing = gated.executing[:4].tolist()
        gated(torch.randn(2, 3, 9, 9)).square().mean().backward()
        measured = norm.running_mean.clone()
        optimizer.step()
        optimizer.zero_grad()
        assert torch.equal(gated.dense_state_dict()["1.running_mean"][executing], measured)


def test_a_layer_of_another_dtype() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Conv2d(8, 4, 3))
    gated = instrument(model, (torch.zeros(2, 3, 9, 9),)).bfloat16()
    gated.get_submodule("1").float()
    with pytest.raises(GateError, match="and dtypes of the whole network"):
        gated.eval()


def test_gradients_that_wait_take_part_in_a_change_of_dtype() -> None:
    gated, optimizer = build(NET, policy="random")
    train_step(gated, optimizer, NET, 0)
    optimizer.zero_grad()
    loss_of(gated, NET, 1).backward()
    before = [p.grad.double() for p in gated.parameters()]
    gated.eval()
    gated.double()
    gated.train()
    assert all(torch.equal(p.grad, g) for p, g in zip(gated.parameters(), before, strict=True))


def test_what_was_applied_does_not_wait() -> None:
    """Nor is it missed: settle, freeze, and train what is not gated."""
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3), nn.PReLU(4))
    gated = instrument(model, (torch.zeros(2, 3, 9, 9),), policy="random")
    optimizer = sgd(gated.parameters())
    attach(gated, optimizer)
    for _ in range(2):
        optimizer.zero_grad()
        gated(torch.randn(2, 3, 9, 9)).square().mean().backward()
        optimizer.step()
    gated.eval()
    assert all(p.grad is None or p.grad.any() for p in gated.parameters())
    gated.train()
    gated.settle()
    for name, parameter in gated.named_parameters():
        parameter.requires_grad = name == "3.weight"
    optimizer.zero_grad()
    gated(torch.randn(2, 3, 9, 9)).square().mean().backward()
    optimizer.step()


@pytest.mark.sampled(3)
@pytest.mark.parametrize("how", ["kept", "decayed", "zeroed", "zeroed late", "dropped late"])
def test_gradients_that_are_added_to_those_of_the_step_before(how: str) -> None:
    (gated, optimizer), _ = pair(schedule=False)
    optimizer.step()
    loss_of(gated, NET, 4).backward()
    before = gated.trained
    optimizer.step()
    assert not torch.equal(gated.trained.channels, before.channels)
    if how == "decayed":
        for parameter in gated.parameters():
            assert parameter.grad is not None
            parameter.grad.mul_(0.5)
    if how == "zeroed":
        optimizer.zero_grad(set_to_none=False)
    loss_of(gated, NET, 5).backward()
    if how == "zeroed":
        loss_of(gated, NET, 6).backward()  # an accumulation
    if "late" in how:  # that was the loss of another network, whose input this one has judged
        optimizer.zero_grad(set_to_none="dropped" in how)
        loss_of(gated, NET, 6).backward()
    if how in ("kept", "decayed"):
        with pytest.raises(GateError, match="were added to those of other channels"):
            optimizer.step()
        optimizer.zero_grad()
        loss_of(gated, NET, 7).backward()
    optimizer.step()


def test_gradients_that_no_optimizer_zeroes_hinder_no_step() -> None:
    gated = instrument(NET.model().train(), NET.inputs(), policy="random")
    optimizer = sgd([*gated.parameters()][4:])
    attach(gated, optimizer)
    with pytest.warns(FxpruneWarning, match="no attached optimiser holds the parameter"):
        train_step(gated, optimizer, NET, 0)
    for step in range(1, 4):
        optimizer.zero_grad()
        train_step(gated, optimizer, NET, step)


def test_gradients_of_an_optimizer_that_is_zeroed_later_hinder_no_other() -> None:
    """It steps with every other backward pass, and zeroes its gradients just before that."""
    gated = instrument(NET.model().train(), NET.inputs(), policy="random")
    parameters = [*gated.parameters()]
    later, first = (sgd(held) for held in (parameters[:4], parameters[4:]))
    for optimizer in (later, first):
        attach(gated, optimizer)
    selections = set()
    for step in range(6):
        stepping = (first, later) if step % 2 else (first,)
        for optimizer in stepping:
            optimizer.zero_grad()
        loss_of(gated, NET, step).backward()
        for optimizer in stepping:
            optimizer.step()
        selections.add(tuple(gated.trained.channels.tolist()))
    assert len(selections) == 4
