"""The one line in a user's loop: what rests stays to the bit, and everything a loop may do."""

import copy
import itertools
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from fxprune import GatedModule, attach, instrument, shrink
from fxprune.bank.exchange import Selection
from fxprune.errors import GateError
from fxprune.gated.nodes import Tap
from tests.support.law import choose
from tests.support.nets import BY_NAME, NETS, Net
from tests.support.oracle import loss_of, moments, resting
from tests.support.training import (
    adamw,
    build,
    dense,
    foreach_sgd,
    fused_adamw,
    fused_sgd,
    sgd,
    train_step,
)

TRAINED = [net for net in NETS if net.name not in ("several",)]


@pytest.mark.sampled(9)
@pytest.mark.parametrize("make", [sgd, adamw])
@pytest.mark.parametrize("net", TRAINED, ids=lambda net: net.name)
def test_what_rests_stays_to_the_bit(net: Net, make: Any) -> None:
    """Parameters, running statistics and optimiser state; nothing decays, nothing drifts."""
    gated, optimizer = build(net, make, policy="random")
    train_step(gated, optimizer, net, 0)
    for step in range(1, 4):
        chosen = Selection(gated.executing.clone(), gated.widths)
        before, slots = dense(gated), moments(gated, optimizer)
        train_step(gated, optimizer, net, step)
        after, new_slots = dense(gated), moments(gated, optimizer)
        rested, learned = 0, 0
        for name, tensor in after.items():
            rests = resting(gated, name, chosen)
            assert torch.equal(tensor[rests], before[name][rests]), name
            rested += int(rests.sum())
            learned += int((tensor[~rests] != before[name][~rests]).sum())
        for key, tensor in new_slots.items():
            rests = resting(gated, key.split("/", 1)[1], chosen)
            known = slots.get(key, torch.zeros_like(tensor))  # a branch may be left out at first
            assert torch.equal(tensor[rests], known[rests]), key
        assert rested > 0
        assert learned > 0


@pytest.mark.sampled(3)
@pytest.mark.parametrize("make", [sgd, foreach_sgd, fused_sgd, adamw, fused_adamw])
@pytest.mark.parametrize("name", ["resnet_projection", "densenet", "shuffle_split"])
def test_momentum_comes_back_with_its_channel(name: str, make: Any) -> None:
    """Away for two steps, while all others execute, and back again at other slots."""
    net = BY_NAME[name]
    gated, optimizer = build(net, make, every=100)
    graph = gated.channels
    first = choose(graph, gated.widths, seed=1)
    others = sorted(set(range(graph.layout.total)) - set(first.channels.tolist()))
    widths = tuple(size - width for size, width in zip(graph.layout.sizes, first.widths))
    away = Selection(torch.tensor(others), widths)
    back = Selection(_reversed_slots(first.channels, first.widths), first.widths)

    gated.select(first)
    train_step(gated, optimizer, net, 0)
    before = moments(gated, optimizer)
    gated.select(away)
    for step in (1, 2):
        train_step(gated, optimizer, net, step)
    gated.select(back)
    assert any(tensor.any() for tensor in before.values())
    for key, tensor in moments(gated, optimizer).items():
        mask = ~resting(gated, key.split("/", 1)[1], first)
        assert torch.equal(tensor[mask], before[key][mask]), key


def _reversed_slots(channels: Tensor, widths: tuple[int, ...]) -> Tensor:
    return torch.cat([part.flip(0) for part in channels.split(widths)])


def test_selections_every_so_often() -> None:
    net = BY_NAME["resnet_projection"]
    gated, optimizer = build(net, policy="random", every=3)
    seen = []
    for step in range(9):
        seen.append(gated.executing.tolist())
        train_step(gated, optimizer, net, step)
    changes = [number for number, (a, b) in enumerate(itertools.pairwise(seen), 1) if a != b]
    assert changes == [3, 6]


def test_channels_that_stay_keep_their_slots() -> None:
    net = BY_NAME["resnet_projection"]
    gated, optimizer = build(net, policy="cucb{c=0.3}")
    moved = 0
    for step in range(8):
        before = gated.executing.tolist()
        train_step(gated, optimizer, net, step)
        after = gated.executing.tolist()
        both = set(before) & set(after)
        assert all(before.index(channel) == after.index(channel) for channel in both)
        moved += len(after) - len(both)
    assert moved > 0


def test_parameters_stay_the_same_objects() -> None:
    net = BY_NAME["densenet"]
    gated, optimizer = build(net, policy="utility{decay=0.6,scale=l2,warmup=1,reallocate=1}")
    objects = {name: id(parameter) for name, parameter in gated.named_parameters()}
    widths = set()
    for step in range(5):
        train_step(gated, optimizer, net, step)
        widths.add(gated.widths)
    assert len(widths) > 1
    assert {name: id(parameter) for name, parameter in gated.named_parameters()} == objects
    assert {id(p) for group in optimizer.param_groups for p in group["params"]} <= set(
        objects.values()
    )


def test_detach() -> None:
    net = BY_NAME["resnet_projection"]
    gated = net.gated(policy="random").train()
    optimizer = sgd(gated.parameters())
    controller = attach(gated, optimizer)
    train_step(gated, optimizer, net, 0)
    executing = gated.executing.clone()
    controller.detach()
    train_step(gated, optimizer, net, 1)
    assert torch.equal(gated.executing, executing)
    assert gated.steps == 1


def test_an_optimizer_is_attached_once() -> None:
    net = BY_NAME["resnet_projection"]
    gated = net.gated().train()
    optimizer = sgd(gated.parameters())
    controller = attach(gated, optimizer)
    with pytest.raises(GateError) as error:
        attach(gated, optimizer)
    assert str(error.value) == (
        "this optimiser is attached to the gated network already\n"
        "  why  each of its steps would be observed twice\n"
        "  do   call attach once, or .detach() on what it returned before"
    )
    train_step(gated, optimizer, net, 0)
    assert gated.steps == 1
    controller.detach()
    attach(gated, optimizer)
    train_step(gated, optimizer, net, 1)
    assert gated.steps == 2
    twin = copy.deepcopy(gated)
    attach(twin, sgd(twin.parameters()))
    attach(gated, sgd(gated.parameters()))  # another one, for the next part of a training


@pytest.mark.parametrize("make", [sgd, fused_sgd])
def test_a_step_that_the_scaler_skips_is_not_observed(make: Any) -> None:
    """A fused optimiser is called all the same, and skips the step inside."""
    net = BY_NAME["resnet_projection"]
    gated, optimizer = build(net, make, policy="cucb{c=1}")
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    for step, broken in enumerate((False, True, False)):
        state = gated.training_state()
        optimizer.zero_grad()
        scaler.scale(loss_of(gated, net, step)).backward()
        if broken:
            next(gated.parameters()).grad.view(-1)[0] = torch.inf
        scaler.step(optimizer)
        scaler.update()
        now = gated.training_state()
        same = [key for key in state if not key.startswith(("dense/", "state/"))]
        assert all(torch.equal(state[key], now[key]) for key in same) == broken
        if not broken:
            assert not torch.equal(state["trained/channels"], now["trained/channels"])
    assert gated.steps == 2
    assert scaler.get_scale() == 2.0**9


@pytest.mark.parametrize("policy", ["cucb{c=0.5}", "cucb{c=0.5,saliency=sample}"])
def test_neither_scale_nor_clipping_changes_a_choice(policy: str) -> None:
    """Rewards are shares of their group's largest; 2**10 and 2**-10 are exact in floating point."""
    net = BY_NAME["vgg_bn"]
    chosen = []
    for factor in (1.0, 2.0**10, 2.0**-10):
        gated, optimizer = build(net, policy=policy)
        optimizer.param_groups[0]["lr"] = 0.0  # the weights shall not differ
        for step in range(3):
            optimizer.zero_grad()
            torch.manual_seed(step)
            (factor * loss_of(gated, net, step)).backward()
            if factor == 1.0:
                norm = nn.utils.clip_grad_norm_(gated.parameters(), 1e-3)
                assert norm > 1e-3
            optimizer.step()
            chosen.append(gated.executing.tolist())
    assert chosen[:3] == chosen[3:6] == chosen[6:]
    assert chosen[0] != chosen[1]


@pytest.mark.parametrize("saliency", ["batch", "sample"])
def test_gradient_accumulation(saliency: str) -> None:
    """Two halves of a batch are the batch."""
    net = BY_NAME["raw"]
    states = []
    for parts in ((4,), (2, 2)):
        gated, optimizer = build(net, policy=f"cucb{{c=1,saliency={saliency}}}")
        for step in range(3):
            inputs = net.inputs(4, seed=step)[0].split(parts)
            optimizer.zero_grad()
            for part in inputs:
                gated(part).square().sum().backward()
            optimizer.step()
        states.append(gated.training_state())
    assert torch.equal(states[0]["trained/channels"], states[1]["trained/channels"])
    for key, value in states[0].items():
        torch.testing.assert_close(states[1][key], value, rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize("keyword", [True, False])
def test_a_closure_is_observed_when_it_has_run(keyword: bool) -> None:
    """As Lightning does it: the gradients are not there before the optimiser calls the closure."""
    net = BY_NAME["resnet_projection"]
    states = []
    for closed in (False, True):
        gated, optimizer = build(net, policy="cucb{c=1}")
        for step in range(4):

            def closure(step: int = step, gated: GatedModule = gated) -> Tensor:
                gated.zero_grad()
                loss = loss_of(gated, net, step)
                loss.backward()
                return loss

            if closed:
                options = {"closure": closure} if keyword else {}
                loss = optimizer.step(*(() if keyword else (closure,)), **options)
                assert loss > 0
            else:
                closure()
                optimizer.step()
        states.append(gated.training_state())
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])
    assert states[0]["steps"] == 4


def test_an_optimizer_that_calls_its_closure_often_is_observed_once() -> None:
    net = BY_NAME["raw"]
    gated = net.gated(policy="cucb{c=1}", every=100).train()
    optimizer = torch.optim.LBFGS(gated.parameters(), lr=0.1, max_iter=5)
    attach(gated, optimizer)
    calls = 0

    def closure() -> Tensor:
        nonlocal calls
        calls += 1
        optimizer.zero_grad()
        loss = loss_of(gated, net, 0)
        loss.backward()
        return loss

    optimizer.step(closure)
    assert calls > 1
    assert gated.steps == 1
    assert int(gated.policy_state["rounds"]) == 1


def test_learning_rate_cuts_are_milestones() -> None:
    """A warm-up is none, a cosine's slow fall is one for each halving."""
    net = BY_NAME["vgg_bn"]
    gated, optimizer = build(net, policy="utility{warmup=0,reallocate=0}")
    seen = []
    for step, rate in enumerate((0.01, 0.05, 0.1, 0.09, 0.06, 0.05, 0.04, 0.025, 0.03, 0.0025)):
        optimizer.param_groups[0]["lr"] = rate
        train_step(gated, optimizer, net, step)
        seen.append(int(gated.policy_state["milestones"]))
    assert seen == [0, 0, 0, 0, 0, 1, 1, 2, 2, 3]


def test_warm_up_executes_all_channels() -> None:
    net = BY_NAME["densenet"]
    gated, optimizer = build(net, policy="cucb{warmup=3}", budget="keep=0.5")
    sizes = gated.channels.layout.sizes
    seen = []
    for step in range(5):
        seen.append(gated.widths == sizes)
        train_step(gated, optimizer, net, step)
    assert seen == [True, True, True, False, False]
    assert gated.widths == tuple(size // 2 for size in sizes)


def test_a_warm_up_evaluates_at_the_budget() -> None:
    net = BY_NAME["densenet"]
    gated, _ = build(net, policy="cucb{warmup=3}", budget="keep=0.5")
    assert gated.widths == gated.channels.layout.sizes
    gated.eval()
    assert gated.widths == tuple(size // 2 for size in gated.channels.layout.sizes)
    gated.train()
    assert gated.widths == gated.channels.layout.sizes


@pytest.mark.parametrize("saliency", ["batch", "sample"])
@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpointing_runs_forward_twice_and_counts_once(saliency: str, reentrant: bool) -> None:
    net = BY_NAME["raw"]  # without norms, whose statistics would be updated twice
    states = []
    for checkpointed in (False, True):
        gated, optimizer = build(net, policy=f"cucb{{c=1,saliency={saliency}}}")
        for step in range(5):
            x = net.inputs(4, seed=step)[0].requires_grad_()
            optimizer.zero_grad()
            out = checkpoint(gated, x, use_reentrant=reentrant) if checkpointed else gated(x)
            torch.tanh(out).square().mean().backward()
            optimizer.step()
        states.append(gated.training_state())
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])


@pytest.mark.parametrize("saliency", ["batch", "sample"])
def test_a_model_that_checkpoints_a_part_of_itself(saliency: str) -> None:
    class Checkpointed(nn.Module):
        def __init__(self, used: bool) -> None:
            super().__init__()
            self.used = used
            self.first, self.second = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3)
            self.last = nn.Conv2d(8, 4, 1)

        def part(self, x: Tensor) -> Tensor:
            return torch.tanh(self.second(torch.tanh(self.first(x))))

        def forward(self, x: Tensor) -> Tensor:
            x = checkpoint(self.part, x, use_reentrant=False) if self.used else self.part(x)
            out: Tensor = self.last(x)
            return out

    states = []
    for used in (False, True):
        torch.manual_seed(0)
        model = Checkpointed(used).train()
        policy = f"cucb{{c=1,saliency={saliency}}}"
        gated = instrument(model, (torch.zeros(1, 3, 8, 8),), policy=policy)
        optimizer = sgd(gated.parameters())
        attach(gated, optimizer)
        for step in range(5):
            generator = torch.Generator().manual_seed(step)
            optimizer.zero_grad()
            gated(torch.randn(4, 3, 8, 8, generator=generator)).square().mean().backward()
            optimizer.step()
        states.append(gated.training_state())
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])


@pytest.mark.parametrize("policy", ["cucb", "cucb{saliency=sample}"])
def test_bfloat16_autocast_trains_the_narrow_network(policy: str) -> None:
    """To the bit as the compact network does, whose parameters stay in full precision."""
    net = BY_NAME["resnet_projection"]
    gated = instrument(net.model().float().train(), _single(net), policy=policy, every=100)
    compact = shrink(gated)
    optimizers = [sgd(gated.parameters()), sgd(compact.parameters())]
    attach(gated, optimizers[0])
    for step in range(4):
        for network, optimizer in zip((gated, compact), optimizers):
            optimizer.zero_grad()
            with torch.autocast("cpu", torch.bfloat16):
                out = network(*_single(net, 4, step))
            assert out.dtype == torch.bfloat16
            out.float().square().mean().backward()
            optimizer.step()
    for one, two in zip(gated.parameters(), compact.parameters(), strict=True):
        assert one.dtype == torch.float32
        assert torch.equal(one, two)
    assert gated.policy_state["mean"].dtype == torch.float32
    assert gated.policy_state["mean"][gated.executing].max() > 0.5


def _single(net: Net, batch: int = 2, seed: int = 0) -> tuple[Tensor, ...]:
    return tuple(x.float() for x in net.inputs(batch, seed=seed))


def test_after_a_skipped_step_the_taps_go_on() -> None:
    """What was not finite is not observed, once; then all is as before."""
    net = BY_NAME["vgg_bn"]
    gated, optimizer = build(net, policy="cucb{c=1,saliency=sample}")
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    for step in range(6):
        optimizer.zero_grad()
        loss = loss_of(gated, net, step)
        scaler.scale(loss * torch.inf if step == 2 else loss).backward()
        scaler.unscale_(optimizer)
        nn.utils.clip_grad_norm_(gated.parameters(), 1.0)
        scaler.step(optimizer)
        scaler.update()
    assert gated.steps == 5
    state = gated.training_state()
    assert all(value.isfinite().all() for value in state.values())
    plays = state["policy/plays"]
    assert plays.sum() >= 4 * len(gated.executing)


@pytest.mark.parametrize("saliency", ["batch", "sample"])
def test_accumulation_over_changes_of_width(saliency: str) -> None:
    net = BY_NAME["raw"]
    states = []
    for parts in ((4,), (1, 3)):
        policy = f"utility{{warmup=2,reallocate=2,saliency={saliency}}}"
        gated, optimizer = build(net, policy=policy)
        for step in range(8):
            optimizer.zero_grad()
            for part in net.inputs(4, seed=step)[0].split(parts):
                (torch.tanh(gated(part)).square().mean() * len(part) / 4).backward()
            optimizer.step()
        states.append(gated.training_state())
    if saliency == "batch":  # by sample, a mean over samples is not the sum over unequal parts
        assert torch.equal(states[0]["trained/channels"], states[1]["trained/channels"])
        for key, value in states[0].items():
            torch.testing.assert_close(states[1][key], value, rtol=1e-5, atol=1e-9)
    assert states[1]["dense/" + next(iter(gated.channels.axes))].isfinite().all()
    assert states[1]["trained/widths"].sum() < sum(gated.channels.layout.sizes)


def test_what_the_taps_see_while_settled_is_not_kept() -> None:
    """The first observation afterwards is of its own step alone."""
    net = BY_NAME["vgg_bn"]
    gated, optimizer = build(net, policy="cucb{c=1,saliency=sample}")
    train_step(gated, optimizer, net, 0)
    gated.settle()
    for step in range(3):
        train_step(gated, optimizer, net, step)
    taps = [module for module in gated.modules() if isinstance(module, Tap)]
    assert taps
    assert [tap.take() for tap in taps] == [None] * len(taps)
