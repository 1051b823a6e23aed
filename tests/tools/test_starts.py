"""The tools of the trained starts: what they spend, mend, try, and that they stand still."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import fxprune

ROOT = Path(__file__).parents[2]


def images(count=256, side=8):
    from fxprune.data.splits import Normalise, TensorSplit

    torch.manual_seed(0)
    pixels = torch.randint(256, (count, 3, side, side), dtype=torch.uint8)
    labels = (pixels.float().mean((1, 2, 3)) > 127).long()
    return TensorSplit(pixels, labels, Normalise.of(pixels), pad=1, flip=True)


def network():
    torch.manual_seed(0)
    return torch.nn.Sequential(
        torch.nn.Conv2d(3, 8, 3, padding=1),
        torch.nn.BatchNorm2d(8),
        torch.nn.ReLU(),
        torch.nn.Conv2d(8, 8, 3, padding=1),
        torch.nn.BatchNorm2d(8),
        torch.nn.ReLU(),
        torch.nn.AdaptiveAvgPool2d(1),
        torch.nn.Flatten(),
        torch.nn.Linear(8, 2),
    )


def gated(policy="utility{warmup=1}", macs=0.5):
    return fxprune.instrument(network(), (torch.zeros(2, 3, 8, 8),), policy, f"macs={macs}", 1)


def test_a_plain_network_trains_for_what_it_costs():
    import tuning

    spent = tuning.tune(network(), 0.5, images(), tuning.Plan(lr=0.1, spend=3.0))
    assert spent.dense_epochs == pytest.approx(3.0)
    assert spent.steps == 3.0 / 0.5 * 256 / tuning.BATCH


def test_a_gated_network_pays_for_its_fall():
    import tuning

    net = gated()
    plan = tuning.Plan(lr=0.1, spend=10.0, schedule="linear{begin=0,end=0.5}")
    spent = tuning.tune(net, 0.5, images(), plan)
    assert net.settled
    assert 7.5 < spent.dense_epochs <= 10.0
    assert spent.steps < 10.0 / 0.5 * 256 / tuning.BATCH


def test_a_teacher_is_paid_for_and_learned_from():
    import tuning

    teacher = network()
    with torch.no_grad():
        teacher[-1].bias.copy_(torch.tensor([-9.0, 9.0]))  # it always says the same
    student = network()
    spent = tuning.tune(
        student, 1.0, images(), tuning.Plan(lr=0.05, spend=6.0, views=2), teacher=teacher
    )
    assert spent.dense_epochs == pytest.approx(6.0, abs=0.5 + 1e-6)
    assert spent.steps < 6.0 * 256 / tuning.BATCH
    answers = student(torch.randn(64, 3, 8, 8)).argmax(1)
    assert answers.float().mean() > 0.9


def test_candidates_meet_the_budget_and_the_best_is_taken():
    import search

    net = gated(macs=0.5)
    split = images()
    pixels, labels = next(split.batches(256))
    probe = search.Probe([pixels], pixels, labels)
    best = search.best_of(net, probe, 6, seed=0)
    assert net.settings.budget.fits(best.widths, net.cost)
    own = net.best()
    net.settle(best)
    found = search.count_right(net, probe)
    net.unsettle()
    net.settle(own)
    assert found >= search.count_right(net, probe)


def test_who_measures_times_stops_the_queue(tmp_path):
    import pause

    assert not pause.paused(tmp_path)
    with pause.quiet(tmp_path, settle_seconds=0):
        assert pause.paused(tmp_path)
        assert (tmp_path / str(os.getpid())).exists()
    assert not pause.paused(tmp_path)
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    (tmp_path / str(gone.pid)).touch()
    assert not pause.paused(tmp_path), "its process is gone"
    (tmp_path / "me").touch()
    assert pause.paused(tmp_path)


def queue(data, folder, what):
    line = [sys.executable, ROOT / "tools" / "paper" / "starts.py", what, "--data", data]
    line += ["--network", "resnet8", "--epochs", "1", "--held-out", "16"]
    line += ["--plan", folder / "plan", "--results", folder / "starts.json", "--work", folder]
    return subprocess.run(line, cwd=ROOT, capture_output=True, text=True, check=True)


@pytest.mark.slow
def test_a_queue_goes_on_where_it_stopped(data_file, tmp_path):
    queue(data_file, tmp_path, "dense")
    (tmp_path / "plan").write_text("# macs epochs lr seed arm\n0.5 6 0.05 0 utility\n")
    queue(data_file, tmp_path, "queue")
    first = json.loads((tmp_path / "starts.json").read_text())["runs"]
    with (tmp_path / "plan").open("a") as plan:
        plan.write("0.5 6 0.05 0 uniform, one-shot\n")
    queue(data_file, tmp_path, "queue")
    both = json.loads((tmp_path / "starts.json").read_text())["runs"]
    assert both[:1] == first, "nothing is trained twice"
    assert [run["arm"] for run in both] == ["utility", "uniform, one-shot"]
    for run in both:
        assert run["macs"] <= 0.51
        assert run["spent"] <= 6


def test_widths_of_groups_follow_from_those_of_convolutions():
    """Also where a stream is padded, so that a convolution's outputs are those of two groups."""
    import models
    import starts_time

    torch.manual_seed(0)
    model = models.CifarResNet(8)
    names = [name for name, m in model.named_modules() if isinstance(m, torch.nn.Conv2d)]
    net = fxprune.instrument(model, (torch.zeros(2, 3, 32, 32),), "fixed", "macs=0.4", round_to=1)
    wanted = net.best().widths
    compact = fxprune.shrink(net.eval())
    convs = [m.out_channels for m in compact.modules() if isinstance(m, torch.nn.Conv2d)]
    assert len({*wanted}) > 1
    found = starts_time.group_widths(net.channels, dict(zip(names, convs, strict=True)))
    assert found == wanted
    with pytest.raises(SystemExit, match="conv"):
        starts_time.group_widths(net.channels, dict(zip(names, convs[::-1], strict=True)))


def test_a_front_needs_three_budgets_that_were_timed(tmp_path):
    import starts_report

    record = json.loads((ROOT / "results" / "starts.json").read_text())["runs"][-1]
    arms = {"utility": (0.7, 0.5, 0.27), "uniform, one-shot": (0.5, 0.27)}
    runs = [
        {**record, "arm": arm, "budget": macs, "macs": macs, "key": f"{arm}/{macs}"}
        for arm, budgets in arms.items()
        for macs in budgets
    ]
    (tmp_path / "starts.json").write_text(json.dumps({"runs": runs}))
    starts_report.render(tmp_path)
    assert not list(tmp_path.glob("*front*")), "nothing was timed"
    times = {run["key"]: {"share": [run["macs"]] * 3} for run in runs}
    (tmp_path / "starts-time.json").write_text(json.dumps(times))
    starts_report.render(tmp_path)
    (figure,) = tmp_path.glob("*front*")
    assert figure.name in (tmp_path / "README.md").read_text()
    by_budget = {macs: {} for macs in arms["utility"]}
    for run in runs:
        by_budget[run["budget"]][run["arm"]] = [{**run, "time": run["macs"]}]
    assert list(starts_report.fronts(by_budget)) == ["utility"]
