"""How long the networks of the trained starts take in ONNX Runtime: accuracy by milliseconds.

    python tools/paper/starts_time.py                       # writes results/starts-time.json

The widths of each finished training (two dense epochs or more) are in results/starts.json. A
network of these widths is exported and timed beside the dense one, hot, in one thread, as latency
budgets are. What is there already is not measured again. `starts_report.py` shows the figures.
"""

import argparse
import json
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

import _paths
import numpy as np
import pause
import starts
import torch
from start_arms import EXAMPLE
from torch import nn

from fxprune import files
from fxprune.budget.budget import Budget
from fxprune.channels.graph import ChannelGraph, Widths
from fxprune.export.bench import Bench, Target
from fxprune.gated.module import Settings
from fxprune.passes import Program, apply
from fxprune.policies import parse

LEAST_EPOCHS = 2


def group_widths(graph: ChannelGraph, convs: dict[str, int]) -> Widths:
    """The widths of the groups at which the convolutions have these outputs.

    An output may be made of several groups, such as a stream that was padded: its width is their
    sum, so the widths solve a system of equations.
    """
    rows, values = [], []
    for name, width in convs.items():
        axis = graph.axes.get(f"{name}.weight", {}).get(0)
        if axis is None:
            continue
        row = np.zeros(len(graph.layout.sizes))
        for group, count in axis.factor.per_channel:
            row[group] = count
        rows.append(row)
        values.append(width - axis.factor.fixed)
    solved, *_ = np.linalg.lstsq(np.array(rows), np.array(values, float), rcond=None)
    widths = tuple(int(width) for width in solved.round())
    wrong = [
        name
        for name, width in convs.items()
        if 0 in graph.axes.get(f"{name}.weight", {})
        and graph.axes[f"{name}.weight"][0].length(widths) != width
    ]
    if wrong:
        raise SystemExit(f"no widths of the groups give the widths of {', '.join(wrong)}")
    return widths


def bench_of(network: str, folder: Path) -> tuple[Bench, list[str]]:
    """A bench of the dense network, and its convolutions' names."""
    torch.manual_seed(0)
    model = starts.NETWORKS[network]()
    names = [name for name, module in model.named_modules() if isinstance(module, nn.Conv2d)]
    coupled = apply("couple", apply("trace", Program(model, EXAMPLE)))
    settings = Settings(parse("fixed"), Budget("keep", 1.0))
    gated = apply("gate", coupled, settings=settings)
    return Bench(gated, EXAMPLE, Target(threads=1), folder=folder), names


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--results", type=Path, default=_paths.ROOT / "results")
    given = parser.parse_args()
    out = given.results / "starts-time.json"
    times: dict[str, Any] = json.loads(out.read_text()) if out.exists() else {}
    records = json.loads((given.results / "starts.json").read_text())["runs"]
    records = [r for r in records if r["dense_epochs"] >= LEAST_EPOCHS and r["macs"] < 1]
    for network in sorted({record["network"] for record in records}):
        with tempfile.TemporaryDirectory() as folder:
            bench, names = bench_of(network, Path(folder))
            with bench:
                for record in records:
                    if record["network"] != network or record["key"] in times:
                        continue
                    convs = dict(zip(names, record["widths"], strict=True))
                    widths = group_widths(bench.gated.channels, convs)
                    with pause.quiet():
                        timing = bench.afresh(widths).timing
                    times[record["key"]] = {
                        "share": [timing.hot.low, timing.hot.median, timing.hot.high],
                        "ms": [1000 * timing.compact[0], 1000 * timing.dense[0]],
                        "onnxruntime": version("onnxruntime"),
                    }
                    print(record["key"], times[record["key"]], flush=True)
                    files.write_bytes(out, (json.dumps(times, indent=1) + "\n").encode())


if __name__ == "__main__":
    main()
