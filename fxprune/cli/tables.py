"""Tables that show the records of what the commands found and did."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.console import Group, RenderableType
from rich.text import Text

from fxprune.cli import console
from fxprune.cli.records import STEP, Record
from fxprune.trainer.loop import EpochMetrics

SHORT = 0.1
"""By how much the share of macs may exceed the square of the share of channels, as it does in
depthwise layers, before `fxprune instrument` names what is pinned."""
HOLDS = 0.01
"""The share of the dense macs from which a pin is named there."""


def show_graph(record: Record) -> RenderableType:
    """The tables of `fxprune inspect`."""
    pinned_channels = sum(pinned["channels"] for pinned in record["pinned"])
    shapes = ", ".join("x".join(map(str, shape[1:])) for shape in record["inputs"])
    head = Text.assemble(
        (record["spec"], "bold"),
        f"   input {shapes}   traced {'yes' if record['traced'] else 'no'}\n",
        f"params {record['params']:,}   macs {record['macs']:,} an example\n",
        f"{record['channels']:,} channels in {len(record['groups'])} groups, ",
        f"{pinned_channels:,} pinned",
    )
    groups = console.table(
        ("group", "channels", "members", "macs", "made by", "consumed by"),
        [
            (
                group["name"],
                f"{group['size']:,}",
                str(len(group["members"])),
                console.share(group["macs_share"]),
                _names(group["producers"]),
                _names(group["consumers"]),
            )
            for group in record["groups"]
        ],
        text=("group", "made by", "consumed by"),
    )
    parts: list[RenderableType] = [head, Text(), console.heading("Channel groups"), groups]
    if record["pinned"]:
        parts += [console.heading("Pinned channels"), _pinned(record["pinned"])]
    if record["mixing"]:
        parts.append(console.heading("A removed channel changes the statistics of the others at"))
        parts += [Text(f"  {_short(line)}") for line in record["mixing"]]
    return Group(*parts)


def _pinned(rows: list[Record]) -> RenderableType:
    return console.table(
        ("channels", "macs", "reason", "at", "parameters"),
        [
            (
                f"{pinned['channels']:,}",
                console.share(pinned["macs_share"]),
                pinned["reason"],
                _short(pinned["where"]) or pinned["node"],
                _names(pinned["parameters"]),
            )
            for pinned in rows
        ],
        text=("reason", "at", "parameters"),
    )


def show_widths(record: Record) -> RenderableType:
    """The tables of `fxprune instrument`."""
    groups = console.table(
        ("group", "dense", "gated", "kept"),
        [
            (
                group["name"],
                f"{group['dense']:,}",
                f"{group['gated']:,}",
                console.share(group["gated"] / group["dense"]),
            )
            for group in record["groups"]
        ],
        text=("group",),
    )
    dense, gated = record["dense"], record["gated"]
    totals = console.table(
        ("", "dense", "gated", "share"),
        [
            _compared("params", dense["params"], gated["params"]),
            _compared("macs, forward, an example", dense["macs"], gated["macs"]),
            _compared(
                "macs, training step, an example", STEP * dense["macs"], STEP * gated["macs"]
            ),
        ],
        text=("",),
    )
    budget = record["budget"].partition(",limits=")[0]  # the groups show the limits
    head = f"{record['run'] or 'dry run'}   policy {record['policy']}   budget {budget}"
    parts: list[RenderableType] = [console.heading(head), groups, totals]
    if "latency" in record:
        parts.append(Text(_latency(record["latency"])))
    channels = [sum(group[kind] for group in record["groups"]) for kind in ("gated", "dense")]
    holding = [pinned for pinned in record["pinned"] if pinned["macs_share"] >= HOLDS]
    if gated["macs"] / max(dense["macs"], 1) > (channels[0] / channels[1]) ** 2 + SHORT and holding:
        parts += [console.heading("Pinned channels that keep the macs up"), _pinned(holding)]
    return Group(*parts)


def _latency(record: Record) -> str:
    close = "" if record["met"] else "; of the widths tried, none are closer"
    return (
        f"ONNX Runtime, one example, measured at {len(record['measured'])} choices of widths: "
        f"dense {console.milliseconds(record['dense'])}, "
        f"these {console.milliseconds(record['chosen'])} ({console.share(record['share'])}{close})"
    )


def epoch_line(metrics: EpochMetrics) -> str:
    """How one epoch ended, in a line."""
    return (
        f"epoch {metrics.epoch:3}   lr {metrics.lr:.4f}   "
        f"train loss {metrics.train_loss:.4f}, right {console.share(metrics.train_accuracy, 2)}   "
        f"val loss {_loss(metrics.val_loss)}, right {console.share(metrics.val_accuracy, 2)}   "
        f"{console.milliseconds(metrics.step_seconds)} a step, {metrics.seconds:.1f} s"
    )


def _loss(value: float | None) -> str:
    return "not finite" if value is None else f"{value:.4f}"


def show_training(record: Record) -> RenderableType:
    """The table of `fxprune train`."""
    last, cost = record["history"][-1], record["macs"]
    rows = [
        ("epochs", f"{record['epochs']} of {record['of_epochs']}"),
        ("right on the validation split", console.share(last["val_accuracy"], 2)),
        ("loss on the validation split", _loss(last["val_loss"])),
        ("macs, of the dense network's", console.share(cost["compact"] / max(cost["dense"], 1))),
        ("forward macs of the run", _run_macs(record["run_macs"])),
        ("a training step", console.milliseconds(record["step_seconds"])),
        ("in all", f"{record['seconds']:.0f} s"),
    ]
    head = console.heading(f"{record['run']}   {record['data']}")
    return Group(head, console.table(("", " "), rows, text=("",)))


def remarks_on_training(record: Record) -> list[str]:
    """What a user should know of a training beside its figures."""
    seconds = record["step_seconds_of"]
    if None in seconds.values() or seconds["chosen"] < seconds["all"]:
        return []
    return [
        f"a step with the chosen channels took {console.milliseconds(seconds['chosen'])}, one with "
        f"all channels {console.milliseconds(seconds['all'])}: pruning does not make this training "
        "faster here; larger batches may help (README, What a step costs)"
    ]


def _run_macs(macs: Record) -> str:
    dense = max(macs["dense"] or 0, 1)
    if macs["spent"] is None:
        return "–"
    planned = (
        "" if macs["planned"] is None else f", planned {console.share(macs['planned'] / dense)}"
    )
    return f"{console.share(macs['spent'] / dense)} of dense{planned}"


def show_export(record: Record) -> RenderableType:
    """The tables of `fxprune export`."""
    parts: list[RenderableType] = [console.heading(record["run"])]
    onnx, pt2 = record.get("onnx"), record.get("pt2")
    if onnx is None:
        rows = [_compared(name, **record[name]) for name in ("params", "macs")]
        parts.append(console.table(COLUMNS, rows, text=("",)))
    else:
        dense = onnx["dense"]
        rows = [
            _row(name, dense and dense[key], onnx["compact"][key], shown)
            for name, key, shown in (
                ("params", "params", _exact),
                ("macs of an example", "macs", _exact),
                ("ONNX file", "bytes", console.size),
                ("ONNX Runtime, batch 1", "latency", console.milliseconds),
            )
        ]
        parts.append(console.table(COLUMNS, rows, text=("",)))
        parts.append(Text(_proof(onnx)))
    parts += [
        Text.assemble("wrote ", (written["path"], "bold"), f"   {console.size(written['bytes'])}")
        for written in (onnx, pt2)
        if written
    ]
    return Group(*parts)


def show_demo(record: Record) -> RenderableType:
    """The table of `fxprune demo`."""
    onnx, accuracy = record["onnx"], record["accuracy"]
    points = 100 * (accuracy["compact"] - accuracy["dense"])
    both = {key: {**record[key]} for key in ("step_seconds", "train_seconds")}
    figures = {key: {side: onnx[side][key] for side in SIDES} for key in onnx["compact"]}
    rows = [
        (
            "right on held-out digits",
            *(console.share(accuracy[side], 2) for side in SIDES),
            f"{points:+.2f} points",
        ),
        _row("params", **figures["params"], shown=_exact),
        _row("macs of an example", **figures["macs"], shown=_exact),
        _row("a training step", **both["step_seconds"], shown=console.milliseconds),
        _row("all of the training", **both["train_seconds"], shown=lambda s: f"{s:.1f} s"),
        _row("ONNX file", **figures["bytes"], shown=console.size),
        _row("ONNX Runtime, batch 1", **figures["latency"], shown=console.milliseconds),
    ]
    return Group(
        console.heading("A residual CNN on handwritten digits"),
        console.table(COLUMNS, rows, text=("",)),
        Text(_proof(onnx)),
        *[Text.assemble("wrote ", (path, "bold")) for path in record["wrote"]],
    )


def _proof(onnx: Record) -> str:
    batches = ", ".join(map(str, onnx["batches"]))
    real = f" and {onnx['real_examples']} real examples" if onnx["real_examples"] else ""
    return (
        f"ONNX Runtime against {onnx['reference']}, batches of {batches}, "
        f"fresh random inputs{real}:\n"
        f"largest difference {onnx['max_abs_error']:.1e}, {onnx['max_rel_error']:.1e} of the "
        f"largest output (at most {onnx['tolerance']:.0e} is let through)"
    )


def remarks(record: Record) -> list[str]:
    """What a user should know of an export beside its figures."""
    lines = []
    if record["steps"] == 0:
        lines.append("the network was never trained: the file holds its first selection")
    onnx = record.get("onnx")
    if onnx and onnx["dense"] and onnx["compact"]["latency"] > 0.95 * onnx["dense"]["latency"]:
        lines.append(
            "the compact file is not faster than the dense one here; "
            "a smaller budget, or --round-to 16, may help"
        )
    return lines


SIDES = ("dense", "compact")
COLUMNS = ("", "dense", "compact", "share")


def _row(
    name: str, dense: float | None, compact: float, shown: Callable[[Any], str]
) -> tuple[str, str, str, str]:
    if dense is None:
        return name, "–", shown(compact), "–"
    return name, shown(dense), shown(compact), console.share(compact / (dense or 1))


def _exact(value: float) -> str:
    return f"{value:,}"


def _compared(name: str, dense: int, compact: int) -> tuple[str, str, str, str]:
    return name, f"{dense:,}", f"{compact:,}", console.share(compact / max(dense, 1))


def _short(where: str) -> str:
    """A source line without the folders that are the same for all."""
    return where.replace(f"{Path.cwd()}/", "").rpartition("site-packages/")[2]


def _names(parameters: list[str]) -> str:
    """Parameters by the modules that hold them, without repeats."""
    short = [name.removesuffix(".weight") for name in parameters]
    return ", ".join(dict.fromkeys(short)) or "–"
