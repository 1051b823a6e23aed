"""Arguments of another kind, which a caller without types gives, are refused at the door."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

import fxprune
from fxprune.data import from_tensors, load, own_data
from fxprune.errors import FxpruneError
from fxprune.export.onnx import OnnxOptions
from fxprune.gated.module import GatedModule
from fxprune.trainer.loop import fit
from fxprune.trainer.options import TrainOptions

EXAMPLE = (torch.zeros(2, 1, 8, 8),)
IMAGES = (torch.zeros(2, 1, 8, 8, dtype=torch.uint8), torch.zeros(2, dtype=torch.int64))
FILE = Path("never-written.onnx")
three: Any = 3
text: Any = "a"
names: Any = {"batch": 1}
image: Any = IMAGES[0]
pair: Any = (IMAGES[0], [0, 0])


def small() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 16, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 10)
    )


@pytest.fixture
def gated() -> GatedModule:
    return fxprune.instrument(small(), EXAMPLE)


@pytest.mark.parametrize(
    ("method", "given", "said"),
    [
        ("spend", "a", "the share cannot be 'a'\n  why  it is a str\n  do   give a number"),
        ("spend", None, "the share cannot be None\n  do   give a number"),
        ("restore", 3, "the state cannot be 3"),
        ("track", 3, "the optimiser cannot be 3"),
        ("join", small(), "the wrapper cannot be a Sequential\n  do   wrap the gated network"),
        ("follow", small(), "cannot average a Sequential"),
    ],
)
def test_what_the_methods_of_a_gated_network_refuse(
    gated: GatedModule, method: str, given: Any, said: str
) -> None:
    with pytest.raises(FxpruneError) as refused:
        getattr(gated, method)(given)
    assert str(refused.value).startswith(said)


def test_a_gated_network_does_not_follow_itself(gated: GatedModule) -> None:
    with pytest.raises(FxpruneError, match="an average has to be a copy"):
        gated.follow(gated)


def test_a_gated_network_is_not_folded(gated: GatedModule) -> None:
    with pytest.raises(FxpruneError, match="cannot fold a gated network"):
        fxprune.fold(gated.eval())


def test_steps_without_a_schedule(gated: GatedModule) -> None:
    optimizer = torch.optim.SGD(gated.parameters(), 0.1)
    with pytest.raises(FxpruneError, match="9 steps are given, and no schedule"):
        fxprune.attach(gated, optimizer, steps=9)
    assert not gated.attached


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"model": 3}, "the model is an int, and no nn.Module"),
        ({"data": "digits"}, "the data cannot be 'digits'"),
        ({"options": {"epochs": 1}}, "the options cannot be {'epochs': 1}\n  why  it is a dict"),
        ({"run": 3}, "the path cannot be 3"),
        ({"minutes": "1"}, "minutes cannot be '1'"),
        ({"ready": 3}, "ready cannot be 3"),
        ({"progress": 3}, "progress cannot be 3"),
        ({"stop": 3}, "stop cannot be 3"),
        ({"loss": nn.MSELoss}, "the loss is the class MSELoss\n  do   give an object of it: MSEL"),
    ],
)
def test_what_fit_refuses(given: dict[str, Any], said: str) -> None:
    call: dict[str, Any] = {"model": small(), "data": load("digits"), "options": TrainOptions()}
    with pytest.raises(FxpruneError) as refused:
        fit(**call | given)
    assert str(refused.value).startswith(said)


Y = torch.zeros(8, dtype=torch.int64)


@pytest.mark.parametrize(
    ("images", "targets", "said"),
    [
        (
            torch.zeros(8, 1, 8, 8, dtype=torch.float64),
            Y,
            "the dtype of the weights, torch.float32",
        ),
        (torch.zeros(8, 3, 8, 8), Y, "images of mine, float32 [2, 3, 8, 8] as a batch\n"),
        (torch.zeros(8, 1, 8, 8), Y + 10, "numbers of classes, int64, from 0 up, below"),
        (torch.zeros(8, 1, 8, 8), Y.float(), "numbers of classes, int64, from 0 up, below"),
    ],
)
def test_data_that_do_not_fit(images: torch.Tensor, targets: torch.Tensor, said: str) -> None:
    part, good = TensorDataset(images, targets), TensorDataset(torch.zeros(8, 1, 8, 8), Y)
    with pytest.raises(FxpruneError) as refused:
        fit(small(), own_data((part, good), "mine"), TrainOptions(epochs=1, batch_size=4))
    assert said in str(refused.value)


def only_outputs(outputs: torch.Tensor) -> torch.Tensor:
    return outputs.mean()


def of_an_attribute(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return outputs.lacking + targets  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("loss", "do"),
    [
        (
            only_outputs,
            "give a function of what the network returns and the targets, in this order",
        ),
        (of_an_attribute, "correct the line that is named"),
    ],
)
def test_a_loss_that_fails(loss: Any, do: str) -> None:
    with pytest.raises(FxpruneError) as refused:
        fit(small(), load("digits"), TrainOptions(epochs=1), loss=loss)
    assert str(refused.value).endswith(f"\n  do   {do}")


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"clip": []}, "clip cannot be []\n  do   give a number, not a list"),
        ({"epochs": 1.5}, "epochs cannot be 1.5\n  do   give a whole number, not a float"),
        ({"best": "yes"}, "best cannot be 'yes'\n  do   give True or False, not a str"),
        ({"milestones": 0.5}, "milestones cannot be 0.5\n  do   give a tuple, not a float"),
    ],
)
def test_options_of_another_kind(given: dict[str, Any], said: str) -> None:
    with pytest.raises(FxpruneError) as refused:
        TrainOptions(**given)
    assert str(refused.value) == said


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: load(three), "the data set cannot be 3"),
        (lambda: from_tensors("x", image, IMAGES, ("a",)), "a split of x is a Tensor"),
        (lambda: from_tensors("x", IMAGES, pair, ("a",)), "the labels are a list"),
        (lambda: OnnxOptions(opset=text), "opset cannot be 'a'"),
        (lambda: OnnxOptions(batch=text), "batch cannot be 'a'"),
        (lambda: OnnxOptions(input_names=text), "input_names cannot be 'a'"),
        (
            lambda: fxprune.export_onnx(small(), EXAMPLE, FILE, options=names),
            "the options cannot be {'batch': 1}",
        ),
        (
            lambda: fxprune.export_onnx(small(), EXAMPLE, FILE, inputs=three),
            "example inputs must be a tensor",
        ),
        (
            lambda: fxprune.export_onnx(small(), EXAMPLE, FILE, inputs=torch.zeros(4, 3, 8, 8)),
            "the real inputs do not fit: torch.float32 [4, 3, 8, 8]",
        ),
        (lambda: fxprune.load(three, small()), "the path cannot be 3"),
    ],
)
def test_other_arguments(call: Callable[[], Any], said: str) -> None:
    with pytest.raises(FxpruneError) as refused:
        call()
    assert str(refused.value).startswith(said)
    assert not FILE.exists()
