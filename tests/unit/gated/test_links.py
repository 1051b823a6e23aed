"""Deep copies of a gated network: averages of any make, and copies that are only kept."""

import copy
import functools
import io
from collections.abc import Callable, Iterator
from types import CodeType
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fxprune import GatedModule, attach, instrument
from fxprune.errors import GateError
from tests.support.interrupts import interrupted
from tests.support.law import choose
from tests.support.nets import BY_NAME
from tests.support.oracle import loss_of
from tests.support.training import sgd, train_step

NET = BY_NAME["resnet_projection"]
POLICIES = ["random", "cucb{c=1}", "utility{warmup=2,reallocate=2}"]


def build(policy: str, lr: float = 0.05) -> tuple[GatedModule, torch.optim.Optimizer]:
    gated = instrument(NET.model().train(), NET.inputs(), policy=policy)
    optimizer = sgd(gated.parameters())
    for group in optimizer.param_groups:
        group["lr"] = lr
        group["weight_decay"] = 0.0
    attach(gated, optimizer)
    return gated, optimizer


def tensors(network: nn.Module) -> Iterator[Tensor]:
    yield from network.parameters()


def values(network: nn.Module) -> Iterator[Tensor]:
    yield from (v for v in network.state_dict().values() if v.is_floating_point())


def averaged(average: nn.Module, network: nn.Module, read: Any) -> None:
    with torch.no_grad():
        for mean, value in zip(read(average), read(network), strict=True):
            mean.lerp_(value, 0.25)


@pytest.mark.sampled(3)
@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("read", [tensors, values])
@pytest.mark.parametrize("policy", POLICIES)
def test_an_average_of_equal_values_is_these(policy: str, read: Any, nested: bool) -> None:
    """Nothing is learnt at learning rate 0, so that averages of any make equal the network."""
    gated, optimizer = build(policy, lr=0.0)
    whole = nn.ModuleDict({"net": gated}) if nested else gated
    average = copy.deepcopy(whole)
    names = [name for name, _ in gated.named_parameters()]
    before = gated.dense_state_dict()
    for step in range(8):
        train_step(gated, optimizer, NET, step)
        averaged(average, whole, read)
        if step == 4:
            average.eval()
    inner = average["net"] if isinstance(average, nn.ModuleDict) else average
    found, now = inner.dense_state_dict(), gated.dense_state_dict()
    for name in names:
        assert torch.equal(now[name], before[name])
        torch.testing.assert_close(found[name], before[name], rtol=0, atol=1e-12)


@pytest.mark.sampled(1)
def assigned(mean: GatedModule, gated: GatedModule) -> None:
    """Take the very tensors of a network, as ignite's EMAHandler does with buffers."""
    for kind in (nn.Module.buffers, nn.Module.parameters):
        for one, value in zip(kind(mean), kind(gated), strict=True):
            one.data = value.data


def placed(mean: GatedModule, gated: GatedModule) -> None:
    """Take the very buffers of a network, as objects."""
    for one, other in zip(mean.modules(), gated.modules(), strict=True):
        for name, buffer in other.named_buffers(recurse=False):
            setattr(one, name, buffer)


@pytest.mark.sampled(2)
@pytest.mark.parametrize("assigned", [assigned, placed])
@pytest.mark.parametrize("policy", POLICIES)
def test_an_average_that_takes_the_networks_very_tensors_changes_nothing(
    policy: str, assigned: Callable[[GatedModule, GatedModule], None]
) -> None:
    """Exchanged in both, they would be of other channels in both."""
    (gated, optimizer), (alone, other) = build(policy), build(policy)
    mean = copy.deepcopy(gated).eval()
    for step in range(8):
        for network, one in ((gated, optimizer), (alone, other)):
            train_step(network, one, NET, step)
        assigned(mean, gated)
    state, wanted = gated.training_state(), alone.training_state()
    assert [key for key, value in wanted.items() if not torch.equal(value, state[key])] == []


@pytest.mark.parametrize("policy", POLICIES)
def test_a_target_network_that_loads_a_state_follows(policy: str) -> None:
    gated, optimizer = build(policy, lr=0.0)
    target = instrument(NET.model().train(), NET.inputs(), policy=policy)
    before = gated.dense_state_dict()
    for step in range(8):
        if step in (2, 5):
            target.load_state_dict(gated.state_dict())
        train_step(gated, optimizer, NET, step)
        if step >= 2:
            averaged(target, gated, tensors)
    found = target.dense_state_dict()
    for name, _ in gated.named_parameters():
        torch.testing.assert_close(found[name], before[name], rtol=0, atol=1e-12)


@pytest.mark.parametrize("without_values", [0, 1])
def test_a_network_on_the_meta_device_does_not_disturb_another(without_values: int) -> None:
    networks = [instrument(NET.model().train(), NET.inputs(), policy="random") for _ in range(2)]
    networks[without_values].to("meta")
    gated, _ = networks
    optimizer = torch.optim.SGD(gated.parameters(), 0.1)
    attach(gated, optimizer)
    x = [tensor.to(gated.executing.device) for tensor in NET.inputs()]
    for _ in range(2):
        gated(*x).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    assert gated.steps == 2


def test_a_network_whose_weights_are_offloaded_does_not_disturb_another() -> None:
    """Of accelerate's offloading only the parameters are on the meta device."""
    gated, optimizer = build("random")
    other = instrument(NET.model().train(), NET.inputs(), policy="random")
    other.load_state_dict(gated.state_dict())
    for module in other.modules():
        for name, parameter in [*module.named_parameters(recurse=False)]:
            setattr(module, name, nn.Parameter(parameter.to("meta")))
    before = gated.executing.clone()
    train_step(gated, optimizer, NET, 0)
    assert not torch.equal(gated.executing, before)


def test_a_network_with_parameters_put_in_by_hand_does_not_disturb_another() -> None:
    other = instrument(NET.model().train(), NET.inputs(), policy="random")
    layer = next(module for module in other.modules() if isinstance(module, nn.Conv2d))
    layer.register_parameter("scale", nn.Parameter(torch.ones(7, 5)))
    gated, optimizer = build("random")
    before = gated.executing.clone()
    train_step(gated, optimizer, NET, 0)
    assert not torch.equal(gated.executing, before)


def test_equal_networks_that_train_in_turns_do_not_follow_each_other() -> None:
    networks = [instrument(NET.model().train(), NET.inputs(), policy="random") for _ in range(2)]
    before = networks[0].dense_state_dict()
    for turn in range(6):
        gated, other = networks[turn % 2], networks[1 - turn % 2]
        gated.load_state_dict(other.state_dict())
        optimizer = torch.optim.SGD(gated.parameters(), 0.0, momentum=0.9)
        attached = attach(gated, optimizer)
        for step in range(2):
            train_step(gated, optimizer, NET, step)
        attached.detach()
        gated.zero_grad()
        gated.select(choose(gated.channels, gated.widths, seed=turn))
    for gated in networks:
        after = gated.dense_state_dict()
        assert all(torch.equal(after[name], before[name]) for name, _ in gated.named_parameters())


def test_an_average_evaluates_what_its_source_would_export() -> None:
    gated, optimizer = build("cucb{c=1}")
    average = copy.deepcopy(gated)
    for step in range(6):
        train_step(gated, optimizer, NET, step)
        averaged(average, gated, tensors)
    one, two = average.best(), gated.best()
    assert torch.equal(one.channels.sort().values, two.channels.sort().values)


@pytest.mark.parametrize("policy", POLICIES)
def test_a_copy_that_is_kept_evaluates_as_when_it_was_made(policy: str) -> None:
    gated, optimizer = build(policy)
    for step in range(3):
        train_step(gated, optimizer, NET, step)
    kept = copy.deepcopy(gated).eval()
    shown, dense = kept(*NET.inputs()), kept.dense_state_dict()
    for step in range(3, 9):
        train_step(gated, optimizer, NET, step)
    torch.testing.assert_close(kept(*NET.inputs()), shown)
    now = kept.dense_state_dict()
    assert all(torch.equal(dense[key], now[key]) for key in dense)
    assert not torch.equal(gated.eval()(*NET.inputs()), shown)


def test_a_copy_that_trains_goes_its_own_way() -> None:
    gated, optimizer = build("random")
    alone = copy.deepcopy(gated)
    loss_of(alone, NET, 0).backward()  # without attach it stays on its selection
    executing = alone.executing.clone()
    for step in range(3):
        train_step(gated, optimizer, NET, step)
    assert torch.equal(alone.executing, executing)
    assert not torch.equal(gated.executing, executing)


def exchanges(code: CodeType) -> bool:
    path = code.co_filename
    files = ("gated/executing.py", "gated/averages.py", "gated/module.py")
    return path.endswith(files) or "/fxprune/bank/" in path


@pytest.mark.parametrize("policy", POLICIES)
def test_a_copy_trains_as_its_source_did_from_there(policy: str) -> None:
    """Whatever the source has trained since; so trains an equal network that was made before."""
    gated, optimizer = build(policy)
    equal, kept = instrument(NET.model().train(), NET.inputs(), policy=policy), {}
    for step in range(8):
        if step in (0, 3):
            kept[step] = copy.deepcopy(gated), copy.deepcopy(optimizer.state_dict())
        train_step(gated, optimizer, NET, step)
    after = gated.dense_state_dict()
    for begin, (network, state) in [*kept.items(), (0, (equal, kept[0][1]))]:
        other = sgd(network.parameters())
        other.load_state_dict(state)
        attach(network, other)
        for step in range(begin, 8):
            train_step(network, other, NET, step)
        for name, tensor in network.dense_state_dict().items():
            assert torch.equal(tensor, after[name]), (begin, name)


@pytest.mark.slow
@pytest.mark.parametrize("policy", ["random", "utility{warmup=2,reallocate=2}"])
def test_an_interrupt_anywhere_moves_no_channel(policy: str) -> None:
    """As Ctrl-C in a notebook, and going on: at every line of the exchange, at learning rate 0."""
    number, reached = 1, True
    while reached:
        gated, optimizer = build(policy, lr=0.0)
        for step in range(2):
            train_step(gated, optimizer, NET, step)
        before = gated.dense_state_dict()
        step_3 = functools.partial(train_step, gated, optimizer, NET, 3)
        reached = interrupted(step_3, number, exchanges)
        for step in range(4, 6):
            train_step(gated, optimizer, NET, step)
        after = gated.dense_state_dict()
        for name, _ in gated.named_parameters():
            assert torch.equal(before[name], after[name]), (number, name)
        number += max(1, number // 6)
    assert number > 100


def test_a_gated_network_refuses_a_copy_that_shares_its_tensors() -> None:
    with pytest.raises(GateError, match=r"call copy\.deepcopy"):
        copy.copy(build("random")[0])


def test_a_gated_network_refuses_pickle() -> None:
    gated, _ = build("random")
    with pytest.raises(GateError, match=r"fxprune\.save\(gated, path\)"):
        torch.save(gated, io.BytesIO())  # noqa: TID251 - it is refused


@pytest.mark.parametrize("done", ["double", "deepcopy", "eval"])
def test_an_average_that_a_validator_took_up_in_inference_mode_goes_on(done: str) -> None:
    """Validators of trainers convert or copy the average within torch.inference_mode."""
    gated, optimizer = build("random", lr=0.0)
    average = copy.deepcopy(gated)
    for step in range(3):
        train_step(gated, optimizer, NET, step)
        averaged(average, gated, values)
        with torch.inference_mode():
            seen = copy.deepcopy(average) if done == "deepcopy" else getattr(average, done)()
            seen(*NET.inputs())
    one, two = average.dense_state_dict(), gated.dense_state_dict()
    for name, _ in gated.named_parameters():
        assert torch.equal(one[name], two[name])
    assert not any(tensor.is_inference() for tensor in average.dense_tensors().values())
