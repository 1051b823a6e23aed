"""A trained network becomes smaller: the goal, the search, and what is said of the accuracy."""

import dataclasses
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fxprune
from fxprune.data import DataSet, FolderSplit, from_tensors, load, own_data
from fxprune.errors import BudgetError, DataError, FxpruneWarning, OptionError
from fxprune.gated.module import GatedModule
from fxprune.trainer.loop import Tick, fit
from fxprune.trainer.options import TrainOptions
from fxprune.trainer.placement import Placement
from fxprune.trainer.prune import Drop, Hits, Trial, Watcher, hits, hold_out, prune
from fxprune.trainer.recipe import OPTIONS
from tests.support.images import make_folder

EXAMPLE = (torch.zeros(2, 1, 8, 8),)
QUICK = dataclasses.replace(OPTIONS, epochs=2, batch_size=32, device="cpu")


def stripes(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Images [count, 1, 8, 8] with stripes along, across or neither: three easy classes."""
    draw = torch.Generator().manual_seed(seed)
    labels = torch.randint(3, (count,), generator=draw)
    images = torch.randint(60, (count, 1, 8, 8), generator=draw)
    images[labels == 0, :, ::2] += 150
    images[labels == 1, :, :, ::2] += 150
    return images.to(torch.uint8), labels


@pytest.fixture(scope="module")
def data() -> DataSet:
    return from_tensors("stripes", stripes(320, 0), stripes(100, 1), ("a", "b", "c"))


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        *(nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU()),
        *(nn.Conv2d(16, 16, 3, stride=2, padding=1), nn.BatchNorm2d(16), nn.ReLU()),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 3)),
    )


@pytest.fixture(scope="module")
def trained(data: DataSet) -> nn.Module:
    model = net()
    fit(model, data, TrainOptions(epochs=4, lr=0.1, batch_size=32, device="cpu"))
    return model


def test_a_budget_in_one_call(data: DataSet, trained: nn.Module, tmp_path: Path) -> None:
    before = {name: value.clone() for name, value in trained.state_dict().items()}
    seen: list[Hits] = []
    folders = []

    def made(gated: GatedModule) -> Path:
        assert isinstance(gated, GatedModule)
        folders.append(tmp_path / "run")
        return folders[0]

    watcher = Watcher(measured=seen.append, made=made)
    pruned = prune(trained, EXAMPLE, data=data, macs=0.5, options=QUICK, watcher=watcher)
    assert all(torch.equal(value, before[name]) for name, value in trained.state_dict().items())
    assert len(seen) == len(folders) == 1
    assert (tmp_path / "run" / "metrics.jsonl").exists()
    assert pruned.dense.accuracy == seen[0].accuracy > 0.9
    assert not pruned.dense.near_chance
    assert pruned.compact.accuracy > 0.8
    assert pruned.gated.cost.macs(pruned.widths) <= 0.5 * pruned.gated.cost.dense_macs
    found = hits(pruned.model, data.val, Placement.of(QUICK))
    assert found.right.equal(pruned.compact.right)
    assert pruned.drop.points == pytest.approx(
        100 * (pruned.dense.accuracy - pruned.compact.accuracy)
    )
    fxprune.export_onnx(pruned.model, EXAMPLE, tmp_path / "net.onnx", reference=pruned.gated)


def test_layers_that_stay_whole(data: DataSet, trained: nn.Module) -> None:
    quick = dataclasses.replace(QUICK, epochs=1)
    pruned = prune(trained, EXAMPLE, data=data, macs=0.5, exclude="0", options=quick)
    assert pruned.widths[0] == 16
    assert pruned.widths[1] < 16
    with pytest.raises(BudgetError, match="matches no layer"):
        prune(trained, EXAMPLE, data=data, macs=0.5, exclude="stem", options=quick)


def test_ticks_say_when_the_fall_ends(data: DataSet, trained: nn.Module) -> None:
    """Ten steps an epoch, of 3 epochs, of which the first half is the fall: it ends in step 15."""
    gated = fxprune.instrument(trained, EXAMPLE, "utility", "macs=0.5")
    ends = []

    def ticked(tick: Tick) -> None:
        if tick.metrics is not None:
            ends.append(tick.fall_ends)

    options = dataclasses.replace(QUICK, epochs=3, budget_schedule="linear{begin=0.1,end=0.5}")
    fit(gated, data, options, progress=ticked)
    assert ends == [2, None, None]


def test_the_smallest_within_some_points(data: DataSet, trained: nn.Module) -> None:
    tried: list[Trial] = []
    watcher = Watcher(tried=tried.append)
    pruned = prune(trained, EXAMPLE, data=data, max_drop=50, options=QUICK, watcher=watcher)
    assert tried == list(pruned.trials)
    assert len(tried) == 4
    assert tried[0].macs == 0.5
    kept = [trial.macs for trial in tried if trial.drop.points <= 50]
    assert pruned.budget.value == min(kept) < 0.5
    assert pruned.held_out is not None
    hopeless = dataclasses.replace(QUICK, epochs=1, lr=0.5, weight_decay=1.0)  # forgets all
    with pytest.raises(BudgetError, match="no network was found within 0 points"):
        prune(trained, EXAMPLE, data=data, max_drop=0, options=hopeless)


@pytest.mark.slow
def test_a_choice_that_misses_after_all_makes_way_for_the_next(
    data: DataSet, trained: nn.Module
) -> None:
    """The first network that is finished is spoilt: its frozen classifier answers at random."""
    finished: list[GatedModule] = []

    def made(gated: GatedModule) -> None:
        finished.append(gated)
        if len(finished) == 1:
            with torch.no_grad():
                dict(gated.named_parameters())["8.weight"].zero_()

    options = dataclasses.replace(QUICK, freeze="8")
    pruned = prune(
        trained, EXAMPLE, data=data, max_drop=30, options=options, watcher=Watcher(made=made)
    )
    kept = sorted(trial.macs for trial in pruned.trials if trial.drop.points <= 30)
    assert len(finished) == 2
    assert pruned.budget.value == kept[1]
    assert pruned.held_out is not None
    assert pruned.held_out.points <= 30


@pytest.mark.slow
def test_that_no_choice_stayed_within_the_points_is_said(data: DataSet, trained: nn.Module) -> None:
    def made(gated: GatedModule) -> None:
        with torch.no_grad():
            dict(gated.named_parameters())["8.weight"].zero_()

    options = dataclasses.replace(QUICK, freeze="8")
    with pytest.warns(FxpruneWarning, match="not within 30 points") as caught:
        pruned = prune(
            trained, EXAMPLE, data=data, max_drop=30, options=options, watcher=Watcher(made=made)
        )
    assert [warning.filename for warning in caught if "30 points" in str(warning.message)] == [
        __file__
    ]
    assert pruned.held_out is not None
    assert pruned.held_out.points > 30


def test_a_loss_of_ones_own(data: DataSet, trained: nn.Module) -> None:
    asked = []

    def loss(logits: Tensor, labels: Tensor) -> Tensor:
        asked.append(len(labels))
        return nn.functional.cross_entropy(logits, labels)

    options = dataclasses.replace(QUICK, epochs=1)
    prune(trained, EXAMPLE, data=data, macs=0.5, loss=loss, options=options)
    assert asked.count(32) >= 10


def test_what_has_no_right_answers_is_refused() -> None:
    masks = torch.utils.data.TensorDataset(torch.zeros(8, 1, 8, 8), torch.zeros(8, 8, 8).long())
    with pytest.raises(DataError, match="compares shares of right answers, and masks has none"):
        prune(
            nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(4, 2, 3, padding=1)), EXAMPLE,
            data=own_data((masks, masks), "masks"), macs=0.5, options=QUICK,
        )  # fmt: skip


@pytest.mark.parametrize(
    "goals", [{}, {"macs": 0.5, "max_drop": 1}, {"keep": 0.5, "budget": "macs=1"}]
)
def test_there_is_one_goal(goals: dict[str, float], data: DataSet) -> None:
    with pytest.raises(OptionError, match="a pruning has one goal"):
        prune(net(), EXAMPLE, data=data, **goals)  # type: ignore[arg-type]


@pytest.mark.parametrize("points", [-1, "1"])
def test_points_that_cannot_be(points: Any) -> None:
    with pytest.raises(OptionError, match=f"max_drop cannot be {points!r}"):
        prune(net(), EXAMPLE, data="digits", max_drop=points)


def test_options_that_are_none() -> None:
    options: Any = {"epochs": 2}
    with pytest.raises(OptionError, match="the options cannot be"):
        prune(net(), EXAMPLE, data="digits", macs=0.5, options=options)


def test_example_inputs_by_name() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Flatten())
    with pytest.raises(DataError, match="the model does not take the images of digits"):
        prune(model, {"input": torch.zeros(2, 3, 8, 8)}, data="digits", macs=0.5)


def test_a_network_that_guesses_is_named(data: DataSet) -> None:
    found = hits(net(), data.val, Placement.of(QUICK))
    assert found.near_chance
    labels = torch.arange(1000) % 10
    assert Hits(torch.arange(1000) < 120, labels).near_chance
    assert not Hits(torch.arange(1000) < 400, labels).near_chance
    quick = dataclasses.replace(QUICK, epochs=1)
    with pytest.warns(UserWarning, match=r"is right on \d+\.\d % .*, near chance"):
        prune(net(), EXAMPLE, data=data, macs=0.5, options=quick)


def test_the_interval_of_a_drop() -> None:
    labels = torch.zeros(100, dtype=torch.int64)
    dense, compact = torch.ones(100, dtype=torch.bool), torch.ones(100, dtype=torch.bool)
    compact[:4] = False
    drop = Drop.between(Hits(dense, labels), Hits(compact, labels))
    assert drop.points == pytest.approx(4)
    half = 100 * 1.959964 * math.sqrt(4 - 16 / 100) / 100
    assert (drop.low, drop.high) == (pytest.approx(4 - half), pytest.approx(4 + half))
    same = Drop.between(Hits(dense, labels), Hits(dense, labels))
    assert (same.points, same.low, same.high) == (0, 0, 0)


def test_images_are_held_out(data: DataSet, tmp_path: Path) -> None:
    rest, judged = hold_out(data)
    assert (len(rest.train), len(judged)) == (288, 32)
    assert rest.val is data.val
    whole = torch.cat([part.images for part in (rest.train, judged)])  # type: ignore[attr-defined]
    assert sorted(whole.sum((1, 2, 3)).tolist()) == sorted(
        data.train.images.sum((1, 2, 3)).tolist()  # type: ignore[attr-defined]
    )
    make_folder(tmp_path, count=10)
    folder = load(f"folder:{tmp_path}", image_size=(8, 8))
    rest, judged = hold_out(folder)
    assert isinstance(judged, FolderSplit)
    assert (len(rest.train), len(judged), len(folder.train)) == (18, 2, 20)
    names = [name for part in (rest.train, judged) for name, _ in part.plain.samples]  # type: ignore[attr-defined]
    assert sorted(names) == sorted(name for name, _ in folder.train.plain.samples)  # type: ignore[attr-defined]
    few = dataclasses.replace(data, train=data.train.part(torch.arange(5)))  # type: ignore[attr-defined]
    with pytest.raises(DataError, match="no images of stripes can be held out"):
        hold_out(few)
