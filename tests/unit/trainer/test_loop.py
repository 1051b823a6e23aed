import dataclasses
import json
import math

import pytest
import torch
from torch import nn

from fxprune import instrument
from fxprune.data import DataSet, TensorSplit
from fxprune.errors import DataError, ModelError, OptionError
from fxprune.runs.history import METRICS
from fxprune.runs.run import CHECKPOINT
from fxprune.trainer.evaluate import score
from fxprune.trainer.loop import Placement, TrainOptions, fit
from fxprune.trainer.optimizer import learning_rate
from tests.support.fitting import FAST, same_bits, small_net


def test_it_learns_the_digits(digits):
    net = small_net()
    history = fit(net, digits, dataclasses.replace(FAST, epochs=12))
    assert [metrics.epoch for metrics in history] == list(range(1, 13))
    assert history[-1].val_accuracy > 0.95
    assert history[-1].train_loss < history[0].train_loss / 2
    assert not net.training


def test_the_metrics_are_those_of_the_network_that_is_left(digits):
    net = small_net()
    last = fit(net, digits, FAST)[-1]
    with torch.no_grad():
        images, labels = next(digits.val.batches(1000))
        logits = net(images)
    assert last.val_accuracy == (logits.argmax(1) == labels).sum().item() / 359
    assert last.val_loss == pytest.approx(
        nn.functional.cross_entropy(logits, labels).item(), rel=1e-5
    )


def test_weights_that_are_not_finite_are_not_written(digits, tmp_path):
    def spoil(tick):
        if tick.steps_done == 43:
            with torch.no_grad():
                net[-1].bias[0] = math.nan

    net = small_net()
    with pytest.raises(
        OptionError, match=r"(is not finite after epoch 2|the loss is nan in epoch 2)"
    ):
        fit(net, digits, FAST, run=tmp_path, progress=spoil)
    assert len(fit(small_net(), digits, FAST, run=tmp_path)) == 2


def test_a_mask_of_infinities_is_no_divergence(digits, tmp_path):
    net = small_net()
    net.register_buffer("mask", torch.full((3,), -math.inf))
    fit(net, digits, FAST, run=tmp_path)
    again = small_net()
    again.register_buffer("mask", torch.full((3,), -math.inf))
    assert len(fit(again, digits, FAST, run=tmp_path)) == 2


def test_another_seed_gives_other_bits(digits):
    nets = [small_net(), small_net()]
    for net, seed in zip(nets, (1, 2)):
        fit(net, digits, dataclasses.replace(FAST, epochs=1, seed=seed))
    assert not same_bits(nets[0].state_dict(), nets[1].state_dict())


def test_the_validation_labels_have_no_influence(digits):
    """Same training split, scrambled validation split: the same network, bit for bit."""
    val = digits.val
    scrambled = TensorSplit(val.images.flip(0), (val.labels + 1) % 10, val.normalise)
    nets = [small_net(), small_net()]
    results = [
        fit(net, dataclasses.replace(digits, val=split), FAST)
        for net, split in zip(nets, (val, scrambled))
    ]
    assert same_bits(nets[0].state_dict(), nets[1].state_dict())
    assert results[0][-1].val_accuracy != results[1][-1].val_accuracy


def test_training_leaves_the_global_generator_alone(digits):
    before = torch.random.get_rng_state()
    fit(small_net(), digits, dataclasses.replace(FAST, epochs=1))
    assert torch.equal(torch.random.get_rng_state(), before)


def test_metrics_file(digits, tmp_path):
    history = fit(small_net(), digits, FAST, run=tmp_path)
    lines = (tmp_path / METRICS).read_text().splitlines()
    assert [json.loads(line) for line in lines] == [dataclasses.asdict(m) for m in history]
    assert sorted(path.name for path in tmp_path.iterdir()) == [CHECKPOINT, METRICS]


def test_progress_counts_every_step(digits):
    ticks = []
    history = fit(small_net(), digits, FAST, progress=ticks.append)
    plain = [tick for tick in ticks if tick.metrics is None]
    assert [tick.steps_done for tick in plain] == list(range(1, 2 * (1438 // 64) + 1))
    assert {tick.steps for tick in ticks} == {44}
    assert [tick.metrics for tick in ticks if tick.metrics is not None] == history


def test_recalibration_measures_the_training_split(digits):
    """With every image in one batch, the statistics are those of the whole split."""
    options = dataclasses.replace(
        FAST, epochs=1, batch_size=1438, recalibrate=1, augment=False, channels_last="off"
    )
    net = small_net()
    fit(net, digits, options)
    images, _ = next(digits.train.batches(1438))
    with torch.no_grad():
        features = net[0](images)
    torch.testing.assert_close(net[1].running_mean, features.mean((0, 2, 3)), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(net[1].running_var, features.var((0, 2, 3)), rtol=1e-4, atol=1e-6)


def test_evaluation_changes_nothing(digits):
    net = small_net()
    before = {key: value.clone() for key, value in net.state_dict().items()}
    net.train()
    net[1].eval()
    score(net, digits.val, Placement.of(FAST))
    assert net.training
    assert not net[1].training
    assert same_bits(before, net.state_dict())


@pytest.mark.parametrize(
    ("options", "share", "expected"),
    [
        (TrainOptions(lr=0.4), 0.0, 0.4),
        (TrainOptions(lr=0.4), 0.5, 0.2),
        (TrainOptions(lr=0.4), 1.0, 0.0),
        (TrainOptions(lr=0.4, lr_warmup=0.1), 0.05, 0.2),
        (TrainOptions(lr=0.4, lr_warmup=0.1), 0.1, 0.4),
        (TrainOptions(lr=0.4, lr_warmup=0.1), 1.0, 0.0),
        (TrainOptions(lr=0.4, schedule="step"), 0.49, 0.4),
        (TrainOptions(lr=0.4, schedule="step"), 0.5, 0.04),
        (TrainOptions(lr=0.4, schedule="step"), 0.75, 0.004),
    ],
)
def test_learning_rate(options, share, expected):
    assert learning_rate(options, share) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"epochs": 0}, "epochs cannot be 0"),
        ({"lr": -1.0}, "lr cannot be -1.0"),
        ({"lr": math.nan}, "lr cannot be nan"),
        ({"lr": math.inf}, "lr cannot be inf\n  do   give a number from 0 up, not infinity"),
        ({"weight_decay": math.inf}, "weight_decay cannot be inf"),
        ({"settle": 1.5}, "settle cannot be 1.5\n  do   give a number from 0 to 1"),
        ({"schedule": "line"}, "schedule cannot be 'line'\n  do   give one of cosine, step"),
        ({"clip": 0.0}, "clip cannot be 0.0\n  do   give a number above 0"),
        ({"epochs": "3"}, "epochs cannot be '3'\n  do   give a whole number, not a str"),
        ({"freeze": ("stem.*",)}, "give a text, not a tuple"),
        ({"optimizer": torch.optim.SGD}, "give a text, not the class"),
        ({"accumulate": 65}, "a batch of 128 cannot be split into 65 parts"),
        ({"mixup": -1.0}, "mixup cannot be -1.0"),
        ({"amp": "fp8"}, "amp cannot be 'fp8'"),
        ({"batch_size": 1}, "batch_size cannot be 1"),
    ],
)
def test_wrong_options(change, text):
    with pytest.raises(OptionError, match=text):
        TrainOptions(**change)


def test_unknown_device(digits):
    with pytest.raises(OptionError, match="unknown device 'quantum'"):
        fit(small_net(), digits, dataclasses.replace(FAST, device="quantum"))


@pytest.mark.parametrize("name", ["mps", "meta", "xla", "cuda:99"])
def test_a_device_that_the_trainer_has_not(digits, name):
    with pytest.raises(OptionError, match=f"device '{name}'\n.*\n?  do   give"):
        fit(small_net(), digits, dataclasses.replace(FAST, device=name))


class Heads(nn.Module):
    """Two outputs, in evaluation too or in training only."""

    def __init__(self, always):
        super().__init__()
        self.net, self.always = small_net(), always

    def forward(self, x):
        y = self.net(x)
        return (y, y) if self.training or self.always else y


@pytest.mark.parametrize("amp", ["off", "bfloat16"])
@pytest.mark.parametrize("always", [True, False])
def test_a_network_with_two_outputs(digits, tmp_path, always, amp):
    when = "" if always else " in training"
    with pytest.raises(ModelError, match=f"the network returns a tuple{when}\n"):
        fit(Heads(always), digits, dataclasses.replace(FAST, amp=amp), run=tmp_path)


def test_a_validation_loss_that_is_not_finite_ends_nothing(digits, tmp_path):
    class Overflows(nn.Module):
        def forward(self, x):
            return x if self.training else x * math.inf

    net = nn.Sequential(small_net(), Overflows())
    history = fit(net, digits, FAST, run=tmp_path)
    assert [metrics.val_loss for metrics in history] == [None, None]
    assert fit(net, digits, FAST, run=tmp_path) == history


def test_a_batch_norm_that_sees_one_number(digits):
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 10), nn.BatchNorm1d(10))
    train = TensorSplit(digits.train.images[:1], digits.train.labels[:1], digits.train.normalise)
    with pytest.raises(DataError, match="a batch norm cannot measure anything"):
        fit(net, dataclasses.replace(digits, train=train), FAST)


def test_a_diverging_run_stops_and_keeps_its_last_good_checkpoint(digits, tmp_path):
    with pytest.raises(OptionError, match=r"the loss is (nan|inf) in epoch 1\n  why  .*diverged"):
        fit(small_net(), digits, dataclasses.replace(FAST, lr=1e30), run=tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_wrong_input_shape(digits):
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(144, 10))
    with pytest.raises(
        DataError, match=r"digits, float32 \[2, 1, 8, 8\] as a batch\n  why  .*chan"
    ):
        fit(net, digits, FAST)


def test_too_few_outputs(digits):
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 9))
    with pytest.raises(DataError, match=r"output \(2, 9\) does not fit digits\n"):
        fit(net, digits, FAST)


def test_a_data_set_smaller_than_a_batch(digits):
    train = digits.train
    few = TensorSplit(train.images[:20], train.labels[:20], train.normalise)
    data = DataSet("few", few, few, digits.classes, digits.shape)
    history = fit(small_net(), data, FAST)
    assert len(history) == 2
    assert math.isfinite(history[-1].train_loss)


class Overwrites(nn.Module):
    """Adds in place to what the rectifier needs for its gradient."""

    def forward(self, x):
        y = x.relu()
        y += x
        return y


def test_a_model_that_pytorch_cannot_train(digits):
    net = nn.Sequential(
        nn.Conv2d(1, 4, 3), Overwrites(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 10)
    )
    gated = instrument(net, (torch.zeros(2, 1, 8, 8),))
    with pytest.raises(ModelError, match="cannot be trained as it is written") as refused:
        fit(gated, digits, FAST)
    assert "inplace operation" in refused.value.why
