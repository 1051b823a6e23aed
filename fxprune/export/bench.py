"""Measures compact networks beside the dense one, and keeps what was measured without noise."""

import contextlib
import hashlib
import os
import platform
import shlex
import subprocess
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor

from fxprune.bank.exchange import Selection
from fxprune.channels.graph import Widths
from fxprune.equivalence import fresh_inputs, in_memory
from fxprune.errors import BudgetError, OptionError, RunError
from fxprune.export.onnx import onnx_content
from fxprune.export.runtime import runtime
from fxprune.export.timing import USUAL, Effort, Quotient, Timing, compare
from fxprune.files import scratch
from fxprune.formats import read_json, write_json
from fxprune.gated.module import GatedModule
from fxprune.passes import Program, apply

Progress = Callable[[str], None]

MODEL = "{model}"
"""What stands for the ONNX file in a user's command."""

COMMAND_ROUNDS = (5, 15)  # the fewest and the most turns of a user's command
LONGER = Effort(precision=0.008, patience=25.0)  # for what is measured afresh


@dataclass(frozen=True)
class Target:
    """On what a network shall be fast.

    Attributes:
        threads: of ONNX Runtime on this machine; None for as many as torch uses.
        cold: the budget binds the time of a call right after another network's, not of one in a
            loop.
        command: measures elsewhere: it is run with the file's name for "{model}", and prints
            milliseconds. Empty for ONNX Runtime on this machine.

    Raises:
        OptionError: no such number of threads, or the command does not name the file.
    """

    threads: int | None = None
    cold: bool = False
    command: str = ""

    def __post_init__(self) -> None:
        """Check the fields."""
        if self.threads is not None and self.threads < 1:
            raise OptionError(f"threads cannot be {self.threads}", do="give 1 or more")
        if self.command and MODEL not in self.command:
            raise OptionError(
                f"the latency command does not say where the file goes: {self.command}",
                do=f"write {MODEL} for it, such as 'ssh board run {MODEL}'",
            )
        try:
            shlex.split(self.command)
        except ValueError as error:
            raise OptionError(
                f"cannot read the latency command {self.command}",
                why=str(error),
                do="close each quote that is opened",
            ) from error

    def settled(self) -> "Target":
        """Settle the number of threads."""
        return self if self.threads else replace(self, threads=torch.get_num_threads())


HERE = Target()
"""ONNX Runtime on this machine, in a loop."""


def measure(
    dense: bytes,
    compact: bytes,
    example: tuple[Tensor, ...],
    target: Target,
    *,
    effort: Effort = USUAL,
    progress: Progress = lambda _: None,
) -> Timing:
    """Time two ONNX files in turns, in sessions of their own.

    Args:
        dense: content of the dense network's file.
        compact: content of the other one.
        example: one tensor for each input; one example is what is measured.
        target: on what.
        effort: how well, and for how long.
        progress: called with how far it is.

    Raises:
        BudgetError: the machine is too busy, or the user's command fails.
        ExportError: ONNX Runtime cannot run a file.
    """
    if target.command:
        return _measure_by_command(dense, compact, target.command, progress)
    threads = target.settled().threads or 1
    arrays = [tensor.detach().cpu().numpy() for tensor in example]
    runs = [runtime(content, threads) for content in (dense, compact)]
    return compare(
        lambda: runs[0](arrays),
        lambda: runs[1](arrays),
        threads=threads,
        cold=target.cold,
        effort=effort,
        progress=progress,
    )


def timing_record(timing: Timing, target: Target) -> dict[str, Any]:
    """Give the quotients and the seconds as values that JSON can hold."""
    seconds = {
        kind: {"dense": timing.dense[i], "compact": timing.compact[i]}
        for i, kind in enumerate(("hot", "cold"))
    }
    return {
        "hot": {**asdict(timing.hot), **seconds["hot"]},
        "cold": {**asdict(timing.cold), **seconds["cold"]},
        "binds": "cold" if target.cold else "hot",
        "threads": timing.threads,
        "command": target.command,
        "quiet": timing.quiet,
    }


def _measure_by_command(dense: bytes, compact: bytes, command: str, progress: Progress) -> Timing:
    fewest, most = COMMAND_ROUNDS
    rounds: list[tuple[float, float]] = []
    with scratch() as folder:
        paths = [folder / name for name in ("dense.onnx", "compact.onnx")]
        for path, content in zip(paths, (dense, compact)):
            path.write_bytes(content)
        while True:
            rounds.append((_run_command(command, paths[0]), _run_command(command, paths[1])))
            if len(rounds) < fewest:
                continue
            found = Quotient.of([ours / theirs for theirs, ours in rounds])
            progress(f"{len(rounds)} rounds, {100 * found.median:.1f} % of dense")
            if found.error <= (USUAL.precision if len(rounds) < most else USUAL.noisy):
                break
            if len(rounds) >= 2 * most:
                raise BudgetError(
                    f"what {command} prints varies too much",
                    why=f"the middle half of {len(rounds)} quotients lies between "
                    f"{100 * found.low:.0f} and {100 * found.high:.0f} %",
                    do="let it measure longer: it may print the median of many calls",
                )
    middle = [sorted(times)[len(times) // 2] for times in zip(*rounds)]
    return Timing(found, found, (middle[0], middle[0]), (middle[1], middle[1]), 0, True)


def _run_command(command: str, path: Path) -> float:
    """Run the user's command on a file, and read the seconds from what it prints as milliseconds.

    Raises:
        BudgetError: it fails, or does not print a number above 0 last.
    """
    words = [word.replace(MODEL, str(path)) for word in shlex.split(command)]
    try:
        done = subprocess.run(
            words, capture_output=True, text=True, errors="backslashreplace", check=False
        )
    except OSError as error:
        raise BudgetError(
            f"cannot run the latency command {words[0]}",
            why=str(error),
            do="give a program that can be started from here",
        ) from error
    last = (done.stdout.split() or [""])[-1]
    with contextlib.suppress(ValueError):
        if done.returncode == 0 and 0 < float(last) < float("inf"):
            return float(last) / 1000
    complaint = (done.stderr.strip() or done.stdout.strip() or "nothing").splitlines()[-1]
    raise BudgetError(
        f"the latency command measured nothing: {command}",
        why=f"its exit code is {done.returncode}, and it says: {complaint}",
        do="let it print the milliseconds of one example as its last word",
    )


@dataclass(frozen=True)
class Known:
    """What was measured of a network.

    Attributes:
        timing: beside the dense network.
        date: when, such as "2026-11-28".
        confirmed: whether it was measured afresh after it was chosen.
        fresh: it was measured now, not found in the file.
    """

    timing: Timing
    date: str
    confirmed: bool = False
    fresh: bool = False


class Bench:
    """Measures networks of any widths on a target, one example at a time.

    Quiet measurements are kept in a file for each network, target, version of ONNX Runtime, shape
    of the inputs and machine. To be used in a `with`.

    Attributes:
        target: on what is measured.
        known: what was measured, by widths.
    """

    def __init__(
        self,
        program: Program,
        inputs: tuple[Tensor, ...],
        target: Target = HERE,
        *,
        folder: Path | None = None,
        remeasure: bool = False,
        progress: Progress = lambda _: None,
    ) -> None:
        """Take the network over.

        Args:
            program: the coupled network with all channels gated; see `passes/gate`.
            inputs: example inputs; the first example of each is what is measured.
            target: on what.
            folder: of the file; by default `fxprune/latency` in the user's cache directory.
            remeasure: forget what is in the file.
            progress: called with what is measured, and how far it is.
        """
        gated = program.module
        assert isinstance(gated, GatedModule)
        self.target = target.settled()
        self.gated, self.inputs = gated.cpu().eval(), in_memory(inputs)
        folder = cache_folder() if folder is None else folder
        self.path = folder / f"{self._key()}.json"
        self.known = {} if remeasure else _read(self.path)
        self.progress = progress
        self._one = fresh_inputs(self.inputs, 1, torch.Generator().manual_seed(0))
        self._exits = contextlib.ExitStack()
        self._folder = Path()

    def __enter__(self) -> Self:
        """Make room for the networks that are exported."""
        self._folder = self._exits.enter_context(scratch())
        return self

    def __exit__(self, *error: object) -> None:
        """Remove the networks that were exported."""
        self._exits.close()

    @property
    def sizes(self) -> Widths:
        """The widths of the dense network."""
        return self.gated.channels.layout.sizes

    def __call__(self, widths: Widths) -> Known:
        """Return the time at the widths, from the file if it is there.

        Raises:
            BudgetError: the machine is too busy.
            ExportError: the network cannot be exported.
            RunError: the file is damaged.
        """
        return self.known[widths] if widths in self.known else self._measure(widths, USUAL)

    def afresh(self, widths: Widths) -> Known:
        """Measure the time at the widths once more and for longer; raises as a call does."""
        return self._measure(widths, LONGER, confirmed=True)

    def _measure(self, widths: Widths, effort: Effort, *, confirmed: bool = False) -> Known:
        share = sum(widths) / sum(self.sizes)
        what = f"{100 * share:.0f} % of the channels" + (", once more" if confirmed else "")
        self.progress(f"{what}: exporting")
        contents = self.content(self.sizes), self.content(widths)
        timing = measure(
            *contents,
            self._one,
            self.target,
            effort=effort,
            progress=lambda text: self.progress(f"{what}: {text}"),
        )
        found = Known(timing, date.today().isoformat(), confirmed, fresh=True)
        self.known[widths] = found
        if timing.quiet:  # noise is not kept
            self._keep(widths, found)
        return found

    def _keep(self, widths: Widths, found: Known) -> None:
        """Add a measurement to the file; where none can be written, the next run measures again."""
        kept = read_json(self.path) if self.path.exists() else {}
        kept["/".join(map(str, widths))] = {
            "timing": found.timing.to_json(),
            "date": found.date,
            "confirmed": found.confirmed,
        }
        with contextlib.suppress(OSError, RunError):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            write_json(self.path, kept)

    def content(self, widths: Widths) -> bytes:
        """Export the network at these widths, once: the content of its ONNX file."""
        name = hashlib.sha256(repr(widths).encode()).hexdigest()[:20]
        path = self._folder / f"{name}.onnx"
        if not path.exists():
            offsets = self.gated.channels.layout.offsets
            rows = [
                torch.arange(start, start + width, device="cpu")
                for start, width in zip(offsets, widths)
            ]
            self.gated.settle(Selection(torch.cat(rows), widths))
            compact = apply("shrink", Program(self.gated, ())).module
            path.write_bytes(onnx_content(compact, self.inputs))
        return path.read_bytes()

    def _key(self) -> str:
        graph, channels = self.gated.graph, self.gated.channels
        shapes = [(tuple(tensor.shape[1:]), str(tensor.dtype)) for tensor in self.inputs]
        here = (platform.node(), platform.machine(), platform.processor(), os.cpu_count())
        parts = (str(graph), channels.macs_terms, channels.params_terms, shapes, here)
        tools = (version("onnxruntime"), torch.__version__, self.target)
        return hashlib.sha256(repr((parts, tools)).encode()).hexdigest()[:20]


def _read(path: Path) -> dict[Widths, Known]:
    """Read what was measured, by widths.

    Raises:
        RunError: the file is damaged.
    """
    try:
        kept: dict[str, Any] = read_json(path) if path.exists() else {}
        return {
            tuple(map(int, name.split("/"))): Known(
                Timing.from_json(value["timing"]),
                time.strftime("%Y-%m-%d", time.strptime(value["date"], "%Y-%m-%d")),
                bool(value["confirmed"]),
            )
            for name, value in kept.items()
        }
    except (AttributeError, TypeError, KeyError, ValueError) as error:
        raise RunError(
            f"cannot read {path}",
            why="it is damaged: it does not hold times by widths",
            do="delete it, or give --remeasure",
        ) from error


def cache_folder() -> Path:
    """Tell where measurements are kept: `fxprune/latency` in the user's cache directory."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "fxprune" / "latency"
