"""Layers that are changed while a network trains are refused before a weight is lost."""

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from fxprune import GatedModule, attach, instrument
from fxprune.errors import GateError
from tests.support.training import sgd

X = torch.zeros(2, 3, 9, 9)


def trained() -> tuple[GatedModule, torch.optim.Optimizer, dict[str, Tensor]]:
    """Make a network whose weights stay, with the optimiser and the dense state it began with."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 3))
    gated = instrument(model.train(), (X,), policy="random")
    begun = {name: tensor.clone() for name, tensor in gated.dense_state_dict().items()}
    optimizer = torch.optim.SGD(gated.parameters(), lr=0.0)
    attach(gated, optimizer)
    step(gated, optimizer)
    return gated, optimizer, begun


def step(gated: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    for parameter in gated.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    optimizer.zero_grad()


CASTS: dict[str, Callable[[GatedModule], object]] = {
    "norms in float32": lambda g: (g.bfloat16(), g.get_submodule("1").float()),
    "the last layer in float64": lambda g: g.get_submodule("3").double(),
    "one tensor": lambda g: setattr(p := g.get_parameter("0.weight"), "data", p.data.double()),
}


@pytest.mark.parametrize("name", CASTS)
def test_layers_that_are_cast_alone(name: str) -> None:
    """What rests has another dtype; exchanged with it, values were read from nowhere."""
    gated, optimizer, begun = trained()
    CASTS[name](gated)
    with pytest.raises(GateError, match="and dtypes of the whole network"):
        step(gated, optimizer)
    with pytest.raises(GateError, match="and dtypes of the whole network"):
        gated.state_dict()
    exact = 1e-2 if name == "norms in float32" else 0.0  # the whole was in bfloat16 once
    gated.float()
    for key, tensor in gated.dense_state_dict().items():
        torch.testing.assert_close(tensor, begun[key], rtol=exact, atol=0.0)


@pytest.mark.parametrize("copied", [copy.deepcopy, AveragedModel])
def test_copies_of_a_network_with_a_wrapped_layer(copied: Callable[[nn.Module], object]) -> None:
    """A copy would exchange its other layers, and leave this one."""
    gated, _, _ = trained()
    gated.set_submodule("3", nn.Sequential(gated.get_submodule("3")))
    with pytest.raises(GateError, match=r"3\.(weight|bias) was replaced .*\n  why  it is gone"):
        copied(gated)


def test_an_idle_network_of_mixed_dtypes_hinders_no_other() -> None:
    sick, _, _ = trained()
    sick.bfloat16().get_submodule("1").float()
    with pytest.raises(GateError):
        attach(sick, sgd(sick.parameters()))
    gated, optimizer, begun = trained()
    step(gated, optimizer)
    assert torch.equal(gated.dense_state_dict()["3.weight"], begun["3.weight"])


@pytest.mark.parametrize("detached_first", [False, True])
def test_a_state_that_is_loaded_around_another_attach_is_put_in_order(
    detached_first: bool,
) -> None:
    """Momentum here is a multiple of its weight, which stays: a mixed one would not be."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3))
    gated = instrument(model.train(), (X,), policy="random")
    optimizer = torch.optim.SGD(gated.parameters(), lr=0.0, momentum=1.0)
    controller = attach(gated, optimizer)

    def go_on(steps: int) -> None:
        for _ in range(steps):
            for parameter in gated.parameters():
                parameter.grad = parameter.detach().clone()
            optimizer.step()

    go_on(4)
    saved = copy.deepcopy(optimizer.state_dict())
    go_on(3)
    for change in (controller.detach, lambda: optimizer.load_state_dict(saved))[
        :: 1 if detached_first else -1
    ]:
        change()
    attach(gated, optimizer)
    go_on(2)
    for parameter in gated.parameters():
        times = optimizer.state[parameter]["momentum_buffer"] / parameter.detach()
        torch.testing.assert_close(times, times.round(), rtol=0.0, atol=1e-4)
