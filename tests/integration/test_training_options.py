"""What a training can be told beside its learning rate: each option by what it does."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fxprune
from fxprune import GatedModule, instrument
from fxprune.data import DataSet, load
from fxprune.data.own import own_data
from fxprune.data.randaugment import with_randaugment
from fxprune.errors import OptionError
from fxprune.formats import read_tensors
from fxprune.runs.run import CHECKPOINT, Run
from fxprune.trainer.evaluate import score
from fxprune.trainer.loop import Stopped, fit
from fxprune.trainer.mixing import Mixing
from fxprune.trainer.optimizer import make_optimizer
from fxprune.trainer.options import TrainOptions
from fxprune.trainer.placement import Placement
from fxprune.trainer.task import Task
from fxprune.trainer.teacher import Teacher
from tests.support.fitting import stopped_after
from tests.support.images import make_folder

FAST = TrainOptions(epochs=2, lr=0.01, batch_size=256, recalibrate=2, device="cpu", seed=3)


def plain(norm: bool = True) -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Conv2d(1, 16, 3), nn.BatchNorm2d(16) if norm else nn.Identity(), nn.ReLU(),
            nn.Conv2d(16, 16, 3), nn.ReLU(), nn.Flatten(), nn.Linear(256, 10),
        )  # fmt: skip


def gated() -> GatedModule:
    return instrument(
        plain(), (torch.zeros(2, 1, 8, 8),), "utility{warmup=2,reallocate=3}", "macs=0.6"
    )


@pytest.mark.sampled(2)
@pytest.mark.parametrize(
    "change",
    [
        {"optimizer": "NAdam", "decay_norms": False},
        {"optimizer": "timm:lamb"},
        {"optimizer": "adafactor", "clip": 0.5},
        {"accumulate": 3},
        {"mixup": 0.2, "cutmix": 1.0},
        {"freeze": "0,*.bias"},
        {"ema": 0.9, "best": True, "epochs": 3},
        pytest.param({"distil": 0.5}, marks=pytest.mark.slow),
        pytest.param({"randaugment": 9}, marks=pytest.mark.slow),
    ],
    ids=str,
)
@pytest.mark.filterwarnings("ignore:the state")  # of Adafactor, which follows no channel
def test_a_stopped_run_ends_in_the_same_bits(
    digits: DataSet, tmp_path: Path, change: dict[str, Any]
) -> None:
    options = dataclasses.replace(FAST, **change)
    fit(gated(), digits, options, run=tmp_path / "whole")
    run = tmp_path / "stopped"
    with pytest.raises(Stopped):
        fit(gated(), digits, options, run=run, stop=stopped_after(8))
    fit(gated(), digits, options, run=run)
    one, two = (read_tensors(tmp_path / name / CHECKPOINT)[0] for name in ("whole", "stopped"))
    assert one.keys() == two.keys()
    assert [key for key in one if not torch.equal(one[key], two[key])] == []


def trained(digits: DataSet, norm: bool = True, **change: Any) -> tuple[nn.Module, nn.Module]:
    """A network before and after an epoch of a single batch."""
    after = plain(norm)
    few = dataclasses.replace(digits, train=digits.train.part(torch.arange(60)))
    fit(after, few, dataclasses.replace(FAST, epochs=1, momentum=0.0, augment=False, **change))
    return plain(norm), after


def moved(before: nn.Module, after: nn.Module) -> dict[str, Tensor]:
    new = dict(after.named_parameters())
    return {name: (new[name] - old).detach() for name, old in before.named_parameters()}


def test_parts_of_a_batch_add_up_to_its_gradient(digits: DataSet) -> None:
    """60 examples in 7 parts are not even: each counts by its examples."""
    whole, parts = (moved(*trained(digits, norm=False, accumulate=n)) for n in (1, 7))
    for name, step in whole.items():
        torch.testing.assert_close(parts[name], step, rtol=1e-4, atol=1e-7)


def test_gradients_are_clipped_to_their_norm(digits: DataSet) -> None:
    steps = moved(*trained(digits, clip=0.1, weight_decay=0.0)).values()
    norm = torch.cat([step.flatten() for step in steps]).norm()
    assert float(norm) == pytest.approx(0.01 * 0.1, rel=1e-3)


def test_norms_and_biases_do_not_decay() -> None:
    groups = make_optimizer(plain(), dataclasses.replace(FAST, decay_norms=False)).param_groups
    decay = {group["weight_decay"]: [p.dim() for p in group["params"]] for group in groups}
    assert decay == {5e-4: [4, 4, 2], 0.0: [1, 1, 1, 1, 1]}


def test_frozen_layers_do_not_move_and_are_free_again(digits: DataSet) -> None:
    before, after = trained(digits, freeze="0,1,3.bias")
    still = {name for name, step in moved(before, after).items() if not step.any()}
    assert still == {"0.weight", "0.bias", "1.weight", "1.bias", "3.bias"}
    assert all(parameter.requires_grad for parameter in after.parameters())


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"ema": 1.0}, "ema cannot be 1.0"),
        ({"early_stop": 0}, "early_stop cannot be 0"),
        ({"randaugment": 31}, "randaugment cannot be 31"),
        ({"randaugment": 9, "augment": False}, "randaugment needs augment"),
    ],
)
def test_options_out_of_their_range(change: dict[str, Any], text: str) -> None:
    with pytest.raises(OptionError, match=text):
        TrainOptions(**change)


@pytest.mark.parametrize("word", ["mixup", "cutmix"])
def test_labels_are_mixed_as_the_images_are(digits: DataSet, word: str) -> None:
    images = torch.arange(4.0).view(4, 1, 1, 1).expand(4, 1, 8, 8)
    torch.manual_seed(1)
    mixing = Mixing(dataclasses.replace(FAST, **{word: 1.0}), digits, Task())
    mixed, shares = mixing(images, torch.arange(4))
    assert shares.shape == (4, 10)
    values = (shares[:, :4] * torch.arange(4.0)).sum(1)
    torch.testing.assert_close(mixed.mean((1, 2, 3)), values)
    assert not torch.equal(mixed, images)


def test_the_teacher_is_the_dense_network_of_before() -> None:
    network, images = gated(), torch.randn(4, 1, 8, 8)
    options = dataclasses.replace(FAST, distil=0.25, temperature=2.0)
    teacher = Teacher.of(network, options, Placement.of(options), None)
    assert teacher is not None
    dense = plain().eval()
    said = teacher.says(images)
    torch.testing.assert_close(said, dense(images), rtol=1e-5, atol=1e-6)
    for parameter in network.parameters():
        parameter.data.zero_()
    torch.testing.assert_close(teacher.says(images), said, rtol=0, atol=0)
    outputs = torch.randn(4, 10)
    one, two = (values / 2 for values in (said.softmax(1).log() * 1.0, outputs))
    p, q = one.softmax(1), two.softmax(1)
    wanted = 0.75 * 3.0 + 0.25 * 4 * (p * (p / q).log()).sum(1).mean()
    torch.testing.assert_close(teacher.loss(torch.tensor(3.0), outputs, said), wanted)


def test_the_average_is_torchs_with_a_decay_that_rises(digits: DataSet) -> None:
    """Three steps of a single batch: the first is copied, the others count 9/11 and 9/12."""
    few = dataclasses.replace(digits, train=digits.train.part(torch.arange(60)))
    each = dataclasses.replace(FAST, epochs=3, momentum=0.0, recalibrate=0, augment=False)
    steps = [plain(norm=False) for _ in range(4)]
    for count, network in enumerate(steps[:3], 1):
        fit(network, few, dataclasses.replace(each, epochs=count, schedule="step", milestones=()))
    fit(steps[3], few, dataclasses.replace(each, schedule="step", milestones=(), ema=0.99))
    one, two, three, mean = (dict(network.named_parameters()) for network in steps)
    for name, found in mean.items():
        expected = one[name].lerp(two[name], 9 / 11).lerp(three[name], 9 / 12)
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-7)


def lost(outputs: Tensor, labels: Tensor) -> Tensor:
    """Wrong answers: a metric by which a network that learns becomes worse."""
    return (outputs.argmax(1) != labels).float().mean()


@pytest.mark.sampled(1)
@pytest.mark.parametrize("make", [gated, plain])
@pytest.mark.parametrize(
    "change",
    [{"best": True}, pytest.param({"early_stop": 2, "ema": 0.8}, marks=pytest.mark.slow)],
    ids=str,
)
def test_the_best_epoch_is_handed_over(
    digits: DataSet, tmp_path: Path, make: Any, change: dict[str, Any]
) -> None:
    options = dataclasses.replace(FAST, epochs=8, lr=0.05, momentum=0.9, batch_size=64, **change)
    network = make()
    history = fit(network, digits, options, metric=lost, run=tmp_path)
    first = 5 if make is gated else 1  # of the epochs that end with the final channels
    settled = [metrics.settled for metrics in history]
    assert settled == [None if make is plain else m.epoch >= first for m in history]
    best = max(history[first - 1 :], key=lambda metrics: metrics.val_metric or 0.0)
    assert best.epoch < len(history)
    if "early_stop" in change:
        assert len(history) == best.epoch + 2
    scored = score(network, digits.val, Placement.of(options), task=Task(None, lost))
    assert scored.metric == pytest.approx(best.val_metric, abs=1e-6)
    again = make()
    assert fit(again, digits, options, metric=lost, run=tmp_path) == history
    assert all(torch.equal(one, two) for one, two in zip(network.parameters(), again.parameters()))


def test_a_run_hands_over_its_average_and_branches_from_it(digits: DataSet, tmp_path: Path) -> None:
    network = gated()
    folder = tmp_path / "a.fxprune"
    run = Run.create(folder, network, "model.py")
    fit(network, digits, dataclasses.replace(FAST, ema=0.9), run=folder)
    stands = run.standing()
    assert stands.average
    assert not stands.best
    branch = run.branch(tmp_path / "b.fxprune")
    images = torch.randn(4, 1, 8, 8)
    expected = network(images)
    assert torch.equal(run.load(plain()).eval()(images), expected)
    assert torch.equal(fxprune.load(run.checkpoint, plain()).eval()(images), expected)
    old, _ = read_tensors(run.checkpoint)
    new, _ = read_tensors(branch.checkpoint)
    assert torch.equal(new["gated/dense/3.weight"], old["average/3.weight"])
    assert not torch.equal(old["gated/dense/3.weight"], old["average/3.weight"])


@pytest.mark.parametrize("name", ["digits", "folder"])
def test_randaugment_changes_images_by_its_strength(
    digits: DataSet, tmp_path: Path, name: str
) -> None:
    if name == "folder":
        make_folder(tmp_path)
    data = digits if name == "digits" else load(f"folder:{tmp_path}", image_size=(24, 24))

    def first(strength: int) -> Tensor:
        train, order = with_randaugment(data, strength).train, torch.Generator().manual_seed(1)
        before = torch.get_rng_state()
        images, _ = next(train.batches(8, shuffle=order, augment=True))
        assert torch.equal(torch.get_rng_state(), before)
        return images

    weak, strong = first(2), first(30)
    assert torch.equal(first(30), strong)
    assert not torch.equal(weak, strong)
    assert not torch.equal(weak, first(0))


def test_randaugment_is_for_images_of_fxprunes_own(digits: DataSet) -> None:
    pairs = torch.utils.data.TensorDataset(torch.zeros(8, 1, 8, 8), torch.zeros(8).long())
    with pytest.raises(OptionError, match="randaugment cannot be put into the images of pairs"):
        fit(plain(), own_data((pairs, pairs), "pairs"), dataclasses.replace(FAST, randaugment=9))
    odd = dataclasses.replace(digits.train, images=digits.train.images.expand(-1, 2, -1, -1))
    with pytest.raises(OptionError, match="these have 2"):
        with_randaugment(dataclasses.replace(digits, train=odd), 9)


def test_a_plain_network_has_no_teacher(digits: DataSet) -> None:
    with pytest.raises(OptionError, match="distil is for gated networks"):
        fit(plain(), digits, dataclasses.replace(FAST, distil=0.5))


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"optimizer": "adamm"}, "torch.optim has no adamm\n  why  the nearest names are adam"),
        ({"optimizer": ""}, "the name of an optimiser of torch.optim is missing"),
        ({"optimizer": "timm:"}, "the name of an optimiser of timm.optim is missing"),
        ({"optimizer": "timm:lam"}, "timm.optim has no lam\n  why  the nearest names are lamb"),
        ({"optimizer": "lbfgs"}, "cannot step lbfgs\n  why  it evaluates the loss several times"),
        ({"optimizer": "muon"}, "muon does not take this network or these options"),
        ({"freeze": "0,5.*.weigth"}, "freeze '5.*.weigth' matches no layer"),
        ({"freeze": "*"}, "no parameter of the network is left to train"),
        ({"best": True, "settle": 0.0}, "there is no best epoch to choose\n  why  of 2 epochs"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_written(
    digits: DataSet, tmp_path: Path, change: dict[str, Any], text: str
) -> None:
    with pytest.raises(OptionError) as caught:
        fit(gated(), digits, dataclasses.replace(FAST, **change), run=tmp_path / "run")
    assert text in str(caught.value)
    assert not (tmp_path / "run" / CHECKPOINT).exists()


def test_mixing_needs_classes_and_the_built_in_loss(digits: DataSet) -> None:
    options = dataclasses.replace(FAST, mixup=0.2)
    with pytest.raises(OptionError, match="mixed labels need the built-in loss"):
        fit(plain(), digits, options, loss=nn.CrossEntropyLoss())
    pairs = torch.utils.data.TensorDataset(torch.zeros(8, 1, 8, 8), torch.zeros(8).long())
    with pytest.raises(OptionError, match="mixed labels need data with classes"):
        fit(plain(), own_data((pairs, pairs), "pairs"), options)
