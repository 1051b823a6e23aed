"""results/appendix.md and its plots, from results/*.json: nothing in it is written by hand."""

import json
import statistics
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot, ticker
from tables import PUBLISHED, RECIPES, SMALL, TABLES, Table

Record = dict[str, Any]
Group = dict[str, list[Record]]  # by arm, the runs of all seeds

HEADS = ("arm (seeds)", "accuracy, %", "against dense", "macs", "params")
HEADS += ("macs of the training", "its time", "peak memory")

PREAMBLE = (
    "Written by `python tools/paper/reproduce.py TABLE --data FILE --recipe RECIPE`. Accuracy: "
    "share of the 10,000 test images that is right after the last epoch, mean and standard "
    "deviation over the seeds; nothing was chosen by it. Macs, params and the macs of the "
    "training (forward ones of all steps) are shares of the dense network's. Time is that of "
    "all training steps, peak memory what training takes beyond the network; both are shares of "
    "the dense run's, and times are left out where other work took turns with them. Curves show "
    "what would be exported then: as long as the budget falls, a network that makes the rest of "
    "its fall at once."
)


def render(results: Path) -> None:
    """Writes appendix.md and the plots beside the JSON files."""
    parts = ["# Appendix: small and older tables", "", PREAMBLE, ""]
    for name, table in TABLES.items():
        path = results / f"{name}.json"
        if path.exists():
            parts += [f"## {table.title}", ""]
            parts += _sections(name, table, json.loads(path.read_text())["runs"], results)
    (results / "appendix.md").write_text("\n".join(parts).rstrip() + "\n")


def _sections(name: str, table: Table, runs: list[Record], results: Path) -> list[str]:
    lines = []
    by_case: dict[tuple[str, str], Group] = defaultdict(lambda: defaultdict(list))
    for run in runs:
        by_case[run["recipe"], run["network"]][run["arm"]].append(run)
    for (recipe, network), group in sorted(by_case.items()):
        lines += [f"### {network}, recipe `{recipe}`", "", _conditions(recipe, group), ""]
        lines += ["| " + " | ".join(HEADS) + " |", "| --- |" + " ---: |" * (len(HEADS) - 1)]
        dense = group.get("dense", [])
        for arm in table.arms:
            if arm.name in group:
                lines.append(_row(arm.name, group[arm.name], dense))
        lines.append("")
        for title in table.plots:
            file = f"{name}-{recipe}-{network}-{title.replace(' ', '-')}.png"
            if PLOTS[title](group, network, results / file):
                lines.append(f"![{title}]({file})")
        lines.append("")
    return lines


def _conditions(recipe: str, group: Group) -> str:
    every = [run for runs in group.values() for run in runs]
    images = RECIPES[recipe].images
    return (
        f"{images or 50_000:,} images, {_range(run['epochs'] for run in every)} epochs; "
        f"{', '.join(sorted({run['device'] for run in every}))}, "
        f"{_range(run['threads'] for run in every)} thread(s), "
        f"{_range(run['jobs'] for run in every)} training(s) at a time; torch {_versions(group)}."
    )


def _versions(group: Group) -> str:
    """The versions of torch, and with which of them the arms were trained where they differ."""
    arms: dict[str, list[str]] = defaultdict(list)
    for arm, runs in group.items():
        arms[", ".join(sorted({run["torch"] for run in runs}))].append(arm)
    usual, *others = sorted(arms, key=lambda version: -len(arms[version]))
    return usual + "".join(f"; {version}: {' / '.join(arms[version])}" for version in others)


def _range(values: Any) -> str:
    known = sorted(values)
    low, high = known[0], known[-1]
    return str(low) if low == high else f"{low} to {high}"


def _row(arm: str, runs: list[Record], dense: list[Record]) -> str:
    """One line of a table; comparisons are with the dense runs of the same seeds."""
    twins = {run["seed"]: run for run in dense}
    pairs = [(run, twins[run["seed"]]) for run in runs if run["seed"] in twins]

    def mean(of: Callable[[Record], float]) -> float:
        return statistics.mean(map(of, runs))

    def ratio(key: str) -> str:
        alone = [pair for pair in pairs if key != "seconds" or all(r["jobs"] == 1 for r in pair)]
        known = [a[key] / b[key] for a, b in alone if key in a and key in b]
        return f"{statistics.mean(known):.2f}" if known else ""

    accuracy = f"{100 * mean(lambda run: run['accuracy']):.2f}"
    if len(runs) > 1:
        accuracy += f" ± {100 * statistics.stdev(run['accuracy'] for run in runs):.2f}"
    gain = [100 * (a["accuracy"] - b["accuracy"]) for a, b in pairs]
    cells = [
        f"{arm} ({len(runs)})",
        accuracy,
        f"{statistics.mean(gain):+.2f}" if gain and arm != "dense" else "",
        *(f"{mean(lambda run, key=key: run[key]):.3f}" for key in ("macs", "params", "run_macs")),
        ratio("seconds"),
        ratio("training_peak_mb"),
    ]
    return "| " + " | ".join(cells) + " |"


def _accuracy_by_macs(group: Group, network: str, path: Path) -> bool:
    """Mean accuracy of each arm at its macs, and what papers publish for the network."""
    if len(group) < 2:
        return False
    figure, axes = _diagram()
    best_first = sorted(group.items(), key=lambda item: -_mean(item[1], "accuracy"))
    for (arm, runs), color in zip(best_first, _colors(len(group)), strict=True):
        axes.errorbar(
            _mean(runs, "macs"),
            100 * _mean(runs, "accuracy"),
            100 * statistics.pstdev(run["accuracy"] for run in runs),
            fmt="o",
            color="black" if arm == "dense" else color,
            markersize=5,
            elinewidth=1,
            label=f"{100 * _mean(runs, 'accuracy'):.1f}  {arm}",
        )
    short = any(run["recipe"] in SMALL for runs in group.values() for run in runs)
    for source, macs, accuracy in () if short else PUBLISHED.get(network, ()):
        axes.plot(macs, accuracy, "k*")
        axes.annotate(source, (macs, accuracy), (4, 4), textcoords="offset points", fontsize=7)
    axes.set(xlabel="macs, share of dense", ylabel="test accuracy, %", title=network)
    axes.set_xlim(0, 1.05)
    return _save(figure, axes, path)


def _accuracy_by_training(group: Group, network: str, path: Path) -> bool:
    """The accuracy after each epoch against the macs that were spent until then, first seed."""
    figure, axes = _diagram()
    for (arm, runs), color in zip(group.items(), _colors(len(group)), strict=True):
        curve = min(runs, key=lambda run: run["seed"])["curve"]
        axes.plot(
            [epoch["run_macs"] for epoch in curve],
            [100 * epoch["accuracy"] for epoch in curve],
            label=arm,
            **_line(arm, color),
        )
    axes.set(xlabel="macs of the training so far, share of dense", ylabel="test accuracy, %")
    axes.set_title(network)
    return _save(figure, axes, path)


def _watched(group: Group) -> list[tuple[str, Record]]:
    """The first seed of each gated arm."""
    firsts = [(arm, min(runs, key=lambda run: run["seed"])) for arm, runs in group.items()]
    return [(arm, run) for arm, run in firsts if run.get("churn")]


def _churn(group: Group, network: str, path: Path) -> bool:
    """Share of the slots that change hands in a step, epoch by epoch."""
    if not (watched := _watched(group)):
        return False
    figure, axes = _diagram()
    for (arm, run), color in zip(watched, _colors(len(watched)), strict=True):
        churn = [100 * share for share in run["churn"]]
        axes.plot(range(1, len(churn) + 1), churn, label=arm, **_line(arm, color))
    axes.set(xlabel="epoch", ylabel="slots that change in a step, %", title=network)
    axes.set_yscale("symlog", linthresh=0.1)
    axes.set_ylim(bottom=0)
    axes.xaxis.set_major_locator(ticker.MaxNLocator(integer=True))
    return _save(figure, axes, path)


def _widths(group: Group, network: str, path: Path) -> bool:
    """Each group's width as a share of its size, over the epochs, of the arms whose widths vary.

    Arms of the same widths share a picture.
    """
    arms: dict[tuple[tuple[float, ...], ...], list[str]] = {}
    for arm, run in _watched(group):
        widths = tuple(_shares(widths, run["sizes"]) for widths in run["widths_by_epoch"])
        if len(set(widths)) > 2:
            arms.setdefault(widths, []).append(arm)
    return _maps(
        [("\n".join(names), widths) for widths, names in arms.items()],
        "channel group",
        f"{network}: width, share of the group",
        path,
    )


def _scores(group: Group, network: str, path: Path) -> bool:
    """What the policies hold of each channel over the epochs; of its own group the largest is 1."""
    rows = []
    for arm, run in _watched(group):
        scaled = [_by_group(scores, run["sizes"]) for scores in run.get("scores", ())]
        if scaled and scaled[0] != scaled[-1]:  # the scores of some policies stay
            rows.append((arm, scaled))
    return _maps(rows, "channel", f"{network}: score, share of the group's largest", path)


def _shares(widths: Sequence[int], sizes: Sequence[int]) -> tuple[float, ...]:
    return tuple(width / size for width, size in zip(widths, sizes, strict=True))


def _by_group(scores: Sequence[float], sizes: Sequence[int]) -> list[float]:
    """Shares of the largest score of each group; what was never observed is below 0 and stays 0."""
    scaled, begin = [], 0
    for size in sizes:
        own = [max(score, 0.0) for score in scores[begin : begin + size]]
        most = max(own) or 1.0
        scaled += [score / most for score in own]
        begin += size
    return scaled


def _maps(
    rows: Sequence[tuple[str, Sequence[Sequence[float]]]], what: str, title: str, path: Path
) -> bool:
    """For each arm a picture: epochs to the right, `what` downwards."""
    if not rows:
        return False
    columns = min(len(rows), 4)
    lines = -(-len(rows) // columns)
    figure, axes = pyplot.subplots(
        *(lines, columns), figsize=(3 * columns, 3 * lines), squeeze=False, layout="constrained"
    )
    for place in axes.flat[len(rows) :]:
        place.axis("off")
    for place, (arm, values) in zip(axes.flat, rows, strict=False):
        image = place.imshow(
            list(map(list, zip(*values, strict=True))),
            aspect="auto",
            interpolation="nearest",
            extent=(0.5, len(values) + 0.5, len(values[0]) - 0.5, -0.5),
            vmin=0,
            vmax=1,
            cmap="magma",
        )
        place.set(xlabel="epoch", ylabel=what)
        place.set_title(arm, fontsize=8)
        for axis in (place.xaxis, place.yaxis):
            axis.set_major_locator(ticker.MaxNLocator(6, integer=True))
    figure.colorbar(image, ax=axes)
    figure.suptitle(title)
    return _save(figure, None, path)


def _mean(runs: Sequence[Record], key: str) -> float:
    return statistics.mean(run[key] for run in runs)


def _diagram() -> tuple[Any, Any]:
    figure, axes = pyplot.subplots(figsize=(6, 4))
    axes.grid(color="0.9", linewidth=0.6)
    axes.set_axisbelow(True)
    return figure, axes


def _colors(count: int) -> Any:
    """Colours that are far apart, none of them too pale for a line."""
    return pyplot.get_cmap("turbo")([(i + 0.5) / count for i in range(count)])


def _line(arm: str, color: Any) -> dict[str, Any]:
    """The dense network and the default stand out; whatever has the budget at once is dashed."""
    bold = {"dense": "black", "utility, cubic": "tab:orange"}
    if arm.startswith("balance"):
        bold[arm] = "tab:red"
    return {
        "color": bold.get(arm, color),
        "linewidth": 2.2 if arm in bold else 1.1,
        "linestyle": "--" if "constant" in arm or "narrow" in arm else "-",
        "zorder": 3 if arm in bold else 2,
    }


def _save(figure: Any, axes: Any, path: Path) -> bool:
    if axes is not None:
        axes.legend(fontsize=7, loc="upper left", bbox_to_anchor=(1, 1))
    figure.savefig(path, dpi=100, bbox_inches="tight")
    pyplot.close(figure)
    return True


PLOTS: dict[str, Callable[[Group, str, Path], bool]] = {
    "accuracy by macs": _accuracy_by_macs,
    "accuracy by macs of the training": _accuracy_by_training,
    "widths": _widths,
    "churn": _churn,
    "scores": _scores,
}
