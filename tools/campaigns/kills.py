"""Kill a process before each system call with which it writes a run, and go on.

    python -m tools.campaigns.kills

A child makes a run, or trains it, and kills itself before its n-th call, for every n until it
comes to its end. Right is: what is left can be read or made anew, the next start ends in the same
bits as a process that was never killed, metrics.jsonl included, and nothing is left over.
"""

import argparse
import fcntl
import os
import shutil
import signal
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import fxprune
from fxprune.errors import FxpruneError
from fxprune.formats import read_tensors
from fxprune.runs.run import CHECKPOINT, Run
from fxprune.trainer.loop import fit
from tools.campaigns.mutants import build_model, data, options_of

CALLS = (
    *((os, name) for name in ("open", "fsync", "chmod", "replace", "unlink", "mkdir", "ftruncate")),
    *((os, "write"), (os, "close"), (fcntl, "flock")),
)


def network() -> Any:
    torch.manual_seed(0)
    return fxprune.instrument(build_model(), (torch.zeros(2, 1, 8, 8),), "balance", "macs=0.4")


def make(path: Path) -> None:
    Run.create(path, network(), "torchvision:resnet18", "1x8x8")


def train(path: Path) -> None:
    fit(network(), data(), options_of(0), run=path)


def killed(work: Callable[[], None], number: int) -> bool:
    """Do the work in a child that dies before its call `number`; tells whether it died."""
    child = os.fork()
    if child == 0:
        left = number

        def counted(call: Callable[..., Any]) -> Callable[..., Any]:
            def wrapped(*given: Any, **named: Any) -> Any:
                nonlocal left
                left -= 1
                if left < 0:
                    os.kill(os.getpid(), signal.SIGKILL)
                return call(*given, **named)

            return wrapped

        for module, name in CALLS:
            setattr(module, name, counted(getattr(module, name)))
        work()
        os._exit(0)
    return os.WIFSIGNALED(os.waitpid(child, 0)[1])


def content(path: Path) -> tuple[Any, ...]:
    tensors, meta = read_tensors(path / CHECKPOINT)
    for metrics in meta.get("history", []):
        metrics["seconds"] = metrics["step_seconds"] = 0
    names = sorted(item.name for item in path.iterdir())
    lines = (path / "metrics.jsonl").read_bytes().count(b"\n") if len(names) > 2 else 0
    return {name: tensor.tolist() for name, tensor in tensors.items()}, meta, names, lines


def campaign(folder: Path, kind: str) -> tuple[int, list[str]]:
    """Returns how many kills there were, and what went wrong."""
    start, path = folder / "start.fxprune", folder / "a.fxprune"
    work = make if kind == "make" else train
    make(start)
    wrong: list[str] = []
    expected: tuple[Any, ...] | None = None
    for number in range(-1, 10_000):
        shutil.rmtree(path, ignore_errors=True)
        if kind == "train":
            shutil.copytree(start, path)
        if number < 0:  # the one that is never killed
            work(path)
            expected = content(path)
            continue
        died = killed(lambda: work(path), number)
        try:
            work(path)
            if content(path) != expected:
                wrong.append(f"{kind}, call {number}: other content")
        except FxpruneError as error:
            wrong.append(f"{kind}, call {number}: {error.what}: {error.why}")
        if not died:
            return number, wrong
    raise AssertionError


def main() -> None:
    argparse.ArgumentParser(description=__doc__).parse_args()
    torch.set_num_threads(1)
    os.environ["XDG_STATE_HOME"] = tempfile.mkdtemp()
    for kind in ("make", "train"):
        with tempfile.TemporaryDirectory() as name:
            kills, wrong = campaign(Path(name), kind)
        print(f"{kind}: {len(wrong)} wrong of {kills} kills", *wrong, sep="\n  ")


if __name__ == "__main__":
    main()
