"""Trains what a table compares, on CIFAR-10, and writes results/TABLE.json and results/appendix.md.

    python tools/paper/reproduce.py ablation --data cifar10.npz --recipe small --budget-minutes 10

A table (`tables.py`) is networks times arms times seeds; each training runs in a process of
its own. Call it again until nothing is left to do: finished trainings are in results/TABLE.json,
unfinished ones go on from their checkpoints (`--work`). Accuracy is on the test images after the
last epoch; nothing is chosen by it.
"""

import argparse
import json
import multiprocessing
import os
import platform
import sys
import time
from collections.abc import Iterable
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import _paths
import cifar
import report
import torch
from arms import Arm, Job
from children import end_with_parent
from tables import NETWORKS, RECIPES, SMALL, TABLES

from fxprune import __version__, files
from fxprune.trainer import loop

Record = dict[str, Any]
ROOT = _paths.ROOT


@dataclass(frozen=True)
class Run:
    """One training of a table: a network, an arm, a seed, under a recipe."""

    recipe: str
    network: str
    arm: Arm
    seed: int

    @property
    def key(self) -> str:
        return self._key(self.arm.name)

    @property
    def before(self) -> str:
        """The key of the run that this one needs; empty for none."""
        return self._key(self.arm.after) if self.arm.after else ""

    def _key(self, arm: str) -> str:
        return "/".join((self.recipe, self.network, arm, str(self.seed)))


def work(run: Run, other: Record, arguments: argparse.Namespace, minutes: float) -> Record | None:
    """Trains, in a process of its own; None where the minutes were not enough."""
    torch.set_num_threads(arguments.threads)
    torch.backends.cudnn.benchmark = True
    device = torch.device(arguments.device)
    recipe = RECIPES[run.recipe]
    options = recipe.options_of(run.network) | dict(run.arm.options)
    data = cifar.load(arguments.data, recipe.images, device)
    job = Job(
        build=NETWORKS[run.network],
        data=data,
        options=loop.TrainOptions(**options, seed=run.seed, device=arguments.device),
        folder=arguments.work / run.key,
        deadline=time.monotonic() + 60 * minutes,
        other=other,
    )
    record = run.arm.train(job)
    return record and {
        "key": run.key,
        "recipe": run.recipe,
        "network": run.network,
        "arm": run.arm.name,
        "seed": run.seed,
        "threads": arguments.threads,
        "jobs": arguments.jobs,
        **versions(device),
        **record,
    }


def versions(device: torch.device) -> Record:
    """What a figure depends on."""
    on_gpu = device.type == "cuda"
    name = torch.cuda.get_device_name(device) if on_gpu else platform.machine()
    return {"fxprune": __version__, "torch": torch.__version__, "device": name}


def runs_of(table: str, recipe: str, networks: Iterable[str], seeds: int) -> list[Run]:
    """All trainings of a table, seed by seed, so that there is something to see early."""
    return [
        Run(recipe, network, arm, seed)
        for seed in range(seeds)
        for network in networks
        for arm in TABLES[table].arms
    ]


def read(*tables: Path) -> dict[str, Record]:
    """The finished trainings of some tables, by key; the same training may be in several."""
    runs = [json.loads(path.read_text())["runs"] for path in tables if path.exists()]
    return {record["key"]: record for records in runs for record in records}


def write(path: Path, records: list[Record]) -> None:
    """A line for each training."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = ",\n".join(json.dumps(record, separators=(",", ":")) for record in records)
    files.write_bytes(path, f'{{"runs": [\n{lines}\n]}}\n'.encode())


def train_all(runs: list[Run], path: Path, arguments: argparse.Namespace) -> bool:
    """Trains what is not there yet, until the time is up; whether all is done.

    A training that fails is told of, and left out with those that need its record.
    """
    deadline = time.monotonic() + 60 * arguments.budget_minutes
    done = read(*sorted(path.parent.glob("*.json")))
    keys = dict.fromkeys([*read(path), *(run.key for run in runs)])  # others of the table stay
    left = [run for run in runs if run.key not in done]
    context = multiprocessing.get_context("spawn")
    going: dict[Future[Record | None], Run] = {}
    # A process each: its peak memory is its own.
    with ProcessPoolExecutor(
        arguments.jobs, context, initializer=end_with_parent, max_tasks_per_child=1
    ) as pool:
        while left or going:
            ready = [run for run in left if not run.before or run.before in done]
            minutes = (deadline - time.monotonic()) / 60
            for run in ready[: arguments.jobs - len(going) if minutes > 0 else 0]:
                left.remove(run)
                other = done.get(run.before, {})
                going[pool.submit(work, run, other, arguments, minutes)] = run
            if not going:
                break
            for future in wait(going, return_when=FIRST_COMPLETED).done:
                run = going.pop(future)
                try:
                    record = future.result()
                except BrokenProcessPool:
                    sys.exit(f"{run.key}: its process died, perhaps of too little memory")
                except Exception as error:  # of any of the networks and tools in the table
                    print(f"{run.key}: failed: {type(error).__name__}: {error}", flush=True)
                    continue
                if record is None:
                    print(f"{run.key}: not finished yet", flush=True)
                    continue
                done[run.key] = record
                write(path, [done[key] for key in keys if key in done])
                print(
                    f"{run.key}: accuracy {record['accuracy']:.4f}, macs {record['macs']:.3f}, "
                    f"macs of the training {record['run_macs']:.3f}, {record['seconds']:.0f} s",
                    flush=True,
                )
    write(path, [done[key] for key in keys if key in done])
    return all(run.key in done for run in runs)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("table", choices=sorted(TABLES))
    parser.add_argument("--data", type=Path, required=True, help="NAME.npz, or CIFAR10's folder")
    parser.add_argument("--recipe", choices=sorted(RECIPES), default="small")
    parser.add_argument("--networks", nargs="*", choices=sorted(NETWORKS))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--budget-minutes", type=float, default=float("inf"))
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--jobs", type=int, default=1, help="trainings at the same time")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="of each training")
    parser.add_argument("--results", type=Path, default=ROOT / "results")
    parser.add_argument("--work", type=Path, default=ROOT / "build" / "reproduce")
    arguments = parser.parse_args()

    table = TABLES[arguments.table]
    small = arguments.recipe in SMALL
    networks = arguments.networks or (table.small_networks if small else table.networks)
    runs = runs_of(arguments.table, arguments.recipe, networks, arguments.seeds)
    finished = train_all(runs, arguments.results / f"{arguments.table}.json", arguments)
    report.render(arguments.results)
    sys.exit(0 if finished else "not all is trained yet; call it again")


if __name__ == "__main__":
    main()
