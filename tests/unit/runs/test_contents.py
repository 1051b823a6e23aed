"""What a checkpoint says of a network is refused by name where it cannot be, before it is used."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import fxprune
from fxprune.errors import RunError
from fxprune.gated.module import GatedModule
from fxprune.runs.contents import check_gated, check_plain, is_negative, most_bytes

FILE = Path("checkpoint.safetensors")
NORM = "0.running_var"


@pytest.fixture(scope="module")
def gated() -> GatedModule:
    """A network after one step, with momentum in the bank and an average of scores."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.BatchNorm2d(3), nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 2, 1))
    x = torch.randn(4, 3, 8, 8)
    network = fxprune.instrument(model, (x,), policy="utility", budget="keep=0.5")
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9)
    fxprune.attach(network, optimizer)
    network(x).square().mean().backward()
    optimizer.step()
    return network


def test_what_the_network_itself_has_is_taken(gated: GatedModule) -> None:
    state = gated.training_state()
    check_gated(FILE, state, gated)
    assert sum(tensor.numel() for tensor in state.values()) * 8 < most_bytes(gated.parameters())


@pytest.mark.parametrize(
    ("name", "wrong", "why"),
    [
        ("state/momentum_buffer/5.weight", torch.zeros(8), "it belongs to no parameter"),
        ("state/momentum_buffer/1.weight", torch.zeros(7, 3, 3, 3), "it belongs to no parameter"),
        ("state/step/1.weight", torch.zeros(8, 3, 3, 3).int(), "it belongs to no parameter"),
        ("trained/channels", torch.zeros(4), "a list of whole numbers"),
        ("settled/widths", torch.zeros(1, 1).long(), "a list of whole numbers"),
        ("settings", torch.zeros(9).int(), "a text is needed"),
        ("steps", torch.tensor(1.0), "a number from 0 up"),
        ("steps", torch.tensor(-1), "a number from 0 up"),
        ("share", torch.tensor(float("nan")).double(), "a number from 0 up"),
        (f"dense/{NORM}", torch.ones(3).double(), "float64, and torch.float32 is needed"),
        (f"dense/{NORM}", -torch.ones(3), "numbers below 0"),
        ("dense/1.weight", torch.full((8, 3, 3, 3), torch.inf), "NaN or infinity"),
        ("policy/scores", torch.zeros(3), "another shape"),
    ],
)
def test_what_it_cannot_have_is_refused_by_name(
    gated: GatedModule, name: str, wrong: Tensor, why: str
) -> None:
    state = gated.training_state()
    if name.startswith("policy/"):
        name = next(
            key for key, value in state.items() if key.startswith("policy/") and value.dim()
        )
        wrong = wrong.to(state[name].dtype)
    with pytest.raises(RunError, match=f"{name}.*{why}"):
        check_gated(FILE, {**state, name: wrong}, gated)


def test_what_it_needs_is_missed_by_name(gated: GatedModule) -> None:
    state = gated.training_state()
    gone = min(name for name in state if name.startswith("policy/"))
    with pytest.raises(RunError, match=f"{gone}.*it is missing"):
        check_gated(FILE, {n: t for n, t in state.items() if n != gone}, gated)
    with pytest.raises(RunError, match=r"trained.*half of the selection is missing"):
        check_gated(FILE, {n: t for n, t in state.items() if n != "trained/widths"}, gated)


def test_a_plain_network_keeps_its_dtypes() -> None:
    own = nn.BatchNorm1d(2).state_dict()
    check_plain(FILE, own, own)
    with pytest.raises(RunError, match=r"another model: weight is torch\.float16"):
        check_plain(FILE, {**own, "weight": torch.ones(2).half()}, own)


@pytest.mark.parametrize(
    ("name", "never"),
    [
        ("state/exp_avg_sq/1.weight", True),
        ("state/exp_avg/1.weight", False),
        ("optimizer/3/max_exp_avg_sq", True),
        ("optimizer/3/exp_avg", False),
        ("dense/bn.running_var", True),
        ("dense/bn.running_mean", False),
    ],
)
def test_squares_and_variances_are_never_below_zero(name: str, never: bool) -> None:
    assert is_negative(name, torch.tensor([1.0, -1.0])) is never
    assert not is_negative(name, torch.tensor([1.0, 0.0]))
