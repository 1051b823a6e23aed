"""What a run may cost is planned, and what it costs is what was planned."""

import dataclasses
import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import fxprune
import fxprune.formats
from fxprune.budget.budget import Budget
from fxprune.budget.schedule import Cubic
from fxprune.budget.widths import uniform_widths
from fxprune.data import DataSet
from fxprune.errors import OptionError
from fxprune.formats import read_tensors
from fxprune.gated.module import GatedModule
from fxprune.runs.run import CHECKPOINT
from fxprune.trainer.loop import fit
from fxprune.trainer.options import TrainOptions
from fxprune.trainer.plan import RunPlan, plan_run

FAST = TrainOptions(epochs=3, lr=0.05, batch_size=64, recalibrate=2, device="cpu", seed=3)
STEPS = 66  # of FAST on the digits


def make(weights: int = 0, **how: object) -> GatedModule:
    with torch.random.fork_rng():
        torch.manual_seed(weights)
        model = nn.Sequential(
            *(nn.Conv2d(1, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU()),
            *(nn.Conv2d(16, 32, 3, 2, 1, bias=False), nn.BatchNorm2d(32), nn.ReLU()),
            *(nn.Flatten(), nn.Linear(512, 10)),
        )
        return fxprune.instrument(model, (torch.zeros(2, 1, 8, 8),), **how)  # type: ignore[arg-type]


def total(plan: RunPlan) -> int:
    macs = plan.macs(plan.steps)
    assert macs is not None
    return macs


GATED = make(budget="macs=0.25")
LEAST = total(plan_run(GATED, FAST, 1000)) / (1000 * GATED.cost.dense_macs)


@settings(deadline=None)
@given(
    st.floats(LEAST, 1),
    st.sampled_from(["cubic", "linear", "cubic{begin=0.2,end=0.4,changes=7}", "quick", "constant"]),
    st.sampled_from([0.0, 0.1, 0.5]),
    st.integers(100, 3000),
)
def test_a_plan_takes_what_it_is_given(
    share: float, schedule: str, settle: float, steps: int
) -> None:
    options = TrainOptions(train_macs=share, budget_schedule=schedule, settle=settle)
    limit = share * GATED.cost.dense_macs * steps
    plan = plan_run(GATED, options, steps)
    assert total(plan) <= limit
    longest = dataclasses.replace(options, train_macs=1.0)
    if schedule != "constant" and total(plan_run(GATED, longest, steps)) > limit:
        # a few steps more at each of its widths would be too much
        assert total(plan) > limit - 25 * GATED.cost.dense_macs
    assert plan.by_step.share(options.settles_at(steps, falls=True)) == 0.25


def test_balance_has_the_budget_from_the_first_step_on() -> None:
    gated = make(budget="macs=0.25", policy="balance")
    assert plan_run(gated, TrainOptions(), 100).by_step.starts == (0,)
    told = TrainOptions(budget_schedule="cubic{begin=0.1,end=0.4}")
    assert plan_run(gated, told, 100).by_step.share(5) == 1
    limited = plan_run(gated, TrainOptions(train_macs=0.4), 100)
    assert limited.by_step.share(0) == 1
    assert 0.3 * 100 < total(limited) / gated.cost.dense_macs <= 0.4 * 100
    assert plan_run(GATED, TrainOptions(), 100).by_step.share(5) == 1


@pytest.mark.parametrize(("settle", "end"), [(None, 0.1), (0.9375, 0.0625)])
def test_a_quick_fall_ends_before_the_channels_settle(settle: float | None, end: float) -> None:
    for falls in (True, False):
        options = TrainOptions(budget_schedule="quick", settle=settle)
        assert options.schedule_of_budget(falls) == Cubic(begin=end / 10, end=end)


def test_what_begins_with_the_budget_settles_early() -> None:
    assert TrainOptions().settles_at(100, falls=False) == 25
    assert TrainOptions().settles_at(100, falls=True) == 50
    assert TrainOptions(budget_schedule="constant").settles_at(100, falls=False) == 50
    assert TrainOptions(train_macs=0.4).settles_at(100, falls=False) == 50
    assert TrainOptions(settle=0.1).settles_at(100, falls=False) == 90


def test_without_a_limit_the_schedule_is_taken_as_it_is() -> None:
    options = TrainOptions(budget_schedule="linear{begin=0.1,end=0.6,changes=5}", settle=0.1)
    plan = plan_run(GATED, options, 100)
    assert plan.by_step.starts == (0, 20, 30, 40, 50, 60)
    assert plan.spans is not None
    dense = GATED.cost.dense_macs
    assert plan.spans[0] == (0, dense)
    assert all(one[1] > two[1] for one, two in itertools.pairwise(plan.spans[:-1]))
    assert plan.macs(20) == 20 * dense
    assert plan.macs(25) == 20 * dense + 5 * plan.spans[1][1]
    shares = [plan.by_step.share(step) for step in range(100)]
    widths = [uniform_widths(Budget("macs", s), GATED.channels.layout, GATED.cost) for s in shares]
    assert total(plan) == sum(GATED.cost.macs(w) for w in widths)


@pytest.mark.sampled(1)
@pytest.mark.parametrize(
    ("how", "change"),
    [
        ({"budget": "keep=0.4", "round_to": 1}, {"train_macs": 0.3}),
        (
            {"budget": "params=0.2"},
            {"train_macs": 0.5, "budget_schedule": "linear{begin=0.2}", "settle": 0.1},
        ),
        ({"budget": "macs=0.3", "round_to": 1, "every": 3}, {"train_macs": 0.38, "settle": 0.4}),
        (
            {"budget": "keep=0.4", "round_to": 1, "policy": "utility{warmup=9,reallocate=0}"},
            {"train_macs": 0.33},
        ),
    ],
    ids=str,
)
def test_a_run_spends_what_was_planned(
    digits: DataSet, how: dict[str, object], change: dict[str, Any]
) -> None:
    options = dataclasses.replace(FAST, **change)
    gated, seen = make(**how), []
    final = gated.eval().widths
    gated.train()
    history = fit(gated, digits, options, progress=lambda _: seen.append(gated.widths))
    last, dense = history[-1], gated.cost.dense_macs
    assert last.run_macs == last.run_macs_planned
    assert last.run_macs_dense == 64 * STEPS * dense
    assert last.run_macs is not None
    assert 0.95 * change["train_macs"] < last.run_macs / last.run_macs_dense <= change["train_macs"]
    assert gated.widths == final
    assert 5 < len(set(seen)) <= 21


def test_a_policy_that_allocates_spends_at_most_what_was_planned(digits: DataSet) -> None:
    options = dataclasses.replace(FAST, train_macs=0.5)
    gated = make(budget="macs=0.3", policy="utility{warmup=5,reallocate=4}")
    last = fit(gated, digits, options)[-1]
    assert last.run_macs is not None
    assert last.run_macs_planned is not None
    assert last.run_macs_dense is not None
    assert last.run_macs <= last.run_macs_planned <= 0.5 * last.run_macs_dense
    assert last.run_macs > 0.4 * last.run_macs_dense


@pytest.mark.slow
def test_a_resumed_run_spends_the_same_and_ends_in_the_same_bits(
    digits: DataSet, tmp_path: Path
) -> None:
    options = dataclasses.replace(FAST, train_macs=0.36)
    straight, resumed = make(), make(weights=9)
    whole = fit(straight, digits, options, run=tmp_path / "straight")
    first = fit(make(), digits, options, run=tmp_path / "resumed", minutes=0)
    assert len(first) == 1
    rest = fit(resumed, digits, options, run=tmp_path / "resumed")
    assert [m.run_macs for m in rest] == [m.run_macs for m in whole]
    assert [m.train_loss for m in rest] == [m.train_loss for m in whole]
    one, two = (read_tensors(tmp_path / name / CHECKPOINT)[0] for name in ("straight", "resumed"))
    assert one.keys() == two.keys()
    assert all(torch.equal(one[key], two[key]) for key in one)

    longer = dataclasses.replace(options, epochs=5)
    last = fit(make(), digits, longer, run=tmp_path / "resumed")[-1]
    assert last.run_macs is not None
    assert last.run_macs_dense == 64 * 110 * straight.cost.dense_macs
    assert last.run_macs <= 0.36 * last.run_macs_dense


def test_a_run_from_before_there_were_schedules_goes_on(digits: DataSet, tmp_path: Path) -> None:
    options = dataclasses.replace(FAST, epochs=2)
    fit(make(), digits, dataclasses.replace(FAST, epochs=1), run=tmp_path)
    tensors, meta = read_tensors(tmp_path / CHECKPOINT)
    for key in ("budget_schedule", "train_macs"):
        del meta["options"][key]
    for key in ("run_macs", "run_macs_planned", "run_macs_dense"):
        del meta["history"][0][key]
    del tensors["gated/share"]
    fxprune.formats.write_tensors(tmp_path / CHECKPOINT, tensors, meta)
    last = fit(make(), digits, options, run=tmp_path)[-1]
    assert last.run_macs is None
    assert last.run_macs_planned is not None


@pytest.mark.parametrize(
    ("how", "share", "message"),
    [
        (
            {"budget": "keep=0.5"},
            0.2,
            "the run cannot cost 0.2 of the dense run's macs\n"
            "  why  with the budget keep=0.5 from the beginning it costs 0.2907\n"
            "  do   give --train-macs 0.2907 or more, or instrument with a smaller budget",
        ),
        (
            {"policy": "utility{warmup=33,reallocate=0}"},
            0.5,
            "the run cannot cost 0.5 of the dense run's macs\n"
            "  why  with the budget keep=0.5 from the beginning, after 33 steps of all channels "
            "for the policy to warm up, it costs 0.6454\n",
        ),
        (
            {"policy": "utility"},
            0.9,
            "the macs of the run cannot be planned\n"
            "  why  the policy allocates the widths by what it learns, and the budget keep=0.5 "
            "does not limit their macs\n",
        ),
    ],
)
def test_what_cannot_be_met_is_refused(how: dict[str, object], share: float, message: str) -> None:
    options = dataclasses.replace(FAST, train_macs=share)
    with pytest.raises(OptionError) as caught:
        plan_run(make(**how), options, STEPS)
    assert str(caught.value).startswith(message)


def test_a_plain_network_cannot_spend_less(digits: DataSet) -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    with pytest.raises(OptionError, match="train_macs is for gated networks"):
        fit(model, digits, dataclasses.replace(FAST, train_macs=0.5))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"train_macs": 0.0}, "train_macs cannot be 0.0"),
        ({"train_macs": 1.5}, "train_macs cannot be 1.5"),
        ({"train_macs": float("nan")}, "train_macs cannot be nan"),
        ({"budget_schedule": "fast"}, "unknown budget schedule 'fast'"),
        (
            {"budget_schedule": "cubic{end=0.95}"},
            "the budget cannot fall until 0.95 of the run\n"
            "  why  the channels settle after 0.5 of it",
        ),
    ],
)
def test_wrong_options(change: dict[str, object], message: str) -> None:
    with pytest.raises(OptionError) as caught:
        TrainOptions(**change)  # type: ignore[arg-type]
    assert str(caught.value).startswith(message)
