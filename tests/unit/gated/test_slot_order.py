"""States of other channels, however they arrive, are put in the order of the channels at hand."""

import contextlib
import copy
import functools
from collections.abc import Callable
from types import CodeType
from typing import Any

import pytest
import torch
from torch import nn

from fxprune import GatedModule, attach, instrument
from fxprune.errors import FxpruneWarning, GateError
from fxprune.gated.slot_order import without_order
from tests.support.interrupts import interrupted

X = torch.zeros(2, 3, 9, 9)


Pair = tuple[GatedModule, torch.optim.Optimizer]


def momentum(seed: int = 0, steps: int = 4, dtype: torch.dtype = torch.float32) -> Pair:
    """Train with momentum that is a multiple of its weight, which stays; a mixed one is not."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3))
    gated = instrument(model.train().to(dtype), (X.to(dtype),), policy="random", seed=seed)
    optimizer = torch.optim.SGD(gated.parameters(), lr=0.0, momentum=1.0)
    attach(gated, optimizer)
    go_on(gated, optimizer, steps)
    return gated, optimizer


def go_on(network: nn.Module, optimizer: torch.optim.Optimizer, steps: int) -> None:
    for _ in range(steps):
        for parameter in network.parameters():
            parameter.grad = parameter.detach().clone()
        optimizer.step()
    optimizer.zero_grad()


def assert_no_channel_is_mixed(gated: GatedModule, optimizer: torch.optim.Optimizer) -> None:
    """Take some steps more, so that all channels are seen; what was kept of earlier ones is too."""
    for step in range(6):
        go_on(gated, optimizer, 1)
        for parameter in gated.parameters():
            state = optimizer.state[parameter]
            times = state["momentum_buffer"] / parameter.detach()
            assert step == 0 or times.max() > 2.5
            torch.testing.assert_close(times, times.round(), rtol=0.0, atol=1e-4)
            assert {*state} == {"momentum_buffer"}


@pytest.mark.parametrize("detached_first", [False, True])
def test_a_state_that_is_loaded_around_another_attach_is_put_in_order(
    detached_first: bool,
) -> None:
    gated, optimizer = momentum(steps=0)
    controller = attach(gated, optimizer := torch.optim.SGD(gated.parameters(), 0.0, 1.0))
    go_on(gated, optimizer, 4)
    saved = copy.deepcopy(optimizer.state_dict())
    go_on(gated, optimizer, 3)
    for change in (controller.detach, lambda: optimizer.load_state_dict(saved))[
        :: 1 if detached_first else -1
    ]:
        change()
    attach(gated, optimizer)
    assert_no_channel_is_mixed(gated, optimizer)


def loaded_then_copied(gated: GatedModule, optimizer: torch.optim.Optimizer) -> Pair:
    earlier = copy.deepcopy(optimizer.state_dict())
    go_on(gated, optimizer, 3)
    optimizer.load_state_dict(earlier)
    pair = copy.deepcopy((gated, optimizer))
    attach(*pair)
    return pair


def copied_then_left_behind(gated: GatedModule, optimizer: torch.optim.Optimizer) -> Pair:
    pair = copy.deepcopy((gated, optimizer))
    go_on(gated, optimizer, 3)  # the copy follows, and its optimiser is not attached yet
    attach(*pair)
    return pair


def kept_as_a_copy_of_the_optimizer(gated: GatedModule, optimizer: torch.optim.Optimizer) -> Pair:
    earlier = copy.deepcopy(optimizer)
    go_on(gated, optimizer, 3)
    optimizer.load_state_dict(earlier.state_dict())
    return gated, optimizer


def kept_without_a_copy(gated: GatedModule, optimizer: torch.optim.Optimizer) -> Pair:
    """It is then what it is by now, as of any network."""
    for now in (optimizer.state_dict(), copy.copy(optimizer).state_dict()):
        go_on(gated, optimizer, 3)
        optimizer.load_state_dict(now)
    return gated, optimizer


def kept_without_a_copy_at_other_widths(
    gated: GatedModule, optimizer: torch.optim.Optimizer
) -> Pair:
    earlier = optimizer.state_dict()
    gated.spend(0.75)
    go_on(gated, optimizer, 1)
    optimizer.load_state_dict(earlier)
    return gated, optimizer


class Renewing(torch.optim.SGD):
    """Keeps its momentum in a new tensor at each step."""

    def step(self, closure: Any = None) -> Any:
        for state in self.state.values():
            state["momentum_buffer"] = state["momentum_buffer"].clone()
        return super().step(closure)


def kept_without_a_copy_of_tensors_that_are_renewed(gated: GatedModule, _: object) -> Pair:
    optimizer = Renewing(gated.parameters(), lr=0.0, momentum=1.0)
    attach(gated, optimizer)
    go_on(gated, optimizer, 4)
    earlier = optimizer.state_dict()
    go_on(gated, optimizer, 3)
    optimizer.load_state_dict(earlier)
    return gated, optimizer


def put_in_by_hand_from_a_copy(gated: GatedModule, optimizer: torch.optim.Optimizer) -> Pair:
    earlier = copy.deepcopy(optimizer)
    go_on(gated, optimizer, 3)
    for parameter, its in zip(gated.parameters(), earlier.param_groups[0]["params"], strict=True):
        optimizer.state[parameter] = earlier.state[its]
    return gated, optimizer


def loaded_before_the_network_in_a_hook(
    gated: GatedModule, optimizer: torch.optim.Optimizer
) -> Pair:
    """The hook that was registered first hears of a state that has not been put in order."""
    other, _ = momentum(seed=1, steps=0)
    its = torch.optim.SGD(other.parameters(), lr=0.0, momentum=1.0)
    network = copy.deepcopy(gated.state_dict())
    its.register_load_state_dict_post_hook(lambda _: other.load_state_dict(network) and None)
    attach(other, its)
    go_on(other, its, 2)
    its.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    return other, its


def loaded_again_and_again(gated: GatedModule, optimizer: torch.optim.Optimizer) -> Pair:
    """What was loaded is not what trains on, even where nothing has to move."""
    earlier, other = (copy.deepcopy(optimizer.state_dict()) for _ in range(2))
    for steps, saved in ((0, earlier), (3, other), (1, earlier)):
        go_on(gated, optimizer, steps)
        optimizer.load_state_dict(saved)
    return gated, optimizer


def loaded_for_the_step_at_hand(gated: GatedModule, optimizer: torch.optim.Optimizer) -> Pair:
    earlier = copy.deepcopy(optimizer.state_dict())
    go_on(gated, optimizer, 3)
    hook = optimizer.register_step_pre_hook(lambda its, *_: its.load_state_dict(earlier))
    go_on(gated, optimizer, 1)
    hook.remove()
    return gated, optimizer


def emptied_for_the_step_at_hand(gated: GatedModule, optimizer: torch.optim.Optimizer) -> Pair:
    network = copy.deepcopy(gated.state_dict())
    go_on(gated, optimizer, 3)
    empty = {**optimizer.state_dict(), "state": {}}
    hook = optimizer.register_step_pre_hook(lambda its, *_: its.load_state_dict(empty))
    go_on(gated, optimizer, 1)
    hook.remove()
    gated.load_state_dict(network)
    return gated, optimizer


def under_the_groups_of_now(gated: GatedModule, optimizer: torch.optim.Optimizer) -> Pair:
    earlier = copy.deepcopy(optimizer.state_dict())
    go_on(gated, optimizer, 3)
    now = optimizer.state_dict()
    optimizer.load_state_dict({"state": earlier["state"], "param_groups": now["param_groups"]})
    return gated, optimizer


def saved_before_the_network_is_loaded(
    gated: GatedModule, optimizer: torch.optim.Optimizer
) -> Pair:
    network, moments = copy.deepcopy(gated.state_dict()), copy.deepcopy(optimizer.state_dict())
    other, its = momentum(seed=1)
    its.load_state_dict(moments)
    its.state_dict()  # puts it in the order of the network as it is
    other.load_state_dict(network)
    return other, its


def selected_at_other_widths(_: GatedModule, optimizer: torch.optim.Optimizer) -> Pair:
    wide, its = momentum(seed=1, steps=0)
    wide.spend(1.0)
    its.load_state_dict(optimizer.state_dict())
    wide.spend(0.75)
    return wide, its


def of_the_dense_network(gated: GatedModule, _: torch.optim.Optimizer) -> Pair:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3))
    model.load_state_dict(gated.dense_state_dict())
    dense = torch.optim.SGD(model.parameters(), lr=0.0, momentum=1.0)
    go_on(model, dense, 2)
    optimizer = torch.optim.SGD(gated.parameters(), lr=0.0, momentum=1.0)
    optimizer.load_state_dict(dense.state_dict())
    attach(gated, optimizer)
    return gated, optimizer


@pytest.mark.sampled(5)
@pytest.mark.parametrize(
    "arrive",
    [
        loaded_then_copied,
        copied_then_left_behind,
        kept_as_a_copy_of_the_optimizer,
        kept_without_a_copy,
        kept_without_a_copy_at_other_widths,
        kept_without_a_copy_of_tensors_that_are_renewed,
        put_in_by_hand_from_a_copy,
        loaded_before_the_network_in_a_hook,
        loaded_again_and_again,
        loaded_for_the_step_at_hand,
        emptied_for_the_step_at_hand,
        under_the_groups_of_now,
        saved_before_the_network_is_loaded,
        selected_at_other_widths,
        of_the_dense_network,
    ],
)
def test_a_state_of_other_channels_is_put_in_order(arrive: Callable[..., Pair]) -> None:
    assert_no_channel_is_mixed(*arrive(*momentum()))


class HalfRenewing(torch.optim.SGD):
    """Keeps some of its momentum in new tensors at each step."""

    def step(self, closure: Any = None) -> Any:
        for state in [*self.state.values()][1:]:
            state["momentum_buffer"] = state["momentum_buffer"].clone()
        return super().step(closure)


def test_a_state_kept_without_a_copy_of_which_a_part_is_renewed_is_refused() -> None:
    gated, _ = momentum(steps=0)
    optimizer = HalfRenewing(gated.parameters(), lr=0.0, momentum=1.0)
    attach(gated, optimizer)
    go_on(gated, optimizer, 4)
    earlier = optimizer.state_dict()
    go_on(gated, optimizer, 3)
    with pytest.raises(GateError, match="HalfRenewing has is of another network"):
        optimizer.load_state_dict(earlier)


@pytest.mark.parametrize("settles", [False, True])
def test_a_loaded_state_that_does_not_say_its_order_is_warned_of(settles: bool) -> None:
    """So does torch.distributed.checkpoint with flatten_optimizer_state_dict."""
    gated, optimizer = momentum()
    if settles:
        gated.settle()
    saved = without_order(optimizer.state_dict())
    match = "SGD has loaded does not say of which channels"
    with contextlib.nullcontext() if settles else pytest.warns(FxpruneWarning, match=match):
        optimizer.load_state_dict(saved)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_the_order_of_a_state_survives_a_cast(dtype: torch.dtype) -> None:
    """Loading casts all that an optimiser keeps to the dtype of the parameter."""
    model = nn.Sequential(nn.Conv2d(3, 600, 1), nn.ReLU(), nn.Conv2d(600, 2, 1)).to(dtype)
    gated = instrument(model, (X.to(dtype),), policy="random")
    optimizer = torch.optim.SGD(gated.parameters(), lr=0.0, momentum=1.0)
    attach(gated, optimizer)
    go_on(gated, optimizer, 1)
    first = next(iter(gated.parameters()))
    kept = {int(c): float(n) for n, c in enumerate(gated.trained.channels)}
    optimizer.state[first]["momentum_buffer"][:] = torch.arange(len(first))[:, None, None, None]
    saved = copy.deepcopy(optimizer.state_dict())
    gated.select(gated.best())
    optimizer.load_state_dict(saved)
    optimizer.state_dict()
    for channel, found in zip(
        gated.trained.channels.tolist(), optimizer.state[first]["momentum_buffer"], strict=True
    ):
        assert channel not in kept or kept[channel] == pytest.approx(
            float(found[0, 0, 0]), rel=0.01
        )


@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.Adafactor])
def test_a_state_that_fits_nothing_is_refused(kind: type[torch.optim.Optimizer]) -> None:
    """Adafactor's rows and columns of the dense network; a compact network's momentum."""
    gated, _ = momentum(steps=0)
    options = {"momentum": 1.0} if kind is torch.optim.SGD else {}
    widths = 6 if kind is torch.optim.SGD else 8
    other = nn.Sequential(nn.Conv2d(3, widths, 3), nn.ReLU(), nn.Conv2d(widths, 4, 3))
    its = kind([*other.parameters()], lr=0.0, **options)  # type: ignore[call-arg]
    go_on(other, its, 1)
    optimizer = kind([*gated.parameters()], lr=0.0, **options)  # type: ignore[call-arg]
    attach(gated, optimizer)
    optimizer.load_state_dict(its.state_dict())
    with pytest.raises(GateError, match=r"has of 0.weight does not fit\n  why  it is \([68], "):
        go_on(gated, optimizer, 1)


def test_the_state_of_another_gated_network_is_refused() -> None:
    gated, optimizer = momentum()
    model = nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 4, 3))
    other = instrument(model, (X,), policy="random")
    its = torch.optim.SGD(other.parameters(), lr=0.0, momentum=1.0)
    attach(other, its)
    go_on(other, its, 2)
    saved = copy.deepcopy(optimizer.state_dict())
    with pytest.raises(GateError, match="SGD has is of another network"):
        optimizer.load_state_dict(its.state_dict())
    with pytest.raises(GateError, match="SGD has is of another network"):
        go_on(gated, optimizer, 1)
    optimizer.load_state_dict(saved)
    assert_no_channel_is_mixed(gated, optimizer)


def puts_in_order(code: CodeType) -> bool:
    return code.co_name in ("put_in_order", "arrive", "taken", "install")


@pytest.mark.slow
def test_an_interrupt_while_a_state_is_put_in_order_mixes_no_channel() -> None:
    gated, optimizer = momentum(dtype=torch.float64)  # which counts far
    number, reached = 1, True
    while reached:
        saved = copy.deepcopy(optimizer.state_dict())
        go_on(gated, optimizer, 1)
        load = functools.partial(optimizer.load_state_dict, saved)
        reached = interrupted(load, number, puts_in_order)
        assert_no_channel_is_mixed(gated, optimizer)
        number += 1
    assert number > 40


def test_a_state_that_is_loaded_within_a_round_is_put_in_order() -> None:
    gated, whole = momentum(steps=0)
    first, *others = gated.parameters()
    del whole
    pair = [torch.optim.SGD(held, lr=0.0, momentum=1.0) for held in ([first], others)]
    for one in pair:
        attach(gated, one)

    def go_round(load: dict[str, Any] | None = None) -> None:
        for parameter in gated.parameters():
            parameter.grad = parameter.detach().clone()
        pair[0].step()
        if load is not None:
            pair[1].load_state_dict(load)
        pair[1].step()

    for _ in range(4):
        go_round()
    saved = copy.deepcopy(pair[1].state_dict())
    go_round()
    go_round(saved)
    go_round()
    for parameter in others:
        times = pair[1].state[parameter]["momentum_buffer"] / parameter.detach()
        torch.testing.assert_close(times, times.round(), rtol=0.0, atol=1e-4)


class Shard(torch.optim.Optimizer):
    """Loads as ZeroRedundancyOptimizer: past the hooks of the one inside, None of other ranks."""

    def __init__(self, inside: torch.optim.Optimizer) -> None:
        super().__init__([p for group in inside.param_groups for p in group["params"]], {"lr": 0.0})
        self.inside = inside

    def step(self, closure: Any = None) -> None:
        del closure
        self.inside.step()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        held = [p for group in self.inside.param_groups for p in group["params"]]
        self.inside.state.update({held[n]: each for n, each in state_dict["state"].items()})
        nothing = dict.fromkeys(state_dict["state"])
        super().load_state_dict({**self.state_dict(), "state": nothing})


def test_a_state_that_a_wrapper_loads_past_the_hooks_is_put_in_order() -> None:
    gated, inside = momentum(steps=0)
    optimizer = Shard(inside)
    attach(gated, optimizer)
    go_on(gated, optimizer, 4)
    saved = copy.deepcopy(inside.state_dict())
    go_on(gated, optimizer, 2)
    optimizer.load_state_dict(saved)
    go_on(gated, optimizer, 1)
    assert_no_channel_is_mixed(gated, inside)
