"""A run that goes on: to the same bits, and only with the same options, data and network."""

import dataclasses
import subprocess
import sys

import pytest
from torch import nn

from fxprune.api import instrument
from fxprune.errors import FxpruneWarning, RunError
from fxprune.formats import read_tensors, write_tensors
from fxprune.runs.history import METRICS
from fxprune.runs.run import CHECKPOINT
from fxprune.trainer.loop import Stopped, fit
from fxprune.trainer.options import TrainOptions
from tests.support.fitting import FAST, same_bits, small_net, stopped_after


@pytest.mark.sampled(1)
@pytest.mark.parametrize(
    "change",
    [
        {},
        {"optimizer": "adamw", "lr": 0.002, "label_smoothing": 0.1},
        {"momentum": 0.0, "schedule": "step", "milestones": (0.3,)},
        {"channels_last": "off", "augment": False},
        {"amp": "bfloat16"},
        {"amp": "float16"},
    ],
    ids=str,
)
def test_a_resumed_run_ends_in_the_same_bits(digits, tmp_path, change):
    options = dataclasses.replace(FAST, **change)
    straight = small_net()
    whole = fit(straight, digits, options, run=tmp_path / "straight")

    first = fit(small_net(), digits, options, run=tmp_path / "resumed", minutes=0)
    assert len(first) == 1, "no time is left for a second epoch"
    resumed = small_net(seed=99)
    rest = fit(resumed, digits, options, run=tmp_path / "resumed")

    assert same_bits(straight.state_dict(), resumed.state_dict())
    assert [m.val_loss for m in rest] == [m.val_loss for m in whole]
    assert [m.train_loss for m in rest] == [m.train_loss for m in whole]
    one, two = (read_tensors(tmp_path / name / CHECKPOINT)[0] for name in ("straight", "resumed"))
    assert any(key.startswith("optimizer/") for key in one) == (change.get("momentum") != 0.0)
    assert same_bits(one, two)


@pytest.mark.sampled(2)
@pytest.mark.parametrize("steps", [0, 21, 22, 24, 30])
@pytest.mark.parametrize(
    "change",
    [
        {},
        pytest.param({"optimizer": "adamw", "lr": 0.002}, marks=pytest.mark.slow),
        pytest.param({"amp": "float16", "recalibrate": 0}, marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_a_run_that_was_stopped_in_an_epoch_ends_in_the_same_bits(digits, tmp_path, change, steps):
    options = dataclasses.replace(FAST, **change)

    straight, resumed = small_net(), small_net(seed=99)
    whole = fit(straight, digits, options, run=tmp_path / "straight")
    with pytest.raises(Stopped):
        fit(small_net(), digits, options, run=tmp_path / "resumed", stop=stopped_after(steps))
    rest = fit(resumed, digits, options, run=tmp_path / "resumed")

    assert same_bits(straight.state_dict(), resumed.state_dict())
    for name in ("val_loss", "val_accuracy", "train_loss", "train_accuracy", "lr"):
        assert [getattr(m, name) for m in rest] == [getattr(m, name) for m in whole]
    one, two = (read_tensors(tmp_path / name / CHECKPOINT)[0] for name in ("straight", "resumed"))
    assert same_bits(one, two)


def test_a_run_that_was_stopped_twice(digits, tmp_path):
    straight, resumed = small_net(), small_net(seed=99)
    whole = fit(straight, digits, FAST)
    for steps in (3, 4, 30, 1):
        with pytest.raises(Stopped):
            fit(small_net(), digits, FAST, run=tmp_path, stop=stopped_after(steps))
    rest = fit(resumed, digits, FAST, run=tmp_path)
    assert same_bits(straight.state_dict(), resumed.state_dict())
    assert [m.train_loss for m in rest] == [m.train_loss for m in whole]


@pytest.mark.parametrize(
    ("was", "now"),
    [
        ({"optimizer": "sgd"}, {"optimizer": " SGD"}),
        ({"optimizer": "timm:Lamb"}, {"optimizer": "Timm:lamb"}),
        ({"freeze": "0.weight, 0.bias"}, {"freeze": "0.weight,0.bias,"}),
        (
            {"budget_schedule": "cubic{end=.4,begin=.1}"},
            {"budget_schedule": "cubic{begin=0.1,end=0.4}"},
        ),
    ],
    ids=str,
)  # fmt: skip
def test_options_that_say_the_same_are_the_same(was, now):
    assert dataclasses.replace(FAST, **was) == dataclasses.replace(FAST, **now)


def test_metrics_that_were_not_written_are_written_by_the_next_call(digits, tmp_path):
    history = fit(small_net(), digits, FAST, run=tmp_path)
    whole = (tmp_path / METRICS).read_bytes()
    for damage in (whole.splitlines(keepends=True)[0], b"", whole.replace(b"1", b"2")):
        (tmp_path / METRICS).write_bytes(damage)
        assert fit(small_net(), digits, FAST, run=tmp_path) == history
        assert (tmp_path / METRICS).read_bytes() == whole


@pytest.mark.slow
def test_one_process_writes_at_a_time(digits, tmp_path):
    code = """
import sys
from pathlib import Path
from fxprune.runs.writer import only_writer
with only_writer(Path(sys.argv[1])):
    print("locked", flush=True)
    sys.stdin.read()
"""
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    other = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], **pipes)
    assert other.stdout.readline() == b"locked\n"
    with pytest.raises(
        RunError, match=rf"another process writes to .*\n  why  process {other.pid} "
    ):
        fit(small_net(), digits, FAST, run=tmp_path)
    other.kill()
    other.communicate()
    assert len(fit(small_net(), digits, FAST, run=tmp_path)) == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == [CHECKPOINT, METRICS]


def test_a_run_that_is_moved_while_it_trains_is_not_made_anew(digits, tmp_path):
    run, moved = tmp_path / "a", tmp_path / "b"
    asked = iter(range(30))  # the first epoch has 22 steps

    def moves() -> bool:
        if next(asked, None) == 29:
            run.rename(moved)
        return False

    with pytest.raises(RunError, match=r"was moved or deleted meanwhile.*\n.*the new place"):
        fit(small_net(), digits, FAST, run=run, stop=moves)
    assert not run.exists()
    assert len(fit(small_net(), digits, FAST, run=moved)) == 2


def test_a_finished_run_is_returned_as_it_is(digits, tmp_path):
    net = small_net()
    whole = fit(net, digits, FAST, run=tmp_path)
    again = small_net(seed=5)
    assert fit(again, digits, FAST, run=tmp_path) == whole
    assert same_bits(net.state_dict(), again.state_dict())


def test_a_longer_run_goes_on_from_a_shorter_one(digits, tmp_path):
    short = fit(small_net(), digits, FAST, run=tmp_path)
    longer = fit(small_net(), digits, dataclasses.replace(FAST, epochs=3), run=tmp_path)
    assert longer[:2] == short
    assert longer[2].epoch == 3


def test_other_options_are_refused(digits, tmp_path):
    fit(small_net(), digits, FAST, run=tmp_path)
    changed = dataclasses.replace(FAST, lr=0.2, batch_size=32)
    with pytest.raises(RunError, match=r"lr 0\.05 \(now 0\.2\), batch_size 64 \(now 32\)"):
        fit(small_net(), digits, changed, run=tmp_path)


CHANGED = {
    "lr": 0.2, "optimizer": "adamw", "schedule": "step", "milestones": (0.3,), "decay": 0.5,
    "lr_warmup": 0.1, "batch_size": 32, "momentum": 0.5, "weight_decay": 0.1,
    "decay_norms": False, "clip": 1.0, "accumulate": 2, "freeze": "0", "ema": 0.9,
    "best": True, "early_stop": 1, "label_smoothing": 0.1, "distil": 0.5, "temperature": 2.0,
    "augment": False, "randaugment": 3, "mixup": 0.2, "cutmix": 0.2, "amp": "bfloat16",
    "channels_last": "off", "budget_schedule": "linear{begin=0.1,end=0.4}",
    "train_macs": 0.9, "settle": 0.4, "recalibrate": 3, "seed": 9,
}  # fmt: skip
"""Another value of each option that a training keeps from its begin to its end."""


@pytest.fixture(scope="module")
def begun(digits, tmp_path_factory):
    run = tmp_path_factory.mktemp("begun")
    options = dataclasses.replace(FAST, epochs=4)
    fit(
        instrument(small_net(), (digits.train.images[:2] / 255,)),
        digits,
        options,
        run=run,
        minutes=0,
    )
    return run


@pytest.mark.sampled(9)
@pytest.mark.parametrize(
    "name", sorted({f.name for f in dataclasses.fields(TrainOptions)} - {"epochs", "device"})
)
def test_any_other_option_is_refused_by_name(digits, begun, name):
    options = dataclasses.replace(FAST, epochs=4, **{name: CHANGED[name]})
    gated = instrument(small_net(), (digits.train.images[:2] / 255,))
    with pytest.raises(RunError, match=rf"other options: {name} .*\n  do .* --from ") as caught:
        fit(gated, digits, options, run=begun)
    assert "(now" in str(caught.value)


def test_a_shorter_run_is_refused(digits, tmp_path):
    """It would have settled and saved earlier than it did."""
    fit(small_net(), digits, dataclasses.replace(FAST, epochs=3), run=tmp_path, minutes=0)
    with pytest.raises(RunError, match=r"epochs 3 \(now 2\)\n  do   .* for more epochs") as caught:
        fit(small_net(), digits, FAST, run=tmp_path)
    assert f"fxprune train NEW.fxprune --from {tmp_path}, with the options" in str(caught.value)


GPU = {"device": "cuda", "amp": "bfloat16", "channels_last": True}


@pytest.mark.parametrize(
    ("was", "told"),
    [
        ({"processes": 2}, "by 2 processes so far, and goes on by one process: it does not end in"),
        ({"place": GPU}, r"with cuda in bfloat16.* goes on with cpu in float32.*: it does not end"),
    ],
    ids=["processes", "device"],
)
def test_what_changes_the_bits_is_told(digits, tmp_path, was, told):
    with pytest.raises(Stopped):
        fit(small_net(), digits, FAST, run=tmp_path, stop=stopped_after(3))
    tensors, meta = read_tensors(tmp_path / CHECKPOINT)
    write_tensors(tmp_path / CHECKPOINT, tensors, {**meta, **was})
    with pytest.warns(FxpruneWarning, match=told):
        assert len(fit(small_net(), digits, FAST, run=tmp_path)) == 2


def test_a_run_goes_on_on_another_device(digits, tmp_path):
    """Warnings are errors: on the same kind of device nothing is told."""
    fit(small_net(), digits, FAST, run=tmp_path, minutes=0)
    assert (
        len(fit(small_net(), digits, dataclasses.replace(FAST, device="auto"), run=tmp_path)) == 2
    )


@pytest.mark.parametrize(
    "change",
    [
        lambda data: {"train": data.val},
        lambda data: {"val": data.train},
        lambda _: {"classes": tuple("abcdefghij")},
    ],
)
def test_other_data_are_refused(digits, tmp_path, change):
    fit(small_net(), digits, FAST, run=tmp_path)
    other = dataclasses.replace(digits, **change(digits))
    with pytest.raises(RunError, match=r"on other data: digits, 1438 and 359 images of 1 x 8 x 8"):
        fit(small_net(), other, dataclasses.replace(FAST, epochs=3), run=tmp_path)
    renamed = dataclasses.replace(digits, name="moved")
    with pytest.warns(FxpruneWarning, match="with the data moved: unless these are the same ex"):
        assert len(fit(small_net(), renamed, FAST, run=tmp_path)) == 2


def test_another_model_is_refused(digits, tmp_path):
    fit(small_net(), digits, FAST, run=tmp_path)
    other = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    with pytest.raises(RunError, match="it belongs to another model"):
        fit(other, digits, FAST, run=tmp_path)


def test_a_damaged_checkpoint_is_refused(digits, tmp_path):
    fit(small_net(), digits, FAST, run=tmp_path)
    path = tmp_path / CHECKPOINT
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(RunError, match=r"cannot read .*\n  why  it is damaged"):
        fit(small_net(), digits, FAST, run=tmp_path)
