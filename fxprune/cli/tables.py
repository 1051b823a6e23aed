"""Tables that show the records of what the commands found and did."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.console import Group, RenderableType
from rich.text import Text

from fxprune.cli import console
from fxprune.cli.lines import format_loss, handed_over, measured_where, promise
from fxprune.cli.records import STEP, Record
from fxprune.user_lines import shorten

SHORT = 0.1
"""By how much the share of macs may exceed the square of the share of channels, as it does in
depthwise layers, before `fxprune instrument` names what is pinned."""
HOLDS = 0.01
"""The share of the dense macs from which a pin is named there."""


def show_graph(record: Record) -> RenderableType:
    """Lay out what `fxprune inspect` found."""
    count = len(record["groups"])
    pinned_channels = sum(pinned["channels"] for pinned in record["pinned"])
    batch = record["inputs"][0][:1]
    examples = [shape[1:] if shape[:1] == batch else shape for shape in record["inputs"]]
    shapes = ", ".join("x".join(map(str, shape)) for shape in examples)
    head = Text.assemble(
        (record["spec"], "bold"),
        f"   input {shapes}   traced {'yes' if record['traced'] else 'no'}\n",
        f"params {record['params']:,}   macs {record['macs']:,} an example\n",
        f"{record['channels']:,} channels in {count} group{'s' * (count != 1)}, ",
        f"{pinned_channels:,} pinned",
    )
    if "latency" in record:
        return Group(head, Text(), *_group_latencies(record))
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
        parts += [Text(f"  {shorten(line)}") for line in record["mixing"]]
    return Group(*parts)


def _group_latencies(record: Record) -> list[RenderableType]:
    """Lay out what each group costs in time."""
    latency = record["latency"]
    rows = []
    for group in record["groups"]:
        halved = latency["groups"].get(group["name"])
        share = ("–", "–", "–")
        if halved:
            share = (
                f"{group['size']:,} → {halved['width']:,}",
                console.milliseconds(halved["saved"]),
                f"{100 * halved['share']:.1f} ± {100 * halved['error']:.1f} %",
            )
        rows.append((group["name"], share[0], console.share(group["macs_share"]), *share[1:]))
    where = measured_where(latency) + ("" if latency["command"] else f", {latency['binds']}")
    dense = "" if latency["dense"] is None else console.milliseconds(latency["dense"])
    return [
        console.heading("What half of each group's channels take, the other groups whole"),
        console.table(
            ("group", "channels", "macs", "time saved", "of dense"),
            rows,
            text=("group",),
        ),
        Text(f"{where}: the dense network takes {dense}; ± is half of a 95 % interval"),
    ]


def _pinned(rows: list[Record]) -> RenderableType:
    return console.table(
        ("channels", "macs", "reason", "at", "parameters"),
        [
            (
                f"{pinned['channels']:,}",
                console.share(pinned["macs_share"]),
                pinned["reason"],
                shorten(pinned["where"]) or pinned["node"],
                _names(pinned["parameters"]),
            )
            for pinned in rows
        ],
        text=("reason", "at", "parameters"),
    )


def show_widths(record: Record) -> RenderableType:
    """Lay out what `fxprune instrument` made."""
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
    close = "" if record["met"] else "; of the widths tried, none are nearer below it"
    cached = f", from the cache of {record['date']}" if record["cached"] else ""
    count = len(record["measured"])
    choices = "1 choice" if count == 1 else f"{count} choices"
    lines = [
        f"{promise(record['asked'], record[record['binds']])}{close}",
        f"{measured_where(record)}, measured at {choices} of widths{cached}:",
        *(_times(kind, record) for kind in _kinds(record)),
    ]
    lines += [f"{low} is slower than {high}, measured twice" for low, high in record["slower"]]
    return "\n".join(lines)


def _kinds(timing: Record) -> tuple[str, ...]:
    return ("hot",) if timing["command"] else ("hot", "cold")


def _times(kind: str, timing: Record) -> str:
    times, bound = timing[kind], "" if timing["binds"] != kind else ", what the budget binds"
    means = {"hot": "in a loop", "cold": "after another network"}
    name = f"{kind} ({means[kind]}{bound})" if len(_kinds(timing)) > 1 else "each"
    low, high = (f"{100 * times[end]:.1f}" for end in ("low", "high"))
    return (
        f"  {name}: dense {console.milliseconds(times['dense'])}, "
        f"compact {console.milliseconds(times['compact'])}, "
        f"{console.share(times['median'])} ({low}–{high} in half of the rounds)"
    )


def show_pruned(record: Record) -> RenderableType:
    """Lay out the table before and after of `fxprune prune`."""
    accuracy, onnx = record["accuracy"], record["onnx"]
    figures = {side: onnx[side] or {} for side in SIDES}
    rows = [
        (
            f"right on {record['images']:,} validation images",
            *(console.share(accuracy[side], 2) for side in SIDES),
            f"{100 * (accuracy['compact'] - accuracy['dense']):+.2f} points",
        ),
        *(
            _row(name, figures["dense"].get(key), figures["compact"][key], shown)
            for name, key, shown in (
                ("macs of an example", "macs", _exact),
                ("params", "params", _exact),
                ("ONNX file", "bytes", console.size),
            )
        ),
        *_timed(onnx["timing"]),
    ]
    lines = [_lost(record)]
    if record["asked"] and onnx["timing"]:
        lines.append(promise(record["asked"], onnx["timing"][onnx["timing"]["binds"]]))
    return Group(
        console.heading(f"{record['run']}   {record['budget']}"),
        console.table(("", "before", "after", "share"), rows, text=("",)),
        Text("\n".join([*lines, _proof(onnx)])),
        Text.assemble("wrote ", (onnx["path"], "bold"), f"   {console.size(onnx['bytes'])}"),
    )


def _change(drop: float) -> str:
    return f"{'lost' if drop >= 0 else 'gained'} {abs(drop):.2f} points"


def _lost(record: Record) -> str:
    drop, most = record["drop"], record["max_drop"]
    low, high = drop["low"], drop["high"]
    if drop["points"] < 0:
        low, high = -high, -low
    line = (
        f"{_change(drop['points'])} on the validation images "
        f"(95 % interval {low:.2f} to {high:.2f})"
    )
    if most is None:
        return line
    held_out = record["held_out"]["points"]
    word = "within" if held_out <= most else "more than"
    return (
        f"{line};\n{_change(held_out)} on the training images held out, by which the size was "
        f"chosen: {word} the {most:g} allowed"
    )


def show_training(record: Record) -> RenderableType:
    """Lay out the table of `fxprune train`."""
    last, cost = record["history"][(record["epoch"] or 0) - 1], record["macs"]
    early = ", stopped early" if record["stopped_early"] else ""
    rows = [
        ("epochs", f"{record['epochs']} of {record['of_epochs']}{early}"),
        ("the network", handed_over(record)),
        *_scores(last),
        ("loss on the validation split", format_loss(last["val_loss"])),
        ("macs, of the dense network's", console.share(cost["compact"] / max(cost["dense"], 1))),
        ("forward macs of the run", _run_macs(record["run_macs"])),
        ("a training step", console.milliseconds(record["step_seconds"])),
        ("in all", f"{record['seconds']:.0f} s"),
    ]
    head = console.heading(f"{record['run']}   {record['data']}")
    return Group(head, console.table(("", " "), rows, text=("",)))


def _scores(last: Record) -> list[tuple[str, str]]:
    """List what the last epoch scored on the validation split, by name."""
    if last["metric"] is not None:
        return [(f"{last['metric']} on the validation split", format_loss(last["val_metric"]))]
    names = {"val_accuracy": "right on the validation split", "val_top5": "among the first five"}
    found = {name: last[key] for key, name in names.items() if last[key] is not None}
    return [(name, console.share(value, 2)) for name, value in found.items()]


def _run_macs(macs: Record) -> str:
    dense = max(macs["dense"] or 0, 1)
    if macs["spent"] is None:
        return "–"
    planned = (
        "" if macs["planned"] is None else f", planned {console.share(macs['planned'] / dense)}"
    )
    return f"{console.share(macs['spent'] / dense)} of dense{planned}"


def show_export(record: Record) -> RenderableType:
    """Lay out the tables of `fxprune export`."""
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
            )
        ]
        rows += _timed(onnx["timing"])
        parts.append(console.table(COLUMNS, rows, text=("",)))
        if record.get("asked") and onnx["timing"]:
            timing = onnx["timing"]
            parts.append(Text(promise(record["asked"], timing[timing["binds"]])))
        parts.append(Text(_proof(onnx)))
    if "files" in record:
        parts.append(_files(record))
    whole = [_wrote(written) for written in (onnx, *record.get("files", [])[1:]) if written]
    if plain := record.get("torch"):
        weights = Path(plain["path"]).with_suffix(".safetensors")
        plain = {**plain, "path": f"{plain['path']}, {weights}"}
    for written in filter(None, (pt2, plain)):
        gap = f", largest difference {written['max_rel_error']:.1e} of the largest output"
        whole.append(_wrote(written).append(gap))
    return Group(*parts, *whole)


def _wrote(written: Record) -> Text:
    """Name a file that was written, with its size."""
    return Text.assemble(
        "wrote ", (written["path"], "bold"), f"   {console.size(written['bytes'])}"
    )


def _timed(timing: Record | None) -> list[tuple[str, str, str, str]]:
    """Make the rows of timings; none if nothing was timed."""
    if timing is None:
        return []
    return [
        (
            f"{measured_where(timing)}, {kind}",
            console.milliseconds(timing[kind]["dense"]),
            console.milliseconds(timing[kind]["compact"]),
            console.share(timing[kind]["median"]),
        )
        for kind in _kinds(timing)
    ]


def _files(record: Record) -> RenderableType:
    """Lay out the ONNX files of each precision side by side."""
    rows = [
        (
            file["kind"],
            console.size(file["bytes"]),
            _validated(file),
            f"{file['max_rel_error']:.1e} (at most {file['tolerance']:.0e})",
            f"{file['from_float32']:.1e}",
            console.milliseconds(file["latency"]),
        )
        for file in record["files"]
    ]
    head = ("precision", "size", "validation", "from its reference", "from float32", "latency")
    return console.table(head, rows, text=("precision",))


def _validated(file: Record) -> str:
    if file["metric"] is not None:
        return f"{file['metric']:.4f}"
    return "–" if file["accuracy"] is None else console.share(file["accuracy"], 2)


def show_demo(record: Record) -> RenderableType:
    """Lay out the table of `fxprune demo`."""
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
        *_timed(onnx["timing"]),
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


def _names(parameters: list[str]) -> str:
    """Name parameters by the modules that hold them, without repeats."""
    short = [name.removesuffix(".weight") for name in parameters]
    return ", ".join(dict.fromkeys(short)) or "–"
