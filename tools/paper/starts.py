"""Trained starts: what is left of a trained network at half of its macs, by way of getting there.

    python tools/paper/starts.py dense --data cifar10.npz            # trains the start, once
    python tools/paper/starts.py dense --data cifar10.npz --from START --lr 0.1 --start LONGER
    python tools/paper/starts.py queue --data cifar10.npz --plan tools/paper/starts.plan

A line of the plan is a training: `MACS EPOCHS LR SEED ARM`, with the budget in dense epochs and an
arm of `start_arms.py`. The queue takes the first line that has no result yet, reads the plan anew
after each, and stops at its end; what was finished is in results/starts.json, by the start's file
name, so it goes on where it stopped. It works in one process and one thread, and stands still while
a timing tool measures (`tools/shared/pause.py`).

45,000 of the training images are trained on. The last 5,000 are held out, and all choices (of the
learning rate, of the recipe) are made on them; the test images are looked at once, at the end of a
training. All is in NHWC, and in bfloat16 but for queues that are told `--float32`.
"""

import argparse
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import _paths
import cifar
import memory
import models
import pause
import torch
import tuning
from safetensors import torch as safetensors
from start_arms import ARMS, Made, macs_of, params_of, widths_of
from torch import nn

import fxprune
from fxprune import files
from fxprune.data import DataSet, from_tensors
from fxprune.runs.weights import load_weights
from fxprune.trainer import loop

NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "resnet20": models.resnet20,
    "resnet8": lambda: models.CifarResNet(8),
    "vgg6": models.vgg6,
}
Record = dict[str, Any]


@dataclass(frozen=True)
class Wanted:
    """A line of the plan."""

    macs: float
    epochs: float
    lr: float
    seed: int
    arm: str

    @staticmethod
    def parse(line: str) -> "Wanted":
        """Reads `MACS EPOCHS LR SEED ARM`."""
        macs, epochs, lr, seed, arm = line.split(maxsplit=4)
        if arm not in ARMS:
            raise SystemExit(f"no arm {arm!r}; there are: {', '.join(ARMS)}")
        return Wanted(float(macs), float(epochs), float(lr), int(seed), arm)

    def key(self, start: Path) -> str:
        """Name its result."""
        key = f"{start.stem}/{self.macs:g}/{self.epochs:g}/{self.lr:g}/{self.seed}/{self.arm}"
        return key if tuning.precision == torch.bfloat16 else f"{key}/float32"


def splits(path: Path, held_out: int) -> tuple[DataSet, DataSet]:
    """The images to train on beside those held out (the last ones), and beside the test images."""
    train, test = cifar.load_npz(path)
    less = train[0][:-held_out], train[1][:-held_out]
    held = train[0][-held_out:], train[1][-held_out:]
    return (
        from_tensors("cifar10", less, held, cifar.CLASSES, pad=4, flip=True),
        from_tensors("cifar10", less, test, cifar.CLASSES, pad=4, flip=True),
    )


def train_dense(
    network: str, data: DataSet, epochs: int, lr: float, weights: Path | None, out: Path, work: Path
) -> None:
    """Trains the start with the built-in trainer, from `weights` if given; writes it to `out`."""
    options = loop.TrainOptions(
        epochs=epochs,
        lr=lr,
        lr_warmup=0.1 if weights is None else 0.05,
        amp="bfloat16",
        channels_last="on",
        device="cpu",
    )
    torch.manual_seed(0)
    model = models.initialised(NETWORKS[network]())
    if weights is not None:
        load_weights(model, weights)

    def tell(tick: Any) -> None:
        pause.wait()
        if tick.metrics is not None:
            print(f"epoch {tick.metrics.epoch}: {tick.metrics.val_accuracy:.4f}", flush=True)

    loop.fit(model, data, options, run=work, progress=tell)
    out.parent.mkdir(parents=True, exist_ok=True)
    files.write_bytes(out, safetensors.save(model.state_dict()))


def run(wanted: Wanted, network: str, start: Path, held: DataSet, test: DataSet) -> Record:
    """Trains one line of the plan."""
    began = time.process_time()
    dense = NETWORKS[network]()
    load_weights(dense, start)
    dense.eval()
    arm = ARMS[wanted.arm]
    made: Made = arm.make(dense, wanted.macs, held.train, wanted.seed)
    plan = arm.plan(tuning.Plan(wanted.lr, wanted.epochs - made.spent, wanted.seed))
    before = tuning.accuracy(made.model, held.val) if made.share < 1 else None
    spent = tuning.tune(
        made.model,
        made.share,
        held.train,
        plan,
        dense if arm.taught else None,
        tell=lambda line: print(f"  {time.strftime('%H:%M:%S')} {line}", flush=True),
    )
    model = made.model
    if isinstance(model, fxprune.GatedModule):
        model = fxprune.shrink(model.eval())
    return {
        "key": wanted.key(start),
        "network": network,
        "start": start.stem,
        "arm": wanted.arm,
        "note": made.note,
        "budget": wanted.macs,
        "dense_epochs": wanted.epochs,
        "lr": wanted.lr,
        "seed": wanted.seed,
        "precision": str(tuning.precision).removeprefix("torch."),
        "held_out": tuning.accuracy(model, held.val),
        "test": tuning.accuracy(model, test.val),
        "untrained": before,
        "macs": round(macs_of(model) / macs_of(dense), 4),
        "params": round(params_of(model) / params_of(dense), 4),
        "spent": round(made.spent + spent.dense_epochs, 4),
        "epochs": round(spent.epochs, 2),
        "widths": widths_of(model),
        "cpu_seconds": round(time.process_time() - began),
        "fxprune": fxprune.__version__,
        "torch": torch.__version__,
    }


def work_off(
    plan: Path, network: str, start: Path, held: DataSet, test: DataSet, results: Path
) -> None:
    """Trains what the plan wants and has no result, until nothing is left."""
    failed: set[str] = set()
    while True:
        lines = [line for line in plan.read_text().splitlines() if line.strip()]
        wanted = [Wanted.parse(line) for line in lines if not line.startswith("#")]
        done = json.loads(results.read_text())["runs"] if results.exists() else []
        known = {record["key"] for record in done} | failed
        left = [one for one in wanted if one.key(start) not in known]
        if not left:
            return
        key = left[0].key(start)
        print(f"{time.strftime('%H:%M:%S')} {key}", flush=True)
        try:
            record = run(left[0], network, start, held, test)
        except Exception as error:  # of any of the tools that are compared
            print(f"{key}: failed: {type(error).__name__}: {error}", flush=True)
            failed.add(key)
            continue
        write(results, [*done, record])
        print(f"{time.strftime('%H:%M:%S')} {json.dumps(record)}", flush=True)


def write(path: Path, records: list[Record]) -> None:
    """A line for each training."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = ",\n".join(json.dumps(record, separators=(",", ":")) for record in records)
    files.write_bytes(path, f'{{"runs": [\n{lines}\n]}}\n'.encode())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=("dense", "queue"))
    parser.add_argument("--data", type=Path, required=True, help="NAME.npz")
    parser.add_argument("--network", choices=sorted(NETWORKS), default="resnet20")
    parser.add_argument("--epochs", type=int, default=30, help="of the dense training")
    parser.add_argument("--lr", type=float, default=0.2, help="of the dense training")
    parser.add_argument("--from", dest="weights", type=Path, help="where the dense training begins")
    parser.add_argument("--held-out", type=int, default=5_000)
    parser.add_argument("--start", type=Path, help="the trained network; results/starts/…")
    parser.add_argument("--plan", type=Path, default=Path(__file__).with_name("starts.plan"))
    parser.add_argument("--float32", action="store_true", help="where bfloat16 is slow")
    parser.add_argument("--results", type=Path, default=_paths.ROOT / "results" / "starts.json")
    parser.add_argument("--work", type=Path, default=_paths.ROOT / "build" / "starts")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    tuning.precision = torch.float32 if arguments.float32 else torch.bfloat16
    memory.keep_freed_memory()
    folder = arguments.results.with_suffix("")
    start = arguments.start or folder / f"{arguments.network}.safetensors"
    held, test = splits(arguments.data, arguments.held_out)
    if arguments.what == "dense":
        given = arguments.epochs, arguments.lr, arguments.weights
        train_dense(arguments.network, held, *given, start, arguments.work / start.stem)
    else:
        work_off(arguments.plan, arguments.network, start, held, test, arguments.results)


if __name__ == "__main__":
    main()
