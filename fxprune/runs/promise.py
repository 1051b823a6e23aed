"""What the latency budget of a run promises: a share of the dense time, and how it was timed.

A command of the user's is executed only where the user gave it to this run, or trusts the run; see
`fxprune.runs.trust`.
"""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

from pydantic import Field

from fxprune.export.bench import Target
from fxprune.export.latency import Choice
from fxprune.formats import read_record, write_record
from fxprune.runs.plan import Text
from fxprune.runs.run import Run
from fxprune.runs.schema import Strict

FILE = "latency.json"
COMMAND = "latency command"
"""The kind of the command's name; see `fxprune.runs.trust`."""


@dataclass(frozen=True)
class Promise(Strict):
    """How long an exported network may take.

    Attributes:
        asked: the share of the dense network's time.
        threads: of ONNX Runtime.
        cold: whether the time right after another network's is meant.
        by_command: a command of the user's measured.
        command: that command; empty if there is none, or in a run of an older version.
        dense: measured seconds of a call of the dense network; None in runs of older versions.
        compact: likewise of the compact network whose widths were chosen.
    """

    asked: Annotated[float, Field(gt=0, le=1)]
    threads: Annotated[int, Field(ge=1, le=4096)]
    cold: bool
    by_command: bool
    dense: Annotated[float, Field(ge=0)] | None = None
    compact: Annotated[float, Field(ge=0)] | None = None
    command: Text = ""

    @property
    def target(self) -> Target:
        """Return on what it was measured; its command is the run's, to be trusted first."""
        return Target(self.threads, self.cold, self.command)

    @staticmethod
    def keep(run: Run, choice: Choice | None) -> None:
        """Write the promise of a choice into a new run, if the user asked for one."""
        if choice is None:
            return
        target = choice.target.settled()
        timing, kind = choice.known.timing, int(target.cold)
        promise = Promise(
            choice.budget.value,
            target.threads or 1,
            target.cold,
            bool(target.command),
            timing.dense[kind],
            timing.compact[kind],
            target.command,
        )
        write_record(run.path / FILE, asdict(promise))
        if target.command:
            run.record(COMMAND, target.command)

    @staticmethod
    def inherit(old: Run, new: Run) -> None:
        """Write the promise of a run into one that is made of it, if it has one."""
        promise = Promise.read(old.path)
        if promise is not None:
            write_record(new.path / FILE, asdict(promise))
            old.inherit(new, COMMAND, promise.command)

    @staticmethod
    def read(run: Path) -> "Promise | None":
        """Read it from a run's folder; None if the run has no measured latency budget.

        Raises:
            RunError: the file is damaged.
        """
        path = run / FILE
        there = path.exists() or path.is_symlink()  # a link to nothing is damage
        return read_record(path, Promise) if there else None
