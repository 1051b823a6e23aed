"""The optimiser's state follows its channel: two channels that train in turns, each as if alone."""

import copy
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fxprune import GatedModule, attach, instrument
from fxprune.bank.exchange import Selection
from fxprune.gated.optimizer_state import beginnings

Make = Callable[[Any], torch.optim.Optimizer]
OPTIMIZERS: dict[str, Make] = {
    "momentum": lambda p: torch.optim.SGD(p, 0.1, momentum=0.9, weight_decay=0.01),
    "nesterov": lambda p: torch.optim.SGD(p, 0.1, momentum=0.9, nesterov=True),
    "adam": lambda p: torch.optim.Adam(p, 0.01, amsgrad=True),
    "adamw": lambda p: torch.optim.AdamW(p, 0.01, weight_decay=0.1),
    "rmsprop": lambda p: torch.optim.RMSprop(p, 0.01, momentum=0.5, centered=True),
    "adagrad": lambda p: torch.optim.Adagrad(p, 0.1, initial_accumulator_value=0.5),
    "rprop": lambda p: torch.optim.Rprop(p, 0.02),
    "adadelta": lambda p: torch.optim.Adadelta(p, 0.5),
    "nadam": lambda p: torch.optim.NAdam(p, 0.01),
    "radam": lambda p: torch.optim.RAdam(p, 0.01),
}
# What an optimiser keeps once for a parameter counts the parameter's steps, not the channel's.
SHARED = ("step", "mu_product")
# All else is zero before a channel's first gradient.
FIRST = {"sum": 0.5, "step_size": 0.02}


class Two(nn.Module):
    """Two channels between a convolution and a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.fc = nn.Conv2d(3, 2, 2), nn.Linear(2, 1)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.fc(torch.tanh(self.conv(x)).mean((2, 3)))
        return out


def slice_of(name: str, tensor: Tensor, channel: int) -> Tensor:
    """The part of a dense tensor that belongs to a channel."""
    return (
        tensor[:, channel : channel + 1] if name == "fc.weight" else tensor[channel : channel + 1]
    )


def images(step: int) -> Tensor:
    generator = torch.Generator().manual_seed(step)
    return torch.randn(4, 3, 3, 3, generator=generator, dtype=torch.float64)


class Apart:
    """One channel alone, as a network of width 1 with an optimiser of its own."""

    def __init__(self, model: Two, channel: int, make: Make) -> None:
        self.parameters = {
            name: nn.Parameter(slice_of(name, model.get_parameter(name).detach(), channel).clone())
            for name in ("conv.weight", "conv.bias", "fc.weight")
        }
        self.bias = model.fc.bias.detach()
        self.optimizer = make(list(self.parameters.values()))

    def step(self, x: Tensor, before: dict[str, dict[str, Any]]) -> None:
        """Trains; `before` is the gated network's optimiser state by parameter."""
        self.optimizer.zero_grad()
        own = self.parameters
        hidden = torch.tanh(nn.functional.conv2d(x, own["conv.weight"], own["conv.bias"]))
        out = nn.functional.linear(hidden.mean((2, 3)), own["fc.weight"], self.bias)
        out.square().sum().backward()
        for name, parameter in own.items():
            state = self.optimizer.state[parameter]
            for key, value in before.get(name, {}).items():
                if key in SHARED:
                    state[key] = value
                elif key not in state and isinstance(value, Tensor):
                    state[key] = torch.full_like(parameter, FIRST.get(key, 0.0))
        self.optimizer.step()


@pytest.mark.sampled(3)
@pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_two_channels_in_turns_train_as_each_apart(make: Make) -> None:
    """To the bit; the step count is the parameter's, where the optimiser keeps one."""
    gated, optimizer, model = build(make)
    apart = [Apart(model, channel, make) for channel in range(2)]
    for step, channel in enumerate([0, 0, 0, 1, 1, 0, 1, 0, 0, 0, 1, 1, 1, 0, 1]):
        gated.select(Selection(torch.tensor([channel]), (1,)))
        before = {
            name: {key: copy.deepcopy(value) for key, value in optimizer.state[parameter].items()}
            for name, parameter in gated.named_parameters()
        }
        optimizer.zero_grad()
        gated(images(step)).square().sum().backward()
        optimizer.step()
        apart[channel].step(images(step), before if step else {})
        dense = gated.dense_state_dict()
        for number, one in enumerate(apart):
            for name, parameter in one.parameters.items():
                found = slice_of(name, dense[name], number)
                assert torch.equal(found, parameter.detach()), (step, number, name)


def build(make: Make, policy: str = "fixed") -> tuple[GatedModule, torch.optim.Optimizer, Two]:
    torch.manual_seed(0)
    model = Two().double().train()
    model.fc.bias.requires_grad = False  # it belongs to no channel
    gated = instrument(model, (torch.zeros(1, 3, 3, 3).double(),), policy=policy)
    optimizer = make([p for p in gated.parameters() if p.requires_grad])
    attach(gated, optimizer)
    return gated, optimizer, model


@pytest.mark.parametrize(
    ("make", "found"),
    [
        (OPTIMIZERS["adagrad"], {"sum": 0.5}),
        (OPTIMIZERS["rprop"], {"prev": 0.0, "step_size": pytest.approx(0.02)}),
        (OPTIMIZERS["adamw"], {"exp_avg": 0.0, "exp_avg_sq": 0.0}),
        (lambda p: torch.optim.SGD(p, 0.1), {}),
        (torch.optim.LBFGS, {}),  # it cannot be asked: it wants a closure
    ],
    ids=["adagrad", "rprop", "adamw", "sgd", "lbfgs"],
)
def test_where_a_state_begins(make: Make, found: dict[str, float]) -> None:
    parameter = nn.Parameter(torch.ones(3, 4))
    optimizer = make([parameter])
    assert beginnings(optimizer, parameter) == found
    assert not optimizer.state.get(parameter, {}) or "sum" in found


def train(gated: GatedModule, optimizer: torch.optim.Optimizer, steps: int) -> None:
    for step in range(steps):

        def closure(step: int = step) -> Tensor:
            optimizer.zero_grad()
            loss: Tensor = gated(images(step)).square().sum()
            loss.backward()
            return loss

        optimizer.step(closure)


STRAYS = {
    "adafactor": (lambda p: torch.optim.Adafactor(p, 0.01), ["row_var", "col_var"]),
    "lbfgs": (lambda p: torch.optim.LBFGS(p, 0.01, max_iter=3), ["d", "old_dirs", "old_stps"]),
}


@pytest.mark.parametrize(("make", "keys"), STRAYS.values(), ids=STRAYS)
def test_a_state_that_cannot_follow_is_told_once(make: Make, keys: list[str]) -> None:
    gated, optimizer, _ = build(make, policy="random")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        train(gated, optimizer, 6)
    texts = [str(warning.message) for warning in caught]
    kind = type(optimizer).__name__
    told = [text for text in texts if "does not follow the channels" in text]
    assert all(any(f"the state {key!r} of {kind} " in text for text in told) for key in keys)
    assert len(told) == len(set(told)) < 8
    assert all("\n  why  " in text and "\n  do   " in text for text in told)


@pytest.mark.filterwarnings("ignore:the state .* does not follow")
def test_a_state_that_cannot_follow_begins_anew_at_new_widths() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 6, 2), nn.Tanh(), nn.Conv2d(6, 4, 2)).double()
    gated = instrument(model, (torch.zeros(1, 3, 3, 3).double(),), policy="random")
    optimizer = torch.optim.Adafactor(gated.parameters(), 0.01)
    attach(gated, optimizer)
    train(gated, optimizer, 2)
    for width in (4, 2, 5):
        gated.select(Selection(torch.arange(width), (width,)))
        train(gated, optimizer, 2)
        state = optimizer.state[gated.get_parameter("2.weight")]
        assert state["step"] == 2


def test_a_state_that_follows_is_not_told_of() -> None:
    """Warnings are errors here."""
    for make in (*OPTIMIZERS.values(), lambda p: torch.optim.ASGD(p, 0.1)):
        gated, optimizer, _ = build(make, policy="random")
        train(gated, optimizer, 3)


class Elsewhere(torch.optim.Optimizer):
    """Keeps its momentum beside the states of its parameters."""

    def __init__(self, parameters: list[nn.Parameter], place: str) -> None:
        super().__init__(parameters, {"lr": 0.0})
        momentum = [torch.zeros_like(p) for p in parameters]
        if place == "list":
            self.velocity = momentum
        elif place == "option":
            self.param_groups[0]["velocity"] = torch.cat([m.flatten() for m in momentum])
        else:
            self.state["velocity"] = dict(enumerate(momentum))

    def step(self, closure: Any = None) -> None:
        del closure


@pytest.mark.parametrize("place", ["list", "option", "name"])
def test_momentum_in_places_of_an_optimizers_own_is_warned_of(place: str) -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3))
    gated = instrument(model.train(), (torch.zeros(2, 3, 9, 9),), policy="random")
    optimizer = Elsewhere([*gated.parameters()], place)
    attach(gated, optimizer)
    gated(torch.randn(2, 3, 9, 9)).square().mean().backward()
    with pytest.warns(UserWarning, match="'velocity' of Elsewhere does not follow the channels"):
        optimizer.step()


class Masks(torch.optim.Optimizer):
    """Keeps which elements have had a gradient."""

    def __init__(self, weights: Any) -> None:
        super().__init__(weights, {"lr": 0.1})

    def step(self, closure: Any = None) -> None:
        del closure
        for p in self.param_groups[0]["params"]:
            self.state[p]["had"] = p.grad != 0


def test_truth_values_begin_as_false() -> None:
    parameter = nn.Parameter(torch.full((3, 4), 5.0))
    optimizer = Masks([parameter])
    parameter.grad = torch.ones(3, 4)
    optimizer.step()
    assert beginnings(optimizer, parameter) == {"had": 0.0}


class Named(torch.optim.SGD):
    """Momentum, and beside it what is of no parameter, as MADGRAD and TRAC keep it; no rate.

    Its step calls that of its parent, which runs the hooks of both.
    """

    def __init__(self, parameters: Any) -> None:
        super().__init__(parameters, lr=0.1, momentum=0.9)
        self.state["k"] = torch.tensor([0, 0])
        self.state["total"] = 0
        self.state["inner"] = {"factor": torch.ones(3)}
        self.rate = self.param_groups[0].pop("lr")

    def step(self, closure: Any = None, *, decay: float = 1.0) -> Any:
        self.param_groups[0]["lr"] = self.rate * decay
        loss = super().step(closure)
        del self.param_groups[0]["lr"]
        return loss


def test_a_state_of_no_parameter_stays_and_hinders_nothing() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 6, 2), nn.Tanh(), nn.Conv2d(6, 4, 2)).double()
    ends = []
    for make in (lambda p: torch.optim.SGD(p, 0.1, momentum=0.9), Named):
        gated = instrument(model, (images(0),), policy="random")
        optimizer: Any = make(gated.parameters())
        attach(gated, optimizer)
        for step in range(8):
            if step == 4:
                optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
            optimizer.zero_grad()
            gated(images(step)).square().mean().backward()
            if isinstance(optimizer, Named):
                optimizer.step((lambda: torch.zeros(())) if step % 2 else None, decay=1.0)
            else:
                optimizer.step()
        assert gated.steps == 8
        ends.append(gated.dense_state_dict())
    assert all(torch.equal(ends[0][name], ends[1][name]) for name in ends[0])
    assert torch.equal(optimizer.state["k"], torch.tensor([0, 0]))
    assert optimizer.state["total"] == 0


class Eight(torch.optim.Optimizer):
    """Momentum as codes of 8 bits with one scale for each row, the lowest of which is no zero."""

    def __init__(self, parameters: Any) -> None:
        super().__init__(parameters, {"lr": 0.01})

    @torch.no_grad()
    def step(self, closure: Any) -> None:
        with torch.enable_grad():
            closure()
        for p in self.param_groups[0]["params"]:
            state = self.state[p]
            momentum = p.grad.flatten(1) if p.dim() > 1 else p.grad[None]
            if state:
                old = state["codes"].reshape(momentum.shape).double() / 127.5 - 1
                momentum = momentum + 0.9 * old * state["scales"]
            state["scales"] = momentum.abs().amax(1, keepdim=True).clamp(min=1e-12)
            codes = ((momentum / state["scales"] + 1) * 127.5).round()
            state["codes"] = codes.to(torch.uint8).reshape(p.shape)
            p.sub_(momentum.reshape(p.shape), alpha=0.01)


@pytest.mark.filterwarnings("ignore:the state .* does not follow")
def test_codes_stay_in_their_slots_with_their_scales() -> None:
    """Codes of zero, with which a channel would enter, stand for the lowest value."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 2), nn.Tanh(), nn.Conv2d(8, 4, 2)).double()
    gated = instrument(model, (torch.zeros(1, 3, 3, 3).double(),), policy="random")
    optimizer = Eight(gated.parameters())
    attach(gated, optimizer)
    train(gated, optimizer, 8)
    weight, chosen = gated.get_parameter("0.weight"), gated.trained
    before = optimizer.state[weight]["codes"].clone()
    gated.select(Selection(chosen.channels.flip(0), chosen.widths))
    assert torch.equal(optimizer.state[weight]["codes"], before)
    gated.select(Selection(torch.arange(3), (3,)))
    assert not optimizer.state.get(weight)
