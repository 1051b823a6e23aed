"""Send signals to `fxprune` at random times, and look at how it ends.

    python -m tools.campaigns.signals --times 20 --seed 0

Right is: one line, exit code 143 or 130, nothing in the temporary folder, and a training that goes
on to the same bits as one that was never ended.
"""

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

from fxprune.formats import read_tensors

COMMAND = [sys.executable, "-m", "fxprune"]
TRAIN = ["train", "a.fxprune", "--data", "digits", "--epochs", "3", "--device", "cpu"]
MODEL = """
import torch
from tools.campaigns.mutants import build_model as small
def build_model():
    net = small()
    net[-1] = torch.nn.Linear(8, 10)
    return net
example_inputs = torch.zeros(2, 1, 8, 8)
"""


def run(*arguments: str, folder: Path) -> None:
    subprocess.run([*COMMAND, *arguments], cwd=folder, check=True, capture_output=True)


def ended(arguments: list[str], folder: Path, number: int, seconds: float) -> str:
    """Ends a command with a signal after some seconds; returns what went wrong."""
    started = subprocess.Popen(
        [*COMMAND, *arguments], cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    time.sleep(seconds)
    began = time.monotonic()
    started.send_signal(number)
    try:
        _, said = started.communicate(timeout=60)
    except subprocess.TimeoutExpired:
        started.kill()
        started.communicate()
        return "hang"
    if started.returncode == 0:
        return ""  # it had ended before
    lines = [
        line
        for line in said.decode().splitlines()
        if line.strip() and not line.startswith(("epoch", "note"))
    ]
    if started.returncode != 128 + number or len(lines) != 1:
        return f"exit code {started.returncode} after {seconds:.2f} s, {len(lines)} lines: {lines}"
    print(f"{time.monotonic() - began:.2f} s to the end: {lines[0]}", file=sys.stderr)
    return ""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--times", type=int, default=20)
    parser.add_argument("--longest", type=float, default=12.0, help="Seconds before a signal.")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    draw = random.Random(given.seed)
    with tempfile.TemporaryDirectory() as name, tempfile.TemporaryDirectory() as scratch:
        folder = Path(name)
        os.environ |= {"TMPDIR": scratch, "XDG_STATE_HOME": name, "OMP_NUM_THREADS": "1"}
        (folder / "model.py").write_text(MODEL)
        run("instrument", "model.py", "-o", "a.fxprune", folder=folder)
        run("instrument", "model.py", "-o", "b.fxprune", folder=folder)
        run(*[word.replace("a.fxprune", "b.fxprune") for word in TRAIN], folder=folder)
        wrong = []
        for _ in range(given.times):
            number = draw.choice((signal.SIGTERM, signal.SIGINT))
            command = draw.choice((TRAIN, TRAIN, TRAIN, ["export", "b.fxprune"]))
            wrong.append(ended(command, folder, number, draw.random() * given.longest))
        run(*TRAIN, folder=folder)
        one, two = (
            read_tensors(folder / run / "checkpoint.safetensors")[0]
            for run in ("a.fxprune", "b.fxprune")
        )
        same = one.keys() == two.keys() and all(torch.equal(one[key], two[key]) for key in one)
        left = [path.name for path in Path(scratch).iterdir()]
    wrong = [what for what in wrong if what]
    print(f"{len(wrong)} wrong of {given.times} signals", *wrong, sep="\n  ")
    print(f"the training that was ended again and again came to the same bits: {same}")
    print(f"left in the temporary folder: {', '.join(left) or 'nothing'}")


if __name__ == "__main__":
    main()
