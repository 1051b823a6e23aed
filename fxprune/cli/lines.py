"""Lines that say what a command found or how far it is, beside the table of its result."""

from collections.abc import Mapping, Sequence

from fxprune.cli import console
from fxprune.cli.records import Record
from fxprune.data import DataSet
from fxprune.data.own import LoaderSplit
from fxprune.errors import shell_word
from fxprune.runs.history import EpochMetrics
from fxprune.trainer.options import TrainOptions
from fxprune.trainer.prune import Hits, Trial


def promise(asked: float, quotient: Record) -> str:
    """Format what a latency budget asked for beside what is: "asked 50 %, is 52 % (50–54)"."""
    low, high = (f"{100 * quotient[end]:.0f}" for end in ("low", "high"))
    found = console.share(quotient["median"], 0)
    return f"asked {console.share(asked, 0)} of the dense network's time, is {found} ({low}–{high})"


def measured_where(timing: Record) -> str:
    """Say by what a latency was measured."""
    if timing["command"]:
        return f"one example, by {timing['command']}"
    threads = f"{timing['threads']} thread" + ("" if timing["threads"] == 1 else "s")
    return f"ONNX Runtime, one example, {threads}"


def remarks_on_data(data: DataSet, options: TrainOptions) -> list[str]:
    """List what a user should know of the data before the training."""
    if options.batch_size * 5 <= len(data.train) or isinstance(data.train, LoaderSplit):
        return []
    steps = max(len(data.train) // options.batch_size, 1)
    return [
        f"a batch of {options.batch_size} is more than a fifth of the {len(data.train):,} training "
        f"images: an epoch has {steps} step{'s' if steps > 1 else ''}; a smaller "
        "--batch-size makes more of them"
    ]


def data_line(data: DataSet) -> str:
    """Describe what the network sees of the data, in a line."""
    looks = ", ".join(f"{name} {value}" for name, value in data.preprocessing.items())
    counts = f"{data.name}: {len(data.train):,} and {len(data.val):,} examples"
    return f"{counts}; {looks}" if looks else counts


def latency_line(record: Record) -> str:
    """Describe what a latency budget came to before the training, in a line."""
    cached = f", from the cache of {record['date']}" if record["cached"] else ""
    return f"{promise(record['asked'], record[record['binds']])}, {measured_where(record)}{cached}"


def dense_lines(dense: Hits) -> list[str]:
    """Describe the dense network's accuracy, before anything is changed."""
    count = len(dense.labels)
    lines = [
        f"the dense network is right on {console.share(dense.accuracy, 2)} of {count:,} "
        "validation images"
    ]
    if dense.near_chance:
        lines.append(
            f"warning: that is near chance ({console.share(dense.chance, 1)} are of the most "
            "frequent class): look at --weights, at the order of the classes, and at how the "
            "images were prepared when it was trained (--mean --std --resize --crop --transform)"
        )
    return lines


def trial_line(trial: Trial) -> str:
    """Describe a short run of a search, in a line."""
    return (
        f"macs={trial.macs:.3g}: {trial.drop.points:+.2f} points lost on the images held out "
        f"({trial.drop.low:+.2f} to {trial.drop.high:+.2f})"
    )


def epoch_line(metrics: EpochMetrics, fall_ends: int | None = None) -> str:
    """Describe how one epoch ended, in a line.

    Args:
        metrics: what it showed.
        fall_ends: the epoch in which the network comes down to its budget, while it has not.
    """
    early = (
        ""
        if fall_ends is None
        else f": at the final widths, not yet trained; the fall ends in epoch {fall_ends}"
    )
    return (
        f"epoch {metrics.epoch:3}   lr {metrics.lr:.4f}   "
        f"train loss {metrics.train_loss:.4f}{_scored(metrics, 'train')}   "
        f"val loss {format_loss(metrics.val_loss)}{_scored(metrics, 'val')}"
        f"{early}   {console.milliseconds(metrics.step_seconds)} a step, {metrics.seconds:.1f} s"
    )


def live_parts(epochs: Sequence[EpochMetrics]) -> list[str]:
    """Say under the bar where a training stands: the last epoch, and the way there."""
    last, split = epochs[-1], "validation"
    if last.metric is not None:
        what = f"{last.metric} {format_loss(last.val_metric)}"
        values = [metrics.val_metric for metrics in epochs]
    elif last.val_accuracy is not None:
        what = f"right {console.share(last.val_accuracy, 2)}"
        values = [metrics.val_accuracy for metrics in epochs]
    else:
        what, split = f"loss {last.train_loss:.4f}", "training"
        values = [metrics.train_loss for metrics in epochs]
    parts = [
        f"epoch {last.epoch}",
        f"{split}: {what}",
        console.sparkline([value for value in values if value is not None]),
        f"macs {console.big(last.macs)}" if last.macs is not None else "",
        f"{console.milliseconds(last.step_seconds)} a step",
    ]
    return [part for part in parts if part]


def _scored(metrics: EpochMetrics, split: str) -> str:
    """Format the accuracy or the own metric of a split, whichever there is."""
    accuracy = getattr(metrics, f"{split}_accuracy")
    if metrics.metric is not None and split == "val":
        return f", {metrics.metric} {format_loss(metrics.val_metric)}"
    return "" if accuracy is None else f", right {console.share(accuracy, 2)}"


def format_loss(value: float | None) -> str:
    """Format a loss or a metric, which may not be finite."""
    return "not finite" if value is None else f"{value:.4f}"


def remarks_on_training(record: Record) -> list[str]:
    """List what a user should know of a training beside its figures."""
    seconds, early = record["step_seconds_of"], []
    if record["stopped_early"]:
        early = [
            "the run is finished: it stopped early; fxprune train NEW.fxprune --from "
            f"{record['run']} begins another with the network that it exports"
        ]
    if None in seconds.values() or seconds["chosen"] < seconds["all"]:
        return early
    return [
        *early,
        f"a step with the chosen channels took {console.milliseconds(seconds['chosen'])}, one with "
        f"all channels {console.milliseconds(seconds['all'])}: pruning does not make this training "
        "faster here; larger batches may help (docs: What a step costs)",
    ]


def remarks_on_waiting(last: EpochMetrics, steps: int) -> list[str]:
    """Say where an epoch of some length waited for something else than its steps.

    Args:
        last: the run's last epoch.
        steps: that it had.
    """
    stepping = steps * last.step_seconds
    if last.seconds < 10 or stepping > last.seconds / 3:
        return []
    return [
        f"the last epoch took {last.seconds:.0f} s, its steps {stepping:.0f} s of it: the rest was "
        "reading the data and evaluation; more --workers, or smaller images on disk, may help"
    ]


def handed_over(record: Record) -> str:
    """Say of which epoch a run's network is, and whether its weights are averaged."""
    at = "as it stands" if record["epoch"] is None else f"that of epoch {record['epoch']}"
    best = ", the best with the final channels" if record["of_best"] else ""
    return f"{at}{best}{', an average of weights' if record['average'] else ''}"


def _folding(folded: Mapping[str, str], unfolded: Mapping[str, str]) -> str:
    """Say which batch norms are part of the layers before them, and why others stay.

    >>> _folding({"conv1.bn": "conv1.conv"}, {"bn": "it follows x, which is no layer"})
    '1 of 2 batch norms is part of the layer before it; bn stays: it follows x, which is no layer'
    """
    count, whole = len(folded), len(folded) + len(unfolded)
    said = "is part of the layer before it" if count == 1 else "are part of the layers before them"
    few = [f"{name} stays: {why}" for name, why in list(unfolded.items())[:3]]
    more = [f"{len(unfolded) - 3} more stay (--json has all)"] if len(unfolded) > 3 else []
    return "; ".join([f"{count} of {whole} batch norms {said}", *few, *more])


def remarks(record: Record) -> list[str]:
    """List what a user should know of an export beside its figures."""
    lines = []
    if record["steps"] == 0:
        lines.append("the network was never trained: the file holds its first selection")
    if record["stopped_in_epoch"] is not None:
        lines.append(
            f"the training was stopped within epoch {record['stopped_in_epoch']}: nothing says how "
            f"accurate the network is as it stands; "
            f"fxprune train {shell_word(record['run'])} goes on"
        )
    if record["of_best"] or record["average"]:
        lines.append(f"the network is {handed_over(record)}")
    if "folded" in record:
        lines.append(_folding(record["folded"], record["unfolded"]))
    if any(file["kind"] == "int8" for file in record.get("files", ())):
        lines.append(
            "on x64 processors without VNNI (see lscpu), ONNX Runtime clips sums of int8 unless "
            "its session option session.x64quantprecision is 1; the figures here are with it"
        )
    onnx = record.get("onnx")
    timing = onnx and onnx["timing"]
    if timing and not timing["quiet"]:
        lines.append("other programs kept the machine busy: the latency is uncertain")
    elif timing and timing[timing["binds"]]["median"] > 0.95:
        lines.append(
            "the compact file is not faster than the dense one here; "
            "a smaller budget, or --round-to 16, may help"
        )
    return lines
