"""Damage the files of runs in many ways, and look at what happens when they are read.

    python -m tools.campaigns.mutants --mutants 2000 --valid 200 --seed 0 --keep mutants

Right is: a mutant is refused with an `FxpruneError`, or it loads and says the same as the run that
it was made of. A mutant that was signed anew (its checksum fits) may also load with other content
that its schema allows, as long as the network is finite. All valid variants load. Wrong are
tracebacks, hangs (20 seconds), wrong contents, and valid variants that are refused.

With `--keep` the folder gets the outcomes, one line each, with which a stopped campaign goes on,
and a copy of each run whose outcome is wrong. Each mutant is drawn from the seed and its own
number.
"""

import argparse
import collections
import contextlib
import json
import os
import random
import shutil
import signal
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import fxprune
from fxprune.cli import lines, records
from fxprune.data import DataSet
from fxprune.data.load import from_tensors
from fxprune.errors import FxpruneError
from fxprune.formats import read_tensors, write_record, write_tensors
from fxprune.report.exported import FILE as EXPORTED
from fxprune.report.exported import Exported
from fxprune.report.of_runs import record_of
from fxprune.runs.history import METRICS
from fxprune.runs.promise import FILE as PROMISE
from fxprune.runs.promise import Promise
from fxprune.runs.run import CHECKPOINT, PLAN, Run
from fxprune.trainer.job import FILE, Job
from fxprune.trainer.loop import fit
from fxprune.trainer.options import TrainOptions
from fxprune.trainer.teacher import FILE as TEACHER

SECONDS = 20
KINDS = (
    {"policy": "balance", "budget": "macs=0.4"},
    {"policy": "cucb{c=0.5}", "budget": "keep=0.5", "every": 2},
    {"policy": "utility{warmup=1,reallocate=1}", "budget": "params=0.5"},
    {"policy": "random", "seed": 5, "round_to": 2},
    {"policy": "bn_scale"},
)
OPTIMIZERS = (
    {"distil": 0.3},
    {"optimizer": "adamw", "lr": 0.001, "distil": 0.3},
    {"momentum": 0.0},
    {"amp": "float16"},
)
RECORDS = (PLAN, FILE, PROMISE, EXPORTED)
TENSORS = (CHECKPOINT, TEACHER)
PARTS = {"params": 9, "macs": 9, "bytes": 9, "latency": 0.1}
QUOTIENT = {"median": 0.5, "low": 0.4, "high": 0.6, "rounds": 9, "dense": 0.2, "compact": 0.1}
EXPORT = {
    "path": "a.onnx",
    "bytes": 9,
    "opset": 20,
    "params": 9,
    "seed": 3,
    "real_examples": 0,
    "batches": [1, 2, 7],
    "max_abs_error": 1e-7,
    "max_rel_error": 1e-7,
    "tolerance": 2e-5,
    "reference": "the dense network",
    "sha256": "0" * 64,
    "compact": PARTS,
    "dense": PARTS,
    "timing": {
        "hot": QUOTIENT,
        "cold": QUOTIENT,
        "binds": "hot",
        "threads": 1,
        "command": "",
        "quiet": True,
    },
}


def build_model() -> nn.Module:
    """A network that is small, with batch norms."""
    return nn.Sequential(
        *(nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.ReLU()),
        *(nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8), nn.ReLU()),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4)),
    )


def data() -> DataSet:
    """Thirty-two images of noise."""
    draw = torch.Generator().manual_seed(0)
    images = torch.randint(0, 255, (32, 1, 8, 8), dtype=torch.uint8, generator=draw)
    labels = torch.arange(32) % 4
    return from_tensors("noise", (images, labels), (images, labels), tuple("abcd"))


def options_of(number: int) -> TrainOptions:
    return TrainOptions(epochs=2, batch_size=16, device="cpu", **OPTIMIZERS[number % 4])


def make(folder: Path, number: int) -> Path:
    """A trained run of one of a few kinds."""
    torch.manual_seed(number)
    gated = fxprune.instrument(build_model(), (torch.zeros(2, 1, 8, 8),), **KINDS[number % 5])
    run = Run.create(folder / f"{number}.fxprune", gated, "torchvision:resnet18", "1x8x8")
    options = options_of(number)
    Job("digits", Path("data"), options).write(run)
    promise = Promise(0.5, 1, cold=False, by_command=False, dense=0.2, compact=0.1)
    write_record(run.path / PROMISE, vars(promise))
    write_record(run.path / EXPORTED, {"onnx": EXPORT})
    fit(gated, data(), options, run=run.path)
    return run.path


def look(path: Path, number: int) -> tuple[Any, dict[str, Tensor]]:
    """Everything that the commands read of a run, and what it comes to."""
    run = Run.open(path)
    run.require("spec", run.spec)
    job = Job.read(run)
    gated = run.load(build_model())
    record = records.of_run(run, gated)
    lines.remarks(record)
    record_of(run, gated)
    kept = Exported.read(run), Promise.read(path)
    with torch.no_grad():
        logits = gated.eval()(torch.ones(2, 1, 8, 8))
    state = gated.training_state()
    torch.manual_seed(number)
    again = run.plan.instrument(build_model(), path)
    history = fit(again, data(), options_of(number), run=path)  # trained to its end: only read
    state |= {f"again/{key}": value for key, value in again.training_state().items()}
    said = (run.spec, run.input, run.plan, job, record["val_accuracy"], history, kept)
    return said, {**state, "logits": logits}


@contextlib.contextmanager
def alarm() -> Iterator[None]:
    def ring(*_: object) -> None:
        raise TimeoutError

    signal.signal(signal.SIGALRM, ring)
    signal.alarm(SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)


ODD: tuple[Any, ...] = (
    *(None, True, False, -1, 0, 1, 3, 2**31, 2**63, -(2**63), 10**40, 10**4000, 0.5, -0.5),
    *(1e308, "", "x", "a\0b", "y" * 5000, "os:system{command='echo'}", "float33", "keep=nan"),
    *(
        [],
        {},
        [[]],
        {"a": 1},
        [1, 2],
        ["a"],
        "cucb{c=nan}",
        "../../..",
        "timm:x{checkpoint_path=a}",
    ),
)


def deep(levels: int) -> Any:
    value: Any = 1
    for _ in range(levels):
        value = [value]
    return value


def changed(value: Any, draw: random.Random) -> Any:
    """A copy of a JSON value with one place changed."""
    if isinstance(value, dict) and value and draw.random() < 0.85:
        key = draw.choice(list(value))
        if draw.random() < 0.08:
            return {name: item for name, item in value.items() if name != key}
        if draw.random() < 0.08:
            return {**value, "surprise": draw.choice(ODD)}
        return {**value, key: changed(value[key], draw)}
    if isinstance(value, list) and value and draw.random() < 0.8:
        place = draw.randrange(len(value))
        if draw.random() < 0.15:
            return value[:place] + value[place + 1 :]
        if draw.random() < 0.1:
            return [*value, *value]
        return [*value[:place], changed(value[place], draw), *value[place + 1 :]]
    return deep(draw.choice((3, 50, 150))) if draw.random() < 0.05 else draw.choice(ODD)


def raw(path: Path, draw: random.Random) -> None:
    """Change bytes of a file, or what stands under its name."""
    content = bytearray(path.read_bytes())
    way = draw.randrange(11)
    path.unlink()
    if way == 0:
        os.mkfifo(path)
    elif way == 1:
        # What is read before it is written may lead to a device: were it replaced, the machine
        # would lose it.
        devices = () if path.name == METRICS else ("/dev/zero", "/dev/urandom")
        path.symlink_to(draw.choice((*devices, path.parent.parent, "nowhere")))
    elif way == 2:
        with path.open("wb") as file:
            file.write(content[: draw.randrange(len(content) + 1)])
            file.truncate(3 * 2**30)
    elif way == 3:
        path.write_bytes(content[: draw.randrange(len(content))])
    elif way == 4:
        path.write_bytes(b"[" * draw.choice((300, 100_000)))
    elif way == 5:
        path.write_bytes(content.replace(b"1", b"9" * draw.choice((20, 5000)), 1))
    elif way == 6:
        path.write_bytes(content.replace(b"0", draw.choice((b"NaN", b"1e999", b"-Infinity")), 1))
    elif way == 7:
        place = draw.randrange(len(content))
        path.write_bytes(content[:place] + draw.randbytes(draw.randrange(1, 40)) + content[place:])
    elif way == 8:
        content[: min(8, len(content))] = draw.randrange(2**64).to_bytes(8, "little")
        path.write_bytes(content)
    else:
        for _ in range(draw.randrange(1, 4)):
            content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
        path.write_bytes(content)


def signed(path: Path, draw: random.Random) -> None:
    """Change a file of JSON, and sign it anew."""
    value = json.loads(path.read_text())
    del value["format"], value["checksum"]
    mutant = changed(value, draw)
    write_record(path, mutant if isinstance(mutant, dict) else {"it": mutant})


def signed_tensors(path: Path, draw: random.Random) -> None:
    """Change a tensor or the meta of a checkpoint, and sign it anew."""
    tensors, meta = read_tensors(path)
    if draw.random() < 0.5:
        mutant = changed(meta, draw)
        write_tensors(path, tensors, mutant if isinstance(mutant, dict) else {"it": mutant})
        return
    name = draw.choice(sorted(tensors))
    tensor = tensors[name]
    ways: tuple[Callable[[], Tensor], ...] = (
        lambda: (
            torch.full_like(tensor, draw.choice((-1, 3, 2**31 - 1)))
            if tensor.dtype not in (torch.uint8, torch.bool)
            else ~tensor
        ),
        lambda: tensor.double() * float("nan"),
        lambda: (tensor.double() * float("inf")).to(tensor.dtype),
        lambda: tensor.to(draw.choice((torch.float16, torch.int8, torch.float64, torch.bool))),
        lambda: tensor.reshape(-1)[: max(tensor.numel() - 1, 0)],
        lambda: tensor[None],
        lambda: -tensor if tensor.dtype not in (torch.uint8, torch.bool) else ~tensor,
        lambda: tensor.reshape(-1).flip(0).reshape(tensor.shape),
        lambda: torch.where(torch.zeros(tensor.shape, dtype=torch.bool), tensor, tensor).roll(1),
        lambda: torch.zeros(0, dtype=tensor.dtype),
    )
    way = draw.randrange(len(ways) + 2)
    if way == len(ways):
        del tensors[name]
    elif way > len(ways):
        tensors[name + draw.choice(("x", "/", "\0"))] = tensor
    else:
        tensors[name] = ways[way]()
    write_tensors(path, tensors, meta)


def mutate(run: Path, draw: random.Random) -> bool:
    """Change one file of a run; tells whether it is signed."""
    there = [name for name in (*RECORDS, *TENSORS, METRICS) if (run / name).exists()]
    if draw.random() < 0.5:
        raw(run / draw.choice(there), draw)
        return False
    name = draw.choice(there[:-1])
    (signed_tensors if name in TENSORS else signed)(run / name, draw)
    return True


def vary(run: Path, draw: random.Random) -> None:
    """Change what does not matter."""
    way = draw.randrange(6)
    if way == 0:
        value = json.loads((run / PLAN).read_text())
        keys = draw.sample(list(value), len(value))
        (run / PLAN).write_text(json.dumps({key: value[key] for key in keys}))
    elif way == 1:
        (run / METRICS).unlink()
    elif way == 2:
        (run / "notes.txt").write_text("mine")
    elif way == 3:
        (run / ".fxprune-0.tmp").write_bytes(b"left by a killed process")
    elif way == 4:
        (run / FILE).rename(run / "kept")
        (run / FILE).symlink_to("kept")
    else:
        (run / CHECKPOINT).chmod(0o444)


def same(one: dict[str, Tensor], two: dict[str, Tensor]) -> bool:
    return one.keys() == two.keys() and all(torch.equal(one[key], two[key]) for key in one)


def outcome(path: Path, number: int, base: Any, is_signed: bool) -> str:
    try:
        with alarm():
            said, state = look(path, number)
    except FxpruneError:
        return "refused"
    except TimeoutError:
        return "hang"
    except Exception as error:
        return f"traceback: {type(error).__name__}: {error}"[:200]
    if said == base[0] and same(state, base[1]):
        return "the same"
    if not is_signed:
        return "wrong content"
    wild = [k for k, v in state.items() if v.is_floating_point() and not v.isfinite().all()]
    return f"wrong content: {wild[0]}" if wild else "other content by its schema"


def campaign(
    mutants: int, valid: int, seed: int, bases: int = 10, keep: Path | None = None
) -> collections.Counter[str]:
    """Count the outcomes; `valid: …` are those of the variants that have to load.

    Args:
        mutants: how many damaged runs.
        valid: how many variants that say the same; they come first.
        seed: what everything is drawn from.
        bases: how many runs they are made of.
        keep: a folder for the outcomes and the wrong ones; what stands there is not tried again.
    """
    counts: collections.Counter[str] = collections.Counter()
    outcomes = keep / "outcomes.txt" if keep else Path(os.devnull)
    for line in outcomes.read_text().splitlines() if outcomes.exists() else ():
        counts[line.split(" ", 1)[1]] += 1
    with tempfile.TemporaryDirectory() as name, outcomes.open("a") as log:
        folder = Path(name)
        made = [make(folder, number) for number in range(min(bases, max(mutants, 1)))]
        known = [look(path, number) for number, path in enumerate(made)]
        for turn in range(counts.total(), valid + mutants):
            draw = random.Random(f"{seed}/{turn}")
            number = draw.randrange(len(made))
            copy = folder / "copy.fxprune"
            shutil.copytree(made[number], copy)
            is_signed = False
            if turn < valid:
                vary(copy, draw)
            else:
                is_signed = mutate(copy, draw)
            came = outcome(copy, number, known[number], is_signed)
            came = f"valid: {came}" if turn < valid else came
            counts[came] += 1
            print(turn, " ".join(came.split()), file=log, flush=True)
            if keep and came not in RIGHT:
                shutil.copytree(made[number], keep / f"{turn}-base.fxprune")
                shutil.move(copy, keep / f"{turn}-{number}.fxprune")
            shutil.rmtree(copy, ignore_errors=True)
    return counts


RIGHT = ("refused", "the same", "other content by its schema", "valid: the same")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mutants", type=int, default=2000)
    parser.add_argument("--valid", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", type=Path, help="folder for outcomes and wrong runs")
    given = parser.parse_args()
    torch.set_num_threads(1)
    os.environ["XDG_STATE_HOME"] = tempfile.mkdtemp()
    if given.keep:
        given.keep.mkdir(parents=True, exist_ok=True)
    counts = campaign(given.mutants, given.valid, given.seed, keep=given.keep)
    for what, count in counts.most_common():
        print(f"{count:6}  {what}")
    wrong = sum(count for what, count in counts.items() if what not in RIGHT)
    print(f"{wrong} wrong of {given.mutants} mutants and {given.valid} valid variants")


if __name__ == "__main__":
    main()
