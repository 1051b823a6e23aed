"""Losses and metrics of the user's own."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import TensorDataset

import fxprune
from fxprune.data import own_data
from fxprune.errors import DataError, ModelError, OptionError
from fxprune.trainer.loop import fit
from fxprune.trainer.options import TrainOptions
from fxprune.trainer.task import ScoreSums, Task

CPU = torch.device("cpu")


class Masks(nn.Module):
    """A dict of masks from an image."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm = nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16)
        self.last = nn.Conv2d(16, 3, 1)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"out": self.last(torch.relu(self.norm(self.first(x))))}


class Two(nn.Module):
    """Logits from an image and a vector."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.rest = nn.Conv2d(3, 16, 3), nn.Linear(4, 16)
        self.norm, self.head = nn.BatchNorm1d(16), nn.Linear(16, 3)

    def forward(self, x: Tensor, v: Tensor) -> Tensor:
        pooled = torch.relu(self.conv(x)).mean((2, 3))
        out: Tensor = self.head(self.norm(pooled + self.rest(v)))
        return out


def dice(outputs: dict[str, Tensor], targets: Tensor) -> Tensor:
    found = outputs["out"].softmax(1)
    wanted = functional.one_hot(targets, 3).movedim(-1, 1)
    both = (found * wanted).sum((2, 3))
    return 1 - (2 * both / (found + wanted).sum((2, 3))).mean()


class MeanIoU:
    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        self.hit, self.all = torch.zeros(3), torch.zeros(3)

    def update(self, outputs: dict[str, Tensor], targets: Tensor) -> None:
        found = outputs["out"].argmax(1)
        for kind in range(3):
            self.hit[kind] += ((found == kind) & (targets == kind)).sum()
            self.all[kind] += ((found == kind) | (targets == kind)).sum()

    def compute(self) -> Tensor:
        return (self.hit / self.all.clamp(min=1)).mean()


def shapes(count: int, side: int = 12) -> TensorDataset:
    images = torch.randn(count, 3, 12, 12, generator=torch.Generator().manual_seed(count))
    return TensorDataset(images, images.argmax(1)[:, :side, :side])


def options(**words: Any) -> TrainOptions:
    return TrainOptions(**{"epochs": 3, "lr": 0.5, "batch_size": 8, "settle": 0.5, **words})


def test_a_segmentation_network_learns_by_its_own_loss_and_metric() -> None:
    torch.manual_seed(0)
    gated = fxprune.instrument(Masks(), (torch.zeros(2, 3, 12, 12),), "balance", "keep=0.5")
    data = own_data((shapes(64), shapes(16)), "shapes")
    history = fit(gated, data, options(), loss=dice, metric=MeanIoU())
    assert history[-1].train_loss < history[0].train_loss
    assert history[-1].metric == "MeanIoU"
    assert history[-1].val_metric is not None
    assert history[-1].val_metric > 1 / 3
    assert history[-1].val_accuracy is None


def test_several_inputs() -> None:
    torch.manual_seed(0)
    example = torch.zeros(2, 3, 8, 8), torch.zeros(2, 4)
    gated = fxprune.instrument(Two(), example, "balance", "keep=0.5")
    images, vectors = torch.randn(32, 3, 8, 8), torch.randn(32, 4)
    part = TensorDataset(images, vectors, vectors[:, :3].argmax(1))
    history = fit(gated, own_data((part, part), "two"), options(epochs=6))
    assert history[-1].val_accuracy is not None
    assert history[-1].val_accuracy > 0.6


@pytest.mark.parametrize(
    ("words", "error", "message"),
    [
        ({}, ModelError, "returns a dict"),
        (
            {"loss": lambda out, _: out["out"].mean((1, 2, 3))},
            DataError,
            "is no scalar: it returns",
        ),
        ({"loss": lambda out, _: out["mask"].mean()}, DataError, "does not take what the network"),
        ({"loss": lambda out, _: out.mean()}, DataError, "AttributeError: 'dict' object has no"),
        ({"loss": lambda *a: dice(*a).detach()}, DataError, "the loss <lambda> has no gradient"),
        ({"loss": 3}, OptionError, "the loss is an int"),
        ({"loss": nn.MSELoss}, OptionError, "the loss is the class MSELoss"),
        ({"loss": dice, "metric": "iou"}, OptionError, "the metric is a str"),
    ],
)
def test_what_is_refused_before_training(
    words: dict[str, Any], error: type[Exception], message: str
) -> None:
    model = Masks()
    before = model.first.weight.clone()
    with pytest.raises(error, match=message):
        fit(model, own_data((shapes(16), shapes(4)), "shapes"), options(), **words)
    assert torch.equal(before, model.first.weight)


class Tables(MeanIoU):
    def compute(self) -> Any:
        return {"a": 1}


class Stuck(MeanIoU):
    def __init__(self) -> None:
        super().reset()

    def reset(self) -> None:
        raise StopIteration


@pytest.mark.parametrize(
    "metric",
    [
        Stuck(),
        lambda *_: "x",
        lambda out, _: out["out"],
        lambda out, _: out["nothing"],
        lambda out, _: out.mean(),
        Tables(),
    ],
)
def test_metrics_that_give_no_number(metric: Any) -> None:
    data = own_data((shapes(16), shapes(4)), "shapes")
    with pytest.raises(DataError, match="raises, or returns no number"):
        fit(Masks(), data, options(), loss=dice, metric=metric)


def test_a_metric_is_tried_before_training_and_may_want_more_examples() -> None:
    data, steps = own_data((shapes(16), shapes(4)), "shapes"), []
    with pytest.raises(DataError, match=r"the metric word raises[^$]*it returns a str"):
        fit(Masks(), data, options(), loss=dice, metric=word, progress=steps.append)
    assert not steps
    assert fit(Masks(), data, options(epochs=1), loss=dice, metric=of_four)[-1].val_metric == 4


def word(*_: Any) -> str:
    return "good"


def of_four(_: Any, targets: Tensor) -> int:
    if len(targets) < 4:
        raise ValueError("too few examples")
    return len(targets)


@pytest.mark.parametrize("sides", [(6, 6), (6, 12), (12, 6)])
def test_label_images_of_another_size(sides: tuple[int, int], tmp_path: Path) -> None:
    """In the training examples or in the others: it is refused before anything is written."""
    data = own_data((shapes(16, sides[0]), shapes(4, sides[1])), "shapes")
    ready: list[None] = []
    with pytest.raises(DataError, match=r"returns \{out: float32 \[2, 3, 12, 12\]\}, the targets"):
        fit(Masks(), data, options(), loss=dice, run=tmp_path, ready=lambda: ready.append(None))
    assert not ready
    assert list(tmp_path.iterdir()) == []


def test_the_share_of_right_answers_and_of_the_first_five() -> None:
    logits = torch.arange(20.0).repeat(4, 1)
    sums = ScoreSums(Task(), CPU)
    sums.add(logits, torch.tensor([19, 18, 15, 0]), torch.tensor(2.0), 4)
    sums.add(logits[:2], torch.tensor([19, 14]), torch.tensor(5.0), 2)
    scores = sums.scores(sums.sums)
    assert (scores.loss, scores.accuracy, scores.top5) == (3.0, 2 / 6, 4 / 6)


def test_pixels_that_count_for_nothing() -> None:
    logits = torch.zeros(1, 3, 2, 2)
    logits[:, 1] = 1
    sums = ScoreSums(Task(), CPU)
    sums.add(logits, torch.tensor([[[1, -100], [0, 1]]]), torch.tensor(0.0), 1)
    assert sums.scores(sums.sums).accuracy == pytest.approx(2 / 3)


@pytest.mark.parametrize(
    ("outputs", "targets"),
    [
        ({"out": torch.zeros(2, 3)}, torch.tensor([0, 1])),
        (torch.zeros(2, 3), {"boxes": torch.zeros(2, 4)}),
        (torch.zeros(2), torch.tensor([0, 1])),
        (torch.zeros(2, 1), torch.tensor([[0.3], [0.7]])),
        (torch.zeros(2, 3), torch.rand(2, 3)),
    ],
    ids=["outputs in a dict", "targets in a dict", "a number each", "one to regress", "three"],
)
def test_what_is_no_choice_of_a_class_has_a_loss_alone(outputs: Any, targets: Any) -> None:
    sums = ScoreSums(Task(dice), CPU)
    sums.add(outputs, targets, torch.tensor(2.0), 2)
    assert not sums.classes
    scores = sums.scores(sums.sums)
    assert (scores.loss, scores.accuracy, scores.labelled) == (2.0, None, False)


def test_shares_of_classes_that_the_built_in_loss_takes_are_a_choice() -> None:
    sums = ScoreSums(Task(), CPU)
    sums.add(torch.eye(3), torch.tensor([[0.8, 0.1, 0.1]] * 3), torch.tensor(0.0), 3)
    assert sums.scores(sums.sums).accuracy == pytest.approx(1 / 3)
