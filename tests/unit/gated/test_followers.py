"""Averages of a gated network: each channel has its own, whatever slot it executes in."""

import copy
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
import timm.utils
import torch
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn, update_bn

import fxprune
from fxprune import GatedModule, attach, instrument, shrink
from fxprune.bank.exchange import Selection
from fxprune.errors import GateError
from tests.support.nets import BY_NAME, Net
from tests.support.oracle import loss_of, resting

DECAY = 0.75
Update = Callable[[GatedModule], None]


def ema(gated: GatedModule) -> tuple[GatedModule, Update]:
    average = AveragedModel(gated, multi_avg_fn=get_ema_multi_avg_fn(DECAY))
    average.update_parameters(gated)  # the first is a copy
    return average.module, average.update_parameters


def ema_with_buffers(gated: GatedModule) -> tuple[GatedModule, Update]:
    function = get_ema_multi_avg_fn(DECAY)
    average = AveragedModel(gated, multi_avg_fn=function, use_buffers=True)
    average.update_parameters(gated)
    return average.module, average.update_parameters


def timm_ema(gated: GatedModule) -> tuple[GatedModule, Update]:
    average = timm.utils.ModelEmaV3(gated, decay=DECAY, exclude_buffers=True)
    return average.module, average.update


def own(gated: GatedModule) -> tuple[GatedModule, Update]:
    average = copy.deepcopy(gated)
    fxprune.follow(average, gated)

    def update(network: GatedModule) -> None:
        with torch.no_grad():
            for mean, value in zip(average.parameters(), network.parameters(), strict=True):
                mean.lerp_(value, 1 - DECAY)

    return average, update


def train_step(gated: GatedModule, optimizer: torch.optim.Optimizer, net: Net, step: int) -> None:
    optimizer.zero_grad()
    loss_of(gated, net, step).backward()
    optimizer.step()


def build(net: Net, policy: str) -> tuple[GatedModule, torch.optim.Optimizer]:
    gated = net.gated(policy=policy).train()
    optimizer = torch.optim.SGD(gated.parameters(), 0.05, momentum=0.9)
    attach(gated, optimizer)
    return gated, optimizer


@pytest.mark.sampled(3)
@pytest.mark.parametrize("make", [ema, ema_with_buffers, timm_ema, own])
@pytest.mark.parametrize("policy", ["cucb{c=1}", "utility{warmup=2,reallocate=3}"])
@pytest.mark.parametrize("name", ["resnet_projection", "densenet"])
def test_each_channel_has_its_own_average(make: Any, policy: str, name: str) -> None:
    net = BY_NAME[name]
    gated, optimizer = build(net, policy)
    average, update = make(gated)
    wanted = {name: p.detach().clone() for name, p in average.dense_tensors().items()}
    parameters = [name for name, _ in gated.named_parameters()]
    widths = set()
    for step in range(12):
        train_step(gated, optimizer, net, step)
        widths.add(gated.widths)
        if step % 4 == 1:  # a validation in between
            gated.eval()
            average.eval()
            average(*net.inputs(seed=step))
            gated.train()
        update(gated)
        now, chosen = gated.dense_tensors(), Selection(gated.executing, gated.widths)
        for key in parameters:
            rests = resting(gated, key, chosen) if key in gated.channels.axes else None
            moved = torch.lerp(wanted[key], now[key].detach(), 1 - DECAY)
            wanted[key] = moved if rests is None else torch.where(rests, wanted[key], moved)
    assert (len(widths) > 1) == policy.startswith("utility")
    found = average.dense_tensors()
    for key in parameters:
        torch.testing.assert_close(found[key].detach(), wanted[key], rtol=1e-9, atol=1e-12)

    average.eval()
    out, compact = average(*net.inputs(seed=9)), shrink(average)(*net.inputs(seed=9))
    torch.testing.assert_close(out, compact)
    one, two = average.selection(), gated.selection()
    assert all(
        torch.equal(one[key][dim].sort().values, two[key][dim].sort().values)
        for key in one
        for dim in one[key]
    )


def test_the_copy_of_an_average_stands_still(tmp_path: Any) -> None:
    net = BY_NAME["resnet_projection"]
    gated, optimizer = build(net, "cucb{c=1}")
    average, update = ema(gated)
    for step in range(3):
        train_step(gated, optimizer, net, step)
        update(gated)
    average.eval()
    still, out = copy.deepcopy(average), average(*net.inputs())
    assert not still.follows
    fxprune.save(average, tmp_path / "average.safetensors")
    for step in range(3, 6):
        train_step(gated, optimizer, net, step)
        update(gated)
    loaded = fxprune.load(tmp_path / "average.safetensors", net.model()).eval()
    assert torch.equal(still(*net.inputs()), out)
    torch.testing.assert_close(loaded(*net.inputs()), out)
    assert not torch.equal(average(*net.inputs()), out)


def test_statistics_measured_for_an_average() -> None:
    net = BY_NAME["vgg_bn"]
    gated, optimizer = build(net, "cucb{c=1}")
    averaged = AveragedModel(gated, multi_avg_fn=get_ema_multi_avg_fn(DECAY))
    for step in range(4):
        train_step(gated, optimizer, net, step)
        averaged.update_parameters(gated)
    batches = [net.inputs(8, seed=seed)[0] for seed in range(3)]
    update_bn(batches, averaged)
    wanted = shrink(averaged.module)
    update_bn(batches, wanted)
    found = shrink(averaged.module)
    for (name, one), (_, two) in zip(found.named_buffers(), wanted.named_buffers()):
        torch.testing.assert_close(one, two, msg=name)


def test_only_what_an_average_holds_follows() -> None:
    net = BY_NAME["resnet_projection"]
    gated, _ = build(net, "cucb{c=1}")
    average, _ = ema(gated)
    assert average.follows
    assert not gated.follows
    assert not copy.deepcopy(gated).follows


@pytest.mark.parametrize("kind", [timm.utils.ModelEmaV2, timm.utils.ModelEmaV3])
def test_averages_of_whole_state_dicts_are_refused(kind: Any) -> None:
    gated, _ = build(BY_NAME["resnet_projection"], "cucb{c=1}")
    average = kind(gated)
    with pytest.raises(GateError, match=r"ModelEmaV3\(gated, exclude_buffers=True\)"):
        average.update(gated)


def test_what_cannot_be_followed() -> None:
    net = BY_NAME["resnet_projection"]
    gated, _ = build(net, "cucb{c=1}")
    other, _ = build(BY_NAME["densenet"], "cucb{c=1}")
    for average in (net.model(), gated, other):
        with pytest.raises(GateError, match="average"):
            fxprune.follow(average, gated)


@pytest.mark.slow
def test_averages_are_recognised_whatever_was_imported() -> None:
    """In a process of its own, since here `fxprune.gated.followers` is imported already."""
    code = (
        "import torch, fxprune\n"
        "from torch.optim.swa_utils import AveragedModel\n"
        "model = torch.nn.Sequential(torch.nn.Conv2d(1, 4, 1), torch.nn.Conv2d(4, 1, 1))\n"
        "gated = fxprune.instrument(model, (torch.zeros(1, 1, 2, 2),))\n"
        "assert AveragedModel(gated).module.follows\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_a_kind_of_averaged_model_of_ones_own() -> None:
    class Own(AveragedModel):
        pass

    gated, optimizer = build(BY_NAME["resnet_projection"], "cucb{c=1}")
    average = Own(gated)
    train_step(gated, optimizer, BY_NAME["resnet_projection"], 0)
    average.update_parameters(gated)
    assert average.module.follows
    assert torch.equal(average.module.executing, gated.executing)
    other = Own(gated)
    other.load_state_dict(average.state_dict())


@pytest.mark.sampled(1)
@pytest.mark.parametrize("policy", ["cucb", "utility{warmup=0}", "balance{reallocate=2}"])
def test_an_average_that_is_loaded_alone(policy: str) -> None:
    """It computes what it did, though the network that it is of now is a fresh one."""
    net = BY_NAME["resnet_projection"]

    def build(
        seed: int, every: int = 1
    ) -> tuple[GatedModule, torch.optim.Optimizer, AveragedModel]:
        torch.manual_seed(seed)
        gated = instrument(
            net.model().train(), net.inputs(), policy=policy, budget="macs=0.4", every=every
        )
        optimizer = torch.optim.SGD(gated.parameters(), 0.05, momentum=0.9)
        attach(gated, optimizer)
        average = AveragedModel(gated, multi_avg_fn=get_ema_multi_avg_fn(DECAY))
        return gated, optimizer, average

    def train(gated: GatedModule, optimizer: torch.optim.Optimizer, average: AveragedModel) -> None:
        for step in range(6):
            optimizer.zero_grad()
            loss_of(gated, net, step).backward()
            optimizer.step()
            average.update_parameters(gated)

    gated, optimizer, average = build(0)
    train(gated, optimizer, average)
    shown = average.eval()(*net.inputs())
    fresh, other, unseen = build(1, every=100)
    unseen.load_state_dict(copy.deepcopy(average.state_dict()))
    again = AveragedModel(fresh, multi_avg_fn=get_ema_multi_avg_fn(DECAY))
    again.load_state_dict(copy.deepcopy(average.state_dict()))
    assert torch.equal(again.eval()(*net.inputs()), shown)
    loss_of(fresh, net, 0).backward()
    other.step()
    for one in (unseen, again):  # from the first step on
        assert torch.equal(one.module.executing, fresh.executing)
    train(fresh, other, again.train())
