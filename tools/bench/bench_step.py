"""What a training step costs: dense, masked, gated …, as ratios to the plain narrow network.

    python tools/bench/bench_step.py --networks resnet20 vgg16_bn --batch 64 --keep 0.5 \
        --minutes 9 --json step.json --plot step.png

Every contender (`bench_contenders.py`) runs in a process of its own, so that its peak memory is its
own, and they take turns in one run, so that a busy machine slows all of them alike. Printed are
medians of all steps as ratios to `narrow`, the plain network of the kept widths from the dense
one's factory under the same optimiser, and the quartiles of the ratios turn by turn, which say how
far to trust them. On a CPU there are the same ratios of the processes' own time, which leaves out
what else the machine does, though not what that does to the caches. The first turns are warm-up.
Masked and gathered networks are given their channels; only the gated ones also pay for choosing
them.

A case that is in the JSON file is not measured again; call it with more cases, or until
`--minutes` was enough for all.
"""

import argparse
import itertools
import json
import multiprocessing
import os
import platform
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import torch
from bench_contenders import CONTENDERS, Case
from bench_models import NETWORKS
from bench_worker import serve

Record = dict[str, Any]

WARM_UP = 3
PARTS = 5
CLOSING = 12  # about as many steps of each contender are taken after the turns, for the other facts
PART_NAMES = ("forward", "backward", "optimizer", "selection", "swap")


class Child:
    """A contender's process. After a failure it answers None to everything."""

    def __init__(self, case: Case, contender: str) -> None:
        context = multiprocessing.get_context("spawn")
        self.pipe, other = context.Pipe()
        self.process = context.Process(target=serve, args=(other, case, contender), daemon=True)
        self.process.start()
        other.close()
        self.error: str | None = None

    def ask(self, *request: Any) -> Any:
        if self.error is not None:
            return None
        self.pipe.send(request)
        return self.answer()

    def close(self) -> None:
        if self.error is None:
            self.pipe.send(None)
        self.process.join()

    def answer(self) -> Any:
        try:
            word, answer = self.pipe.recv()
        except EOFError:
            word, answer = "failed", "the process died, perhaps of too little memory"
        if word == "failed":
            self.error = answer
        return answer


def measure(case: Case, names: list[str], turns: int, steps: int, deadline: float) -> Record:
    """One case: turns of some steps each, all contenders in turn; fewer turns at the deadline."""
    children = {name: Child(case, name) for name in names}
    for child in children.values():
        child.answer()  # that it is ready
    seconds: dict[str, list[list[float]]] = {name: [] for name in names}
    own_seconds: dict[str, list[float]] = {name: [] for name in names}
    load, round_seconds = [], 0.0
    for turn in range(WARM_UP + turns):
        began = time.monotonic()
        if turn > WARM_UP + 2 and began + round_seconds * (1 + CLOSING / steps) > deadline:
            break
        for name, child in children.items():
            taken = child.ask("turn", steps)
            if turn >= WARM_UP and child.error is None:
                seconds[name].append(taken[0])
                own_seconds[name] += taken[1]
        load.append(os.getloadavg()[0])
        round_seconds = time.monotonic() - began
    results: Record = {}
    for name, child in children.items():
        facts, parts = child.ask("facts"), child.ask("parts", PARTS)
        child.close()
        results[name] = {"error": child.error}
        if child.error is None:
            every = list(itertools.chain(*seconds[name]))
            results[name] = {"seconds": statistics.median(every), **facts, "parts": parts}
            if case.device == "cpu":
                results[name]["cpu_seconds"] = statistics.median(own_seconds[name])
    narrow = results["narrow"]
    for name, result in results.items():
        if "seconds" in result and "seconds" in narrow:
            result["ratio"] = result["seconds"] / narrow["seconds"]
            pairs = zip(seconds[name], seconds["narrow"], strict=True)
            if "cpu_seconds" in result:
                result["cpu_ratio"] = result["cpu_seconds"] / narrow["cpu_seconds"]
            result["by_turn"] = [sum(one) / sum(other) for one, other in pairs]
    return {"load": statistics.mean(load), "contenders": results}


def machine(device: str) -> Record:
    """What the figures were taken on."""
    name = torch.cuda.get_device_name() if device.startswith("cuda") else platform.processor()
    return {"device": name or platform.machine(), "torch": torch.__version__}


def show(title: str, record: Record) -> None:
    """One case as a table."""
    print(f"\n{title}   (load {record['load']:.1f})")
    heads = (
        "x narrow",
        "quartiles",
        "CPU time",
        "ms",
        *PART_NAMES,
        "peak MB",
        "bank MB",
        "kernels",
        "moved",
    )
    print(f"{'':16}" + "".join(f"{head:>10}" for head in heads))
    for name, result in record["contenders"].items():
        if "seconds" not in result:
            print(f"{name:16}  failed: {result['error']}")
            continue
        cells = ["", "", "", f"{1000 * result['seconds']:.1f}"]
        if "ratio" in result:
            low, _, high = statistics.quantiles(result["by_turn"], n=4)
            cells[:2] = [f"{result['ratio']:.3f}", f"{low:.2f}-{high:.2f}"]
        if "cpu_ratio" in result:
            cells[2] = f"{result['cpu_ratio']:.3f}"
        cells += [f"{1000 * result['parts'][part]:.1f}" for part in PART_NAMES]
        cells += [f"{result[key] / 2**20:.1f}" for key in ("peak_bytes", "bank_bytes")]
        cells.append("" if result["kernels"] is None else str(result["kernels"]))
        cells.append("" if result["moved"] is None else f"{result['moved']:.1%}")
        print(f"{name:16}" + "".join(f"{cell:>10}" for cell in cells))
    seconds = {n: r["seconds"] for n, r in record["contenders"].items() if "seconds" in r}
    for name in seconds:
        if name.startswith("gated") and seconds[name] > seconds.get("dense", float("inf")):
            print(f"{name} is slower than the dense network here: see README, What a step costs")


def plot(records: Record, path: Path) -> None:
    """The ratios of all cases as bars."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(9, 0.6 + 2.2 * len(records)), layout="constrained")
    labels, bars = [], []
    for title, record in records.items():
        ratios = {n: r["ratio"] for n, r in record["contenders"].items() if "ratio" in r}
        labels += [f"{title}\n{name}" if not n else name for n, name in enumerate(ratios)]
        bars += [*ratios.values()]
    axes.barh(range(len(bars)), bars, color="tab:blue")
    axes.set_yticks(range(len(bars)), labels, fontsize=7)
    axes.bar_label(axes.containers[0], fmt="%.2f", fontsize=7, padding=2)
    axes.axvline(1, color="black", linewidth=0.8)
    axes.set_xlabel("time of a training step, narrow network = 1")
    axes.invert_yaxis()
    figure.savefig(path)


def cases_of(arguments: argparse.Namespace) -> list[Case]:
    """All combinations that were asked for."""
    gpu = arguments.device.startswith("cuda")
    grid = itertools.product(
        arguments.networks, arguments.batch, arguments.keep, arguments.optimizer
    )
    cases = []
    for name, batch, keep, optimizer in grid:
        network = NETWORKS[name]
        side = arguments.side or (network.gpu_side if gpu else network.side)
        cases.append(
            Case(
                *(name, batch, keep, side, optimizer, arguments.policy, arguments.device),
                *(arguments.amp, arguments.channels_last, arguments.compile, arguments.threads),
                arguments.age,
            )
        )
    return cases


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=["resnet20"])
    parser.add_argument("--contenders", nargs="+", choices=CONTENDERS, default=[*CONTENDERS])
    parser.add_argument("--batch", nargs="+", type=int, default=[64])
    parser.add_argument("--keep", nargs="+", type=float, default=[0.5])
    parser.add_argument("--optimizer", nargs="+", choices=("sgd", "adamw"), default=["sgd"])
    parser.add_argument("--policy", default="cucb")
    parser.add_argument("--side", type=int, help="of the images, in place of the network's own")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--amp", choices=("off", "bf16", "fp16"), default="off")
    parser.add_argument("--channels-last", action="store_true")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--age", type=int, default=0, help="steps taken before, of gated networks")
    parser.add_argument("--turns", type=int, default=15)
    parser.add_argument("--steps", type=int, help="a turn; 2, on a GPU 20")
    parser.add_argument("--minutes", type=float, default=9.0, help="no new case after so many")
    parser.add_argument("--json", type=Path, help="results; a case that is in it is done")
    parser.add_argument("--plot", type=Path, help="a picture of the ratios: .png, .svg")
    parser.add_argument("--again", action="store_true", help="measure what is done once more")
    arguments = parser.parse_args()
    if arguments.plot is not None and arguments.json is None:
        parser.error("--plot draws what is in --json")
    return arguments


def main() -> None:
    arguments = options()
    began = time.monotonic()
    deadline = began + 60 * arguments.minutes
    stored: Record = {}
    if arguments.json is not None and arguments.json.exists():
        stored = json.loads(arguments.json.read_text())
    names = list(dict.fromkeys((*arguments.contenders, "narrow")))
    steps = arguments.steps or (20 if arguments.device.startswith("cuda") else 2)
    longest, left = 0.0, []
    for case in cases_of(arguments):
        done = stored.get(str(case), {}).get("contenders", {})
        if arguments.again or not set(names) <= set(done):
            start = time.monotonic()
            if longest and start + longest > deadline:
                left.append(case)
                continue
            record = measure(case, names, arguments.turns, steps, deadline)
            stored[str(case)] = {"machine": machine(arguments.device), **record}
            longest = max(longest, time.monotonic() - start)
            if arguments.json is not None:
                write(stored, arguments.json)
        show(str(case), stored[str(case)])
    if arguments.plot is not None:
        plot(stored, arguments.plot)
    if left:
        sys.exit(f"{len(left)} cases are left; call it again: {', '.join(map(str, left))}")


def write(stored: Record, path: Path) -> None:
    """All or nothing."""
    new = path.with_name(path.name + ".new")
    new.write_text(json.dumps(stored, indent=1) + "\n")
    new.replace(path)


if __name__ == "__main__":
    main()
