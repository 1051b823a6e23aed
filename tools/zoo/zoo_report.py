"""The zoo sweep's results in words: a line a network, totals, and the page tools/zoo/zoo.md."""

import platform
import tomllib
from collections import defaultdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import median
from typing import Any

import zoo_models

Record = dict[str, Any]

MOST = 0.35
"""Above this share of the macs, at keep=0.5, the table has to say why."""

REASONS = Path(__file__).parent / "zoo_reasons.toml"


def line(record: Record) -> str:
    """One network's result in one line."""
    head = f"{record['tool']:13} {record['spec']:45} {record.get('seconds', 0):5.1f} s  "
    kept = f"macs {share(record.get('macs_kept'))}  "
    if "failed" in record:
        return f"{head}{kept}FAILED {record['failed'][:150]}  {record.get('line', '')}"
    if record["tool"] != "fxprune":
        return f"{head}{kept}law {figure(record.get('law'))}"
    return (
        f"{head}{kept}groups {record.get('groups', 0):3}  law {figure(law(record))}  "
        f"onnx {figure(record.get('onnx'))}  "
        f"pinned {share(record.get('pinned_macs'))} {why(record)}"
    )


def law(record: Record) -> float | None:
    """The largest error of the law."""
    errors = [*record.get("law", []), record.get("permuted")]
    return max((error for error in errors if error is not None), default=None)


def why(record: Record) -> str:
    """The reason that pins most macs."""
    reasons = record.get("pinned", [])
    return f"{reasons[0]['reason']}" if reasons and reasons[0]["macs"] > 0 else ""


def share(value: float | None) -> str:
    """A share in per cent."""
    return "–" if value is None else f"{100 * value:.0f} %"


def figure(value: float | None) -> str:
    """A small error."""
    return "–" if value is None else "0" if value == 0 else f"{value:.0e}"


def right(record: Record) -> bool:
    """Whether all that is asked of a network was done, and right."""
    done = {"step", "law"} | ({"onnx"} if record["tool"] == "fxprune" else set())
    return "failed" not in record and done <= record.get("stages", {}).keys()


def ended(record: Record) -> bool:
    """Whether a network went through every stage or failed; others wait for another run."""
    return right(record) or "failed" in record


def _counts(record: Record) -> bool:
    """Whether the share of the macs that is kept means something."""
    return "macs_kept" in record and "failed" not in record


def summary(records: list[Record]) -> list[str]:
    """Totals of each tool, the median share of the macs kept, and why channels stay pinned."""
    kinds = {entry.spec: entry for entry in zoo_models.entries()}
    lines = []
    for tool in dict.fromkeys(record["tool"] for record in records):
        own = [record for record in records if record["tool"] == tool]
        nets = [record for record in own if not kinds[record["spec"]].attention]
        others = [record for record in own if kinds[record["spec"]].attention]
        kept = [record["macs_kept"] for record in nets if _counts(record)]
        lines.append(
            f"{tool}: {sum(map(right, nets))} of {sum(map(ended, nets))} convolutional networks "
            f"right, {sum(map(right, others))} of {sum(map(ended, others))} with attention; "
            f"median macs kept {share(median(kept) if kept else None)} over {len(kept)}"
        )
    mine = [r for r in records if r["tool"] == "fxprune" and "macs_kept" in r]
    wide = [record for record in mine if record["macs_kept"] > MOST]
    lines.append(f"fxprune keeps more than {share(MOST)} of the macs of {len(wide)} networks")
    lines += [f"    {text}" for text in causes(mine)[:8]]
    lines += [f"    for no named reason: {record['spec']}" for record in wide if not named(record)]
    return lines


def named(record: Record) -> bool:
    """Whether a network keeps much for a reason that the list of reasons names.

    What is pinned holds at least a tenth of the macs, for the most part for one of the reasons; or
    the network itself is named.
    """
    listed = tomllib.loads(REASONS.read_text())
    holds = record.get("pinned_macs", 0) >= 0.1 and why(record).startswith(tuple(listed["pins"]))
    return holds or record["spec"] in listed["networks"]


def causes(records: list[Record]) -> list[str]:
    """Why channels are pinned, by the sum over all networks of the share of the macs."""
    total: dict[str, float] = defaultdict(float)
    count: dict[str, int] = defaultdict(int)
    for record in records:
        for found in record.get("pinned", []):
            if found["macs"] > 0.005:
                reason = found["reason"].partition(": ")[0]
                total[reason] += found["macs"]
                count[reason] += 1
    ranked = sorted(total, key=lambda reason: -total[reason])
    return [
        f"{reason}: {count[reason]} networks, {share(total[reason] / max(len(records), 1))} "
        "of the macs on average over all"
        for reason in ranked
    ]


def page(records: list[Record], command: str) -> str:
    """tools/zoo/zoo.md."""
    by_tool: dict[str, dict[str, Record]] = defaultdict(dict)
    for record in records:
        by_tool[record["tool"]][record["spec"]] = record
    peers = [tool for tool in by_tool if tool != "fxprune"]
    parts = [
        "# The model zoos\n",
        f"Written by `{command}` with {versions()}.\n",
        progress(by_tool),
        HEAD,
        "```\n" + "\n".join(summary(records)) + "\n```\n",
    ]
    collections: dict[str, list[str]] = defaultdict(list)
    for entry in zoo_models.entries():
        if entry.spec in by_tool["fxprune"]:
            collections[entry.collection].append(entry.spec)
    for collection, specs in collections.items():
        parts += [f"## {collection}\n", table(specs, by_tool, peers)]
    return "\n".join(parts)


def progress(by_tool: dict[str, dict[str, Record]]) -> str:
    """How far the sweep has come; what it has not reached yet is no failure."""
    total = len(zoo_models.entries())
    lines = []
    for tool, own in by_tool.items():
        done = sum(map(ended, own.values()))
        used = sorted({record["torch"] for record in own.values() if "torch" in record})
        lines.append(
            f"{tool}: {done} of {total} networks went through every stage or failed, "
            f"with torch {' and '.join(used)}"
        )
        if len(own) > done:
            lines.append(f"{tool}: {len(own) - done} more went through some stages (– is not done)")
    return "\n".join(f"- {text}." for text in lines) + "\n"


HEAD = """\
Each network is built untrained, its constant parameters and statistics are drawn at random, and
it is instrumented at keep=0.5. *traced*: yes, or the submodules that are run as leaves. *macs*:
what is kept of the multiply-accumulates of one example. *pinned*: the dense macs of the layers
whose output channels may not be removed, and the reason that holds most of them. *law*: the
largest error, in float64 (float32 for networks of more than 150 M parameters) and relative to the
largest output, of gated = compact = dense with the consumers' columns zeroed at three random
selections, and of the network with all channels in another order; where statistics are mixed
across channels (≈) removed channels change the others by nature, and the dense network is compared
in the other order only. A network that itself turns a change in the last bits of its input into a
larger one is held to ten times that. *step*: one step of training with `attach`. *ONNX*: the
largest relative difference between torch and ONNX Runtime in float32, at batches of 1, 2 and 7.
*s*: seconds on one processor core.

Torch-Pruning is called as its documentation says (BasePruner, GroupMagnitudeImportance, ratio
0.5, classifier ignored, evaluation mode). What it prunes is right if it runs, has fewer
parameters, computes what the dense network computes with the removed columns zeroed (which rows
and columns are left is read off the values of the weights; not asked where statistics are mixed),
and one step of training runs. Networks differ in how much can be pruned at all, so compare the
columns of macs row by row.
"""


def table(specs: list[str], by_tool: dict[str, dict[str, Record]], peers: list[str]) -> str:
    """One collection as a Markdown table."""
    titles = ["network", "traced", "groups", "macs", "pinned", "law", "step", "ONNX", "s"]
    for peer in peers:
        titles += [f"{peer}: macs", "result", "s"]
    rows = [titles, ["---"] * len(titles)]
    for spec in specs:
        row = _ours(by_tool["fxprune"][spec])
        for peer in peers:
            row += _theirs(by_tool[peer].get(spec))
        rows.append(row)
    return "".join("| " + " | ".join(cells) + " |\n" for cells in rows)


def _ours(record: Record) -> list[str]:
    name = record["spec"].partition(":")[2]
    leaves = record.get("leaves", [])
    traced = "yes" if record.get("traced") else "no"
    if leaves:
        traced = f"{len(leaves)} {'leaf' if len(leaves) == 1 else 'leaves'}"
    reason = why(record) if record.get("pinned_macs", 0) >= 0.01 else ""
    failed = record.get("failed")
    return [
        name,
        traced,
        str(record.get("groups", "–")),
        share(record.get("macs_kept")),
        _cell(f"{share(record.get('pinned_macs'))} {reason}"),
        f"**{_cell(failed)}**" if failed else figure(law(record)) + "≈" * bool(record["mixing"]),
        "yes" if record.get("step") is not None else "–",
        figure(record.get("onnx")),
        f"{record.get('seconds', 0):.0f}",
    ]


def _theirs(record: Record | None) -> list[str]:
    if record is None:
        return ["–", "–", "–"]
    result = _cell(record["failed"]) if "failed" in record else "right"
    return [share(record.get("macs_kept")), result, f"{record.get('seconds', 0):.0f}"]


def _cell(text: str) -> str:
    return text.replace("|", "\\|").strip()[:160]


def versions() -> str:
    """Python's version and those of the libraries."""
    found = [f"Python {platform.python_version()}"]
    for name in ("fxprune", "torch", "torchvision", "timm", "onnxruntime", "torch-pruning"):
        try:
            found.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            continue
    return ", ".join(found)
