"""Layers that are changed while a network trains are refused before a weight is lost."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel
from torchvision.ops import FrozenBatchNorm2d

from fxprune import GatedModule, attach, instrument, zeroed
from fxprune.errors import FxpruneWarning, GateError
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


REPLACED = {
    "by an identity": ("1", nn.Identity, "'1' is of class Identity"),
    "by another head": ("3", lambda: nn.Conv2d(4, 5, 3), r"it is \(5, 4, 3, 3\)"),
    "by a dense one": ("3", lambda: nn.Conv2d(8, 4, 3), r"it is \(4, 8, 3, 3\)"),
}


@pytest.mark.parametrize("stepped", [False, True])
@pytest.mark.parametrize("name", REPLACED)
def test_a_replaced_layer_is_refused_at_the_next_use(name: str, stepped: bool) -> None:
    """Training went on with the layer that was taken out; only eval() noticed."""
    path, make, why = REPLACED[name]
    gated, optimizer, begun = trained()
    own = gated.get_submodule(path)
    setattr(gated, path, make())
    with pytest.raises(GateError, match=rf"tensor {path}\.(weight|bias) was replaced(.|\n)*{why}"):
        step(gated, optimizer) if stepped else gated(X)
    setattr(gated, path, own)
    step(gated, optimizer)
    for key, tensor in gated.dense_state_dict().items():
        torch.testing.assert_close(tensor, begun[key], rtol=0.0, atol=0.0)


def test_a_norm_that_is_frozen_amid_a_training_trains_on_and_is_missed_by_name() -> None:
    """As timm's freeze_batch_norm_2d does: the new one counts no batches."""
    gated, optimizer, _ = trained()
    norm = gated.get_submodule("1")
    frozen = FrozenBatchNorm2d(norm.num_features)
    frozen.load_state_dict(norm.state_dict())
    setattr(gated, "1", frozen)
    step(gated, optimizer)
    why = "it is gone: '1' is of class FrozenBatchNorm2d"
    with pytest.raises(GateError, match=rf"1\.num_batches_tracked was replaced(.|\n)*{why}"):
        gated.dense_state_dict()


@pytest.mark.parametrize("whole", [False, True])
def test_a_layer_that_is_replaced_by_one_that_fits_is_exchanged(whole: bool) -> None:
    gated, optimizer, _ = trained()
    head = gated.get_submodule("3")
    own = nn.Parameter(torch.randn_like(head.weight))
    if whole:
        other = copy.deepcopy(head)
        other.weight = own
        setattr(gated, "3", other)
    else:
        head.weight = own
    channels = gated.trained.channels.tolist()
    written = {c: own[:, n].detach().clone() for n, c in enumerate(channels)}
    with pytest.warns(FxpruneWarning, match=r"no attached optimiser holds the parameter 3\.weight"):
        step(gated, optimizer)
    step(gated, optimizer)
    assert gated.trained.channels.tolist() != channels
    dense = gated.dense_state_dict()["3.weight"]
    for channel, values in written.items():
        assert torch.equal(dense[:, channel], values)


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.three = (nn.Conv2d(n, 6, 3, padding=1) for n in (3, 6, 6))
        self.three.weight, self.head = self.two.weight, nn.Conv2d(6, 2, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.one(x).relu()
        x = self.two(x).relu() + x
        return self.head(self.three(x).relu() + x)


def untie(gated: GatedModule, place: str) -> None:
    layer: Any = gated.get_submodule(place)
    layer.weight = nn.Parameter(layer.weight.detach().clone())


PARTED: dict[str, Callable[[GatedModule], object]] = {
    "by a load that assigns": lambda g: g.load_state_dict(g.state_dict(), assign=True),
    "at the first place": lambda g: untie(g, "two"),
    "at the second place": lambda g: untie(g, "three"),
}


@pytest.mark.parametrize("name", PARTED)
def test_tied_weights_that_are_parted_are_refused(name: str) -> None:
    """One of the two would keep its channels while all others are exchanged."""
    model = Tied().train()
    gated = instrument(model, (X,), policy="random")
    PARTED[name](gated)
    with pytest.raises(GateError, match=r"two\.weight and three\.weight were one, and are two now"):
        gated(X)
    layers: Any = gated
    layers.three.weight = layers.two.weight
    optimizer = torch.optim.SGD(gated.parameters(), lr=0.0)
    attach(gated, optimizer)
    for _ in range(4):
        gated(X + 1).sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    gated.eval()
    dense = zeroed(gated, model).eval()
    torch.testing.assert_close(gated(X + 1), dense(X + 1), rtol=0.0, atol=1e-6)


def test_an_idle_network_of_mixed_dtypes_hinders_no_other() -> None:
    sick, _, _ = trained()
    sick.bfloat16().get_submodule("1").float()
    with pytest.raises(GateError):
        attach(sick, sgd(sick.parameters()))
    gated, optimizer, begun = trained()
    step(gated, optimizer)
    assert torch.equal(gated.dense_state_dict()["3.weight"], begun["3.weight"])
