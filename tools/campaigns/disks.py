"""Write runs on disks that are full or read-only, and go on when they no longer are.

    python -m tools.campaigns.disks

A child with its own mounts (`unshare`) makes, trains and exports a run on a disk of a few pages,
then of more, until it comes to its end. Right is: each refusal is an `FxpruneError`, what was
there before stays whole, no temporary file is left, and what is done in the end has the bits of
the same on a roomy disk. Needs Linux, and the right to make a mount.
"""

import argparse
import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import torch

import fxprune
from fxprune.errors import FxpruneError
from fxprune.files import is_temporary
from fxprune.runs.run import Run
from tools.campaigns.kills import content, make, train
from tools.campaigns.mutants import build_model

PAGES = (0, 1, 2, 3, 4, 5, 6, 8, 10, 12, 16, 20, 24, 32, 48, 64)
"""Sizes of the disk in pages of 4 KiB, over what is there already."""


def export(path: Path) -> None:
    """Write ONNX beside a run, on the same disk."""
    compact = fxprune.shrink(Run.open(path).load(build_model()).eval())
    fxprune.export_onnx(compact, (torch.zeros(2, 1, 8, 8),), path.parent / "a.onnx")


WORKS: dict[str, Callable[[Path], None]] = {"make": make, "train": train, "export": export}


def pages_used(disk: Path) -> int:
    used = os.statvfs(disk)
    return used.f_blocks - used.f_bfree


def resize(disk: Path, pages: int, *options: str) -> None:
    words = ",".join(("remount", f"size={max(pages, 1) * 4096}", *options))
    subprocess.run(["mount", "-o", words, str(disk)], check=True)


def trial(disk: Path, name: str, room: int | None) -> str:
    """Do a work with so many pages of room, None for a read-only disk; returns how it went."""
    path = disk / "a.fxprune"
    before = {item: item.read_bytes() for item in disk.rglob("*") if item.is_file()}
    if room is None:
        resize(disk, 100_000, "ro")
    else:
        resize(disk, pages_used(disk) + room)
    try:
        WORKS[name](path)
        came = "done"
    except FxpruneError:
        came = "refused"
    except Exception as error:
        came = f"wrong: {type(error).__name__}: {error}"[:200]
    finally:
        resize(disk, 100_000, "rw")
    if came == "refused":
        left = [item.name for item in disk.rglob("*") if is_temporary(item.name)]
        if left:
            came = f"wrong: left {', '.join(left)}"
        kept = {item: item.read_bytes() for item in before if item.exists()}
        # a training that is refused later may have written whole epochs before
        if name != "train" and kept != before:
            came = "wrong: what was there has changed"
    return came


def campaign(disk: Path) -> Counter[str]:
    counts: Counter[str] = Counter()
    path = disk / "a.fxprune"
    roomy = disk.parent / "roomy"
    roomy.mkdir(exist_ok=True)
    for name, work in WORKS.items():
        work(roomy / "a.fxprune")
        expected = content(roomy / "a.fxprune")
        start = disk.parent / "start"
        shutil.rmtree(start, ignore_errors=True)
        if path.exists():
            shutil.copytree(path, start)
        for room in (None, *PAGES):
            came = trial(disk, name, room)
            counts[f"{name}: {came}"] += 1
            with contextlib.suppress(FileNotFoundError):
                (disk / "a.onnx").unlink()
            work(path)  # with room again, it goes on
            if content(path) != expected:
                counts[f"{name}: wrong: other content"] += 1
            shutil.rmtree(path)
            if start.exists():
                shutil.copytree(start, path)
        work(path)
    return counts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--inside", type=Path, help=argparse.SUPPRESS)
    inside = parser.parse_args().inside
    if inside is None:
        with tempfile.TemporaryDirectory() as name:
            words = [sys.executable, "-m", "tools.campaigns.disks", "--inside", name]
            sys.exit(subprocess.run(["unshare", "--mount", "--map-root-user", *words]).returncode)
    torch.set_num_threads(1)
    os.environ["XDG_STATE_HOME"] = str(inside / "state")
    disk = inside / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=100m", "tmpfs", str(disk)], check=True)
    for what, count in sorted(campaign(disk).items()):
        print(f"{count:6}  {what}")


if __name__ == "__main__":
    main()
