"""results/README.md and its figures, from results/starts.json: nothing in it is written by hand.

python tools/paper/starts_report.py
"""

import json
import statistics
from collections import defaultdict
from pathlib import Path
from typing import Any

import _paths
import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot

LEAST_BUDGETS = 3  # of a line that shows accuracy by time
Record = dict[str, Any]
Case = tuple[str, float, float]  # start, share of the macs, dense epochs

COLOURS = {  # one for a method, in all figures
    "dense": "black",
    "utility": "tab:orange",
    "balance": "tab:red",
    "cucb": "tab:purple",
    "magnitude": "tab:brown",
    "fixed": "tab:olive",
    "uniform": "tab:gray",
    "narrow": "tab:blue",
    "Torch-Pruning": "tab:green",
}
PREAMBLE = """# Results

Written by `python tools/paper/starts_report.py`. What it means is in
[docs/results.md](../docs/results.md); older and smaller tables are in [appendix.md](appendix.md).

A *dense epoch* is the macs of the dense network's forward and backward pass over all training
images. *Spent* counts everything after the start in this unit: steps, scoring, search, repair and
the teacher's forward passes. *Time* is that of the compact network in ONNX Runtime as a share of
the dense one's, hot, one image, one thread (`starts_time.py`). 45,000 of CIFAR-10's training images
(as JPEG of quality 75) are trained on. Held out are the other 5,000, on which all choices were
made; the 10,000 test images were looked at once for each training. SGD with momentum 0.9, weight
decay 5e-4, batches of 128, a cosine to 0, NHWC and, where nothing else is said, bfloat16 on one
thread of a CPU. Widths are not rounded.

There are three starts. [resnet20](starts/resnet20.safetensors) was trained for 20 epochs: 12 of a
cosine planned for 30, from 0.2, and 8 of one from 0.15 to 0. It has 86.54 % held out and 85.38 % on
the test images. [resnet20-long](starts/resnet20-long.safetensors) went on from there for 26 epochs,
from 0.1 to 0: 87.88 % and 87.67 %, and 93.6 % of the augmented images that it is trained on.
[vgg6](starts/vgg6.safetensors), six convolutions of 32, 32, 64, 64, 128 and 128 channels, was
trained for 20 epochs from 0.1: 85.38 % and 84.26 %. `starts.py queue --start FILE --plan PLAN`
repeats an arm.
Arms that are "mended" are refitted; those with "norms measured anew"
had their batch norms measured before and after that, which the tool no longer does. Of the runs of
one dense epoch, those two kinds and "utility, uniform widths, one-shot, mended" were scored on 50
batches, the other one-shot runs of `utility` on 20; `spent` counts it. The widths of `utility` and
`balance` are allocated as `fxprune.budget.widths` says, where what a group loses grows as one over
the share of its scores that it keeps. Before that, a group was worth the sum of what it keeps (arms
that say "plain sums"), and then the logarithm of its share (arms that say "logarithm").
"""


def render(results: Path) -> None:
    """Writes README.md and a figure for each case."""
    records = json.loads((results / "starts.json").read_text())["runs"]
    timed = results / "starts-time.json"
    times = json.loads(timed.read_text()) if timed.exists() else {}
    for record in records:
        if record["key"] in times:
            record["time"] = times[record["key"]]["share"][1]
        elif record["macs"] == 1:
            record["time"] = 1.0
    cases: dict[Case, list[Record]] = defaultdict(list)
    for record in records:
        cases[record["start"], record["budget"], record["dense_epochs"]].append(record)
    parts = [PREAMBLE]
    for case in sorted(cases, key=lambda case: (case[0], -case[1], case[2])):
        arms = _by_arm(cases[case])
        parts += [_table(case, arms), _figure(case, arms, results)]
    for start, epochs in sorted({(start, epochs) for start, _, epochs in cases}):
        by_budget = {b: _by_arm(cases[s, b, e]) for s, b, e in cases if (s, e) == (start, epochs)}
        if lines := fronts(by_budget):
            parts.append(_front_figure(start, epochs, lines, results))
    versions = {f"fxprune {r['fxprune']}, torch {r['torch']}" for r in records}
    parts.append("Trained with " + "; ".join(sorted(versions)) + ".\n")
    (results / "README.md").write_text("\n".join(parts))


def _by_arm(runs: list[Record]) -> dict[str, list[Record]]:
    """Sort runs by arm, and by precision where it is not the same for all."""
    mixed = len({_is_float32(run) for run in runs}) > 1
    arms: dict[str, list[Record]] = defaultdict(list)
    for run in runs:
        arms[run["arm"] + (", in float32" if mixed and _is_float32(run) else "")].append(run)
    return arms


def _is_float32(run: Record) -> bool:
    return run.get("precision") == "float32"


def best(runs: list[Record]) -> list[Record]:
    """The runs at the learning rate that is best on the held-out images."""
    rates: dict[float, list[Record]] = defaultdict(list)
    for run in runs:
        rates[run["lr"]].append(run)
    return max(rates.values(), key=lambda some: statistics.mean(r["held_out"] for r in some))


def title(case: Case, arms: dict[str, list[Record]]) -> str:
    """Of a table and its figure."""
    start, macs, epochs = case
    length = f"{epochs:g} dense epoch{'' if epochs == 1 else 's'}" if epochs else "no training"
    origin = f"new weights of {start}" if all("from scratch" in a for a in arms) else start
    wide = ", in float32" if all(_is_float32(run) for some in arms.values() for run in some) else ""
    return f"{macs:g} of the macs, {length} from {origin}{wide}, CIFAR-10"


def _table(case: Case, arms: dict[str, list[Record]]) -> str:
    is_timed = all("time" in run for some in arms.values() for run in best(some))
    shares = ("macs", "params", "time") if is_timed else ("macs", "params")
    heads = ["arm", "test, %", "held out, %", "lr (of)", "seeds", *shares, "passes", "spent"]
    lines = [f"## {title(case, arms)}", ""]
    lines += ["| " + " | ".join(heads) + " |", "| --- |" + " ---: |" * (len(heads) - 1)]
    for arm in sorted(arms, key=lambda arm: -_mean(best(arms[arm]), "test")):
        runs = best(arms[arm])
        tried = len({run["lr"] for run in arms[arm]})
        cells = [
            arm,
            *(_percent(runs, key) for key in ("test", "held_out")),
            f"{runs[0]['lr']:g} ({tried})",
            str(len(runs)),
            *(f"{_mean(runs, key):.3f}" for key in shares),
            f"{_mean(runs, 'epochs'):.1f}",
            f"{_mean(runs, 'spent'):.2f}",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _percent(runs: list[Record], key: str) -> str:
    text = f"{100 * _mean(runs, key):.2f}"
    if len(runs) > 1:
        text += f" ± {100 * statistics.stdev(run[key] for run in runs):.2f}"
    return text


def _mean(runs: list[Record], key: str) -> float:
    return statistics.mean(run[key] for run in runs)


def _figure(case: Case, arms: dict[str, list[Record]], results: Path) -> str:
    """A line for each arm, a dot for each seed."""
    order = sorted(arms, key=lambda arm: _mean(best(arms[arm]), "test"))
    figure, axes = pyplot.subplots(figsize=(7, 0.6 + 0.32 * len(order)), layout="constrained")
    for place, arm in enumerate(order):
        values = [100 * run["test"] for run in best(arms[arm])]
        axes.plot(values, [place] * len(values), "o", color=colour(arm))
        axes.plot([statistics.mean(values)], [place], "|", markersize=14, color=colour(arm))
    axes.set_yticks(range(len(order)), order, fontsize=8)
    axes.set_xlabel("test accuracy, %; a dot for each seed")
    figure.suptitle(title(case, arms), fontsize=9)
    axes.grid(color="0.9", axis="x")
    start, macs, epochs = case
    name = f"starts-{start}-macs-{macs:g}-epochs-{epochs:g}.png"
    figure.savefig(results / name, dpi=120)
    pyplot.close(figure)
    return f"![{title(case, arms)}]({name})\n\n`python tools/paper/starts_report.py`\n"


def fronts(by_budget: dict[float, dict[str, list[Record]]]) -> dict[str, list[list[Record]]]:
    """The runs at each budget of the arms that were timed at `LEAST_BUDGETS` or more."""
    points: dict[str, list[list[Record]]] = defaultdict(list)
    for _, arms in sorted(by_budget.items()):
        for arm, runs in arms.items():
            if all("time" in run and run["macs"] < 1 for run in best(runs)):
                points[arm].append(best(runs))
    return {arm: some for arm, some in sorted(points.items()) if len(some) >= LEAST_BUDGETS}


def _front_figure(
    start: str, epochs: float, lines: dict[str, list[list[Record]]], results: Path
) -> str:
    """Accuracy by time: a dot for each budget, a band over the seeds."""
    heading = f"Accuracy by time, {epochs:g} dense epochs from {start}, CIFAR-10"
    figure, axes = pyplot.subplots(figsize=(7, 4.5), layout="constrained")
    for arm, points in lines.items():
        times = [_mean(runs, "time") for runs in points]
        tests = [[100 * run["test"] for run in runs] for runs in points]
        means = [statistics.mean(some) for some in tests]
        band = [min(some) for some in tests], [max(some) for some in tests]
        axes.plot(times, means, "o-", color=colour(arm), label=arm)
        axes.fill_between(times, *band, color=colour(arm), alpha=0.2, linewidth=0)
    axes.set_xlabel("time in ONNX Runtime, share of the dense network's")
    axes.set_ylabel("test accuracy, %")
    axes.grid(color="0.9")
    axes.legend()
    figure.suptitle(heading, fontsize=9)
    name = f"starts-{start}-epochs-{epochs:g}-front.png"
    figure.savefig(results / name, dpi=120)
    pyplot.close(figure)
    told = "A dot for each budget; a band from the lowest to the highest seed."
    return f"## {heading}\n\n![{heading}]({name})\n\n{told} `python tools/paper/starts_report.py`\n"


def colour(arm: str) -> str:
    """Of an arm's method."""
    return next(colour for method, colour in COLOURS.items() if arm.startswith(method))


if __name__ == "__main__":
    render(_paths.ROOT / "results")
