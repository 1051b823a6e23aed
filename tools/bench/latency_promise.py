"""Does a latency budget keep its promise? Networks drawn by seed, measured independently.

    python tools/bench/latency_promise.py --networks 10 --repeats 5 --out promise.jsonl
    python tools/bench/latency_promise.py --only torchvision:resnet18 --shares .5 --out one.jsonl

Ten networks of torchvision and timm (five each, at most 1 G macs and 40 M parameters) are drawn;
for each, shares of .35, .5 and .7 are asked for, in 1 and 2 threads, several times, without the
cache. `--only` takes networks by name instead, of any size; `monai:BasicUNet` is a U-Net. Queues of
this machine stand still meanwhile, unless `--busy` is given. What fxprune chose is then timed by
`time_onnx.py`, in a process of its own. A line of JSON each; at the end the shares that were within
5 %, and that were refused. Called again, it goes on.
"""

import argparse
import contextlib
import itertools
import json
import os
import random
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator
from pathlib import Path

import _paths  # noqa: F401
import pause
import timm
import torch
import torchvision

from fxprune.budget.budget import Budget
from fxprune.channels.cost import CostModel
from fxprune.errors import FxpruneError
from fxprune.export.bench import Bench, Target
from fxprune.export.latency import choose
from fxprune.gated.module import Settings
from fxprune.passes import Program, apply
from fxprune.policies import parse

SHARES, THREADS = (0.35, 0.5, 0.7), (1, 2)
MOST_MACS, MOST_PARAMS = 1e9, 4e7
ROUNDS = 15  # of the timer, whose median is then known within about 3 %
TIMER = Path(__file__).with_name("time_onnx.py")


def candidates(seed: int) -> Iterator[tuple[str, str]]:
    draw = random.Random(seed)
    names = {
        "torchvision": sorted(torchvision.models.list_models(module=torchvision.models)),
        "timm": sorted(timm.list_models()),
    }
    for own in names.values():
        draw.shuffle(own)
    for pair in itertools.zip_longest(*names.values()):
        for library, name in zip(names, pair):
            if name is not None:
                yield library, name


def build(library: str, name: str) -> tuple[torch.nn.Module, tuple[torch.Tensor, ...]]:
    torch.manual_seed(0)
    if library == "monai":  # a U-Net of the size that its documentation shows
        import monai.networks.nets  # slow, and the other libraries do without it

        net = getattr(monai.networks.nets, name)
        return net(2, 1, 2, (32, 32, 64, 128, 256, 32)), (torch.zeros(2, 1, 128, 128),)
    if library == "torchvision":
        return torchvision.models.get_model(name, weights=None), (torch.zeros(2, 3, 224, 224),)
    config = timm.get_pretrained_cfg(name)
    size = config.input_size if config is not None else (3, 224, 224)
    return timm.create_model(name, pretrained=False), (torch.zeros(2, *size),)


def gated(model: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> Program:
    coupled = apply("couple", apply("trace", Program(model, inputs)))
    return apply("gate", coupled, settings=Settings(parse("fixed"), Budget("keep", 1.0)))


def opened(program: Program) -> Bench:
    """The bench of a gated network that exports."""
    bench = Bench(program, program.inputs, folder=Path(tempfile.mkdtemp()))
    bench.__enter__()
    bench.content(bench.sizes)  # whether it can be exported
    return bench


def named(names: list[str]) -> Iterator[tuple[str, Bench]]:
    """Benches of the networks `LIBRARY:NAME`."""
    for name in names:
        yield name, opened(gated(*build(*name.split(":"))))


def drawn(seed: int, networks: int) -> Iterator[tuple[str, Bench]]:
    """Benches of the first networks of each library that are small and can be gated."""
    wanted = {"torchvision": networks - networks // 2, "timm": networks // 2}
    for library, short in candidates(seed):
        if not wanted[library]:
            continue
        name = f"{library}:{short}"
        try:
            model, inputs = build(library, short)
        except (RuntimeError, ValueError, TypeError, AttributeError) as error:
            print(f"cannot build {name}: {error}", file=sys.stderr)
            continue
        if sum(parameter.numel() for parameter in model.parameters()) > MOST_PARAMS:
            continue
        try:
            program = gated(model, inputs)
            cost: CostModel = program.module.cost  # type: ignore[assignment,union-attr]
            if cost.dense_macs > MOST_MACS:
                continue
            bench = opened(program)
        except FxpruneError as error:
            print(f"left out {name}: {error.what}", file=sys.stderr)
            continue
        wanted[library] -= 1
        yield name, bench
        if not any(wanted.values()):
            return


def trial(name: str, bench: Bench, share: float, threads: int) -> dict:
    """One promise, and what a stranger measures."""
    bench.target, bench.known = Target(threads), {}
    bench.path = Path(tempfile.mkdtemp()) / "none.json"
    record: dict = {"network": name, "asked": share, "threads": threads, "load": os.getloadavg()[0]}
    began = time.monotonic()
    try:
        choice = choose(
            Budget("latency", share), bench.gated.channels.layout, bench.gated.cost, bench
        )
    except FxpruneError as error:
        return record | {"refused": str(error), "seconds": time.monotonic() - began}
    record |= {"said": choice.share, "met": choice.met, "seconds": time.monotonic() - began}
    with tempfile.TemporaryDirectory() as folder:
        files = [Path(folder) / "dense.onnx", Path(folder) / "compact.onnx"]
        for file, widths in zip(files, (bench.sizes, choice.budget.widths), strict=True):
            file.write_bytes(bench.content(widths))
        options = ["--threads", str(threads), "--rounds", str(ROUNDS)]
        command = [sys.executable, TIMER, *files, *options]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    return record | {"found": json.loads(done.stdout)}


def is_within(record: dict) -> bool:
    clock = "processor" if record["threads"] == 1 else "wall"
    return abs(record["found"][f"hot by {clock}"]["median"] / record["asked"] - 1) <= 0.05


def summary(records: list[dict]) -> dict:
    kept = [record for record in records if "found" in record]
    return {
        "promises": len(records),
        "refused": len(records) - len(kept),
        "of which impossible": sum("cannot be met" in r.get("refused", "") for r in records),
        "within 5 %": sum(map(is_within, kept)),
        "measured": len(kept),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--networks", type=int, default=10)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="*", default=[], metavar="LIBRARY:NAME")
    parser.add_argument("--shares", type=float, nargs="*", default=SHARES)
    parser.add_argument("--threads", type=int, nargs="*", default=THREADS)
    parser.add_argument("--busy", action="store_true", help="beside what else runs here")
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    warnings.simplefilter("ignore")
    done = (
        [json.loads(line) for line in given.out.read_text().splitlines()]
        if given.out.exists()
        else []
    )
    counted = {(r["network"], r["asked"], r["threads"], r["repeat"]) for r in done}
    with contextlib.suppress(KeyboardInterrupt):
        chosen = named(given.only) if given.only else drawn(given.seed, given.networks)
        for name, bench in chosen:
            for repeat in range(given.repeats):
                for share in given.shares:
                    for threads in given.threads:
                        if (name, share, threads, repeat) in counted:
                            continue
                        with contextlib.nullcontext() if given.busy else pause.quiet():
                            record = trial(name, bench, share, threads)
                        record |= {"repeat": repeat, "busy": given.busy}
                        done.append(record)
                        with given.out.open("a") as file:
                            file.write(json.dumps(record) + "\n")
            print(name, json.dumps(summary([r for r in done if r["network"] == name])), flush=True)
    for threads in given.threads:
        print(threads, "threads", json.dumps(summary([r for r in done if r["threads"] == threads])))


if __name__ == "__main__":
    main()
