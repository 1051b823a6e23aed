"""What a run's latency budget promised: how much, and on what it was measured.

A command of the user's is not kept: a run is data, and what it holds is never executed.
"""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, ClassVar

from pydantic import ConfigDict, Field

from fxprune.export.bench import Target
from fxprune.export.latency import Choice
from fxprune.files import read_record, write_record
from fxprune.runs.schema import STRICT

FILE = "latency.json"


@dataclass(frozen=True)
class Promise:
    """How long an exported network may take.

    Attributes:
        asked: the share of the dense network's time.
        threads: of ONNX Runtime.
        cold: whether the time right after another network's is meant.
        by_command: a command of the user's measured.
        dense: seconds of a call of the dense network, measured with those
        compact: of the network whose widths were chosen; None in runs of older versions.
    """

    __pydantic_config__: ClassVar[ConfigDict] = STRICT

    asked: Annotated[float, Field(gt=0, le=1)]
    threads: Annotated[int, Field(ge=1, le=4096)]
    cold: bool
    by_command: bool
    dense: Annotated[float, Field(ge=0)] | None = None
    compact: Annotated[float, Field(ge=0)] | None = None

    @property
    def target(self) -> Target:
        """On what it was measured, without the user's command."""
        return Target(self.threads, self.cold)

    @staticmethod
    def keep(run: Path, choice: Choice | None) -> None:
        """Write the promise of a choice into a run's folder; without one none is left there."""
        if choice is None:
            (run / FILE).unlink(missing_ok=True)
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
        )
        write_record(run / FILE, asdict(promise))

    @staticmethod
    def read(run: Path) -> "Promise | None":
        """Read it from a run's folder; None if the run has no measured latency budget.

        Raises:
            RunError: the file is damaged.
        """
        path = run / FILE
        return read_record(path, Promise) if path.exists() else None
