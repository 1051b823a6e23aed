"""Training a gated network through the built-in trainer."""

import dataclasses
import json

import pytest
import torch
from torch import nn

import fxprune
from fxprune.errors import RunError
from fxprune.formats import read_tensors
from fxprune.runs.gated_file import save
from fxprune.runs.history import METRICS
from fxprune.runs.run import CHECKPOINT
from fxprune.trainer.loop import Stopped, fit
from tests.support.fitting import FAST, same_bits, stopped_after


class Net(nn.Module):
    """A stem, a residual block and a head."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(1, 16, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(16)
        self.conv1 = nn.Conv2d(16, 24, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(24)
        self.conv2 = nn.Conv2d(24, 16, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(16)
        self.drop = nn.Dropout(0.1)
        self.fc = nn.Linear(16 * 16, 10)

    def forward(self, x):
        x = torch.relu(self.bn(self.stem(x)))
        x = torch.relu(x + self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(x))))))
        x = torch.nn.functional.max_pool2d(x, 2)
        return self.fc(self.drop(torch.flatten(x, 1)))


def make(weights=0, **settings):
    with torch.random.fork_rng():
        torch.manual_seed(weights)
        return fxprune.instrument(Net(), (torch.zeros(2, 1, 8, 8),), **settings)


@pytest.mark.sampled(1)
@pytest.mark.parametrize(
    "settings",
    [
        {"policy": "random"},
        {"policy": "balance", "budget": "macs=0.4", "every": 3},
        {"policy": "utility{warmup=5,reallocate=4}", "budget": "params=0.4"},
    ],
    ids=str,
)
@pytest.mark.parametrize("steps", [6, 22, 40])
def test_a_run_that_was_stopped_in_an_epoch_ends_in_the_same_bits(
    digits, tmp_path, settings, steps
):
    straight, resumed = make(**settings), make(weights=9, **settings)
    whole = fit(straight, digits, FAST, run=tmp_path / "straight")
    run = tmp_path / "resumed"
    with pytest.raises(Stopped):
        fit(make(**settings), digits, FAST, run=run, stop=stopped_after(steps))
    rest = fit(resumed, digits, FAST, run=run)
    same = [
        {**dataclasses.asdict(metrics), "step_seconds": 0, "seconds": 0}
        for metrics in (*rest, *whole)
    ]
    assert same[: len(rest)] == same[len(rest) :]
    one, two = (read_tensors(tmp_path / name / CHECKPOINT)[0] for name in ("straight", "resumed"))
    assert same_bits(one, two)


@pytest.mark.slow
def test_it_learns_with_half_of_the_channels(digits):
    gated = make()
    history = fit(gated, digits, dataclasses.replace(FAST, epochs=10))
    assert history[-1].val_accuracy > 0.9
    assert gated.settled
    assert not gated.training
    assert gated.widths == (8, 12)
    assert history[-1].macs == gated.cost.macs(gated.widths) < gated.cost.macs((16, 24)) / 2
    assert history[-1].params == gated.cost.params(gated.widths)


def test_the_last_accuracy_is_that_of_the_compact_network(digits):
    gated = make()
    last = fit(gated, digits, FAST)[-1]
    compact = fxprune.shrink(gated)
    images, labels = next(digits.val.batches(1000))
    with torch.no_grad():
        logits = compact(images)
    assert last.val_accuracy == (logits.argmax(1) == labels).sum().item() / 359
    assert sum(p.numel() for p in compact.parameters()) == last.params


@pytest.mark.sampled(1)
@pytest.mark.parametrize(
    ("settings", "change"),
    [
        ({"policy": "cucb"}, {}),
        pytest.param(
            {"policy": "cucb", "every": 2},
            {"amp": "float16", "channels_last": "off"},
            marks=pytest.mark.slow,
        ),
        ({"policy": "cucb{saliency=sample}", "every": 3}, {"optimizer": "adamw", "lr": 0.002}),
        ({"policy": "utility{warmup=5,reallocate=4}", "budget": "macs=0.4"}, {}),
        ({"policy": "utility{warmup=30,reallocate=4}"}, {"optimizer": "adamw", "lr": 0.002}),
        ({"policy": "balance{reallocate=6}", "budget": "macs=0.4", "round_to": 1}, {}),
        ({"policy": "random", "seed": 4}, {"settle": 0.6}),
        ({"policy": "magnitude", "round_to": 4}, {"settle": 0.0, "momentum": 0.0}),
    ],
    ids=str,
)
def test_a_resumed_run_ends_in_the_same_bits(digits, tmp_path, settings, change):
    options = dataclasses.replace(FAST, epochs=3, **change)
    straight = make(**settings)
    whole = fit(straight, digits, options, run=tmp_path / "straight")

    first = fit(make(**settings), digits, options, run=tmp_path / "resumed", minutes=0)
    assert len(first) == 1
    resumed = make(weights=99, **settings)
    rest = fit(resumed, digits, options, run=tmp_path / "resumed")

    assert [m.train_loss for m in rest] == [m.train_loss for m in whole]
    assert [m.val_loss for m in rest] == [m.val_loss for m in whole]
    assert same_bits(straight.training_state(), resumed.training_state())
    one, two = (read_tensors(tmp_path / name / CHECKPOINT)[0] for name in ("straight", "resumed"))
    assert same_bits(one, two)


def test_the_selection_moves_until_it_settles(digits):
    gated = make()
    seen = []

    def watch(tick):
        if tick.metrics is None:
            seen.append(gated.executing.sort().values.tolist())

    fit(gated, digits, dataclasses.replace(FAST, settle=0.25), progress=watch)
    assert len(seen) == 44
    assert len({tuple(channels) for channels in seen[:33]}) > 10
    assert all(channels == seen[33] for channels in seen[33:])
    assert gated.executing.sort().values.tolist() == seen[-1]


def test_a_longer_run_selects_again(digits, tmp_path):
    options = dataclasses.replace(FAST, epochs=1)
    fit(make(), digits, options, run=tmp_path)
    gated = make()
    settled = []
    fit(
        gated,
        digits,
        dataclasses.replace(FAST, epochs=3),
        run=tmp_path,
        progress=lambda _: settled.append(gated.settled),
    )
    assert settled[0] is False
    assert settled[-1] is True


def test_the_checkpoint_is_a_gated_file(digits, tmp_path):
    gated = make()
    fit(gated, digits, FAST, run=tmp_path)
    loaded = fxprune.load(tmp_path / CHECKPOINT, Net())
    assert same_bits(loaded.training_state(), gated.training_state())
    lines = [json.loads(line) for line in (tmp_path / METRICS).read_text().splitlines()]
    assert [line["macs"] for line in lines] == [gated.cost.macs(gated.widths)] * 2
    chosen = [
        offset + channel
        for offset, size, text in zip(
            gated.channels.layout.offsets, gated.channels.layout.sizes, lines[-1]["selection"]
        )
        for channel in range(size)
        if int(text, 16) >> channel & 1
    ]
    assert chosen == sorted(gated.executing.tolist())
    assert len(lines[0]["selection"]) == len(lines[0]["widths"]) == 2
    assert [int(text, 16).bit_count() for text in lines[0]["selection"]] == lines[0]["widths"]


def test_an_instrumented_file_is_a_beginning(digits, tmp_path):
    gated = make()
    save(gated, tmp_path / CHECKPOINT)
    assert len(fit(gated, digits, FAST, run=tmp_path)) == 2


def test_other_plans_are_refused(digits, tmp_path):
    fit(make(), digits, FAST, run=tmp_path)
    for other in (make(policy="random"), make(budget="keep=0.25"), Net()):
        with pytest.raises(RunError, match="another model, or to one that was instrumented"):
            fit(other, digits, FAST, run=tmp_path)


def test_new_widths_while_an_old_loss_is_kept(digits):
    """A user's loop holds the last loss, and its graph, while the next forward runs."""
    gated = make(policy="utility{warmup=1,reallocate=2}")
    optimizer = torch.optim.SGD(gated.parameters(), lr=0.05, momentum=0.9)
    fxprune.attach(gated, optimizer)
    widths = {gated.widths}
    for images, labels in digits.train.batches(128):
        loss = nn.functional.cross_entropy(gated(images), labels)
        optimizer.zero_grad()
        loss.backward()
        assert all(p.grad.shape == p.shape for p in gated.parameters())
        optimizer.step()
        widths.add(gated.widths)
    assert len(widths) > 1
