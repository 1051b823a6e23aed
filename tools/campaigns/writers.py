"""Let several processes write and read one folder, while some of them are killed.

    python -m tools.campaigns.writers --seconds 30 --seed 0

Right is: never two writers at once, no lock that outlives its process, and no reader that sees a
damaged file or the content of two writes.
"""

import argparse
import contextlib
import os
import random
import signal
import tempfile
import time
from pathlib import Path

import torch

from fxprune.errors import RunError
from fxprune.formats import read_tensors, write_tensors
from fxprune.runs.writer import only_writer

NAME = "a.safetensors"


def write(folder: Path, seed: int, told: int) -> None:
    """Take the lock again and again; a second writer at the same time is told as a W."""
    draw = random.Random(seed)
    while True:
        with contextlib.suppress(RunError), only_writer(folder):
            number = draw.randrange(10**6)
            holder = folder / "holder"
            holder.write_text(str(os.getpid()))
            tensors = {
                "a": torch.full((1000,), float(number)),
                "b" * (1 + number % 7): torch.ones(3),
            }
            write_tensors(folder / NAME, tensors, {"number": number})
            os.write(told, b"w" if holder.read_text() == str(os.getpid()) else b"W")


def read(folder: Path, told: int) -> None:
    while True:
        try:
            tensors, meta = read_tensors(folder / NAME)
            os.write(told, b"r" if float(tensors["a"][0]) == meta["number"] else b"R")
        except RunError:
            os.write(told, b"R")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=30.0)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    torch.set_num_threads(1)
    draw = random.Random(given.seed)
    ours, told = os.pipe()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_tensors(folder / NAME, {"a": torch.zeros(1000)}, {"number": 0})

        def start(number: int) -> int:
            child = os.fork()
            if child == 0:
                write(folder, number, told) if number % 2 else read(folder, told)
            return child

        children = {number: start(number) for number in range(6)}
        end, kills = time.monotonic() + given.seconds, 0
        while time.monotonic() < end:
            time.sleep(draw.random() * 0.2)
            number = draw.choice((1, 3, 5))
            os.kill(children[number], signal.SIGKILL)
            os.waitpid(children[number], 0)
            children[number] = start(number + 6 * (kills := kills + 1))
        for child in children.values():
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
        os.close(told)
        seen = b"".join(iter(lambda: os.read(ours, 65536), b""))
        with only_writer(folder):  # no lock is left, and what the killed ones left is swept
            left = sorted(item.name for item in folder.iterdir())
    print(f"writes: {seen.count(b'W')} beside another writer, of {seen.count(b'w')}")
    print(f"reads: {seen.count(b'R')} wrong, of {seen.count(b'r')}")
    print(f"{kills} writers were killed; left in the folder at the end: {', '.join(left)}")


if __name__ == "__main__":
    main()
