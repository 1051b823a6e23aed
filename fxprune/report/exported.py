"""Figures of a run's last export, as export.json keeps them for its report."""

from dataclasses import asdict, dataclass
from typing import Annotated, Any, Literal

from pydantic import Field

from fxprune.export.compare import Comparison
from fxprune.formats import fitting, read_record, write_record
from fxprune.runs.plan import Text
from fxprune.runs.run import Run
from fxprune.runs.schema import Strict

FILE = "export.json"

Count = Annotated[int, Field(ge=0)]
Positive = Annotated[float, Field(ge=0)]


@dataclass(frozen=True)
class _Figures(Strict):
    """The schema of `fxprune.export.compare.Figures`."""

    params: Count
    macs: Count
    bytes: Count
    latency: Positive


@dataclass(frozen=True)
class _Quotient(Strict):
    """The schema of a quotient of times with the times."""

    median: Positive
    low: Positive
    high: Positive
    rounds: Count
    dense: Positive
    compact: Positive


@dataclass(frozen=True)
class _Timing(Strict):
    """The schema of `fxprune.export.bench.timing_record`."""

    hot: _Quotient
    cold: _Quotient
    binds: Literal["hot", "cold"]
    threads: Count
    command: Text
    quiet: bool


@dataclass(frozen=True)
class _Onnx(Strict):
    """The schema of `fxprune.export.compare.Comparison.record`."""

    path: Text
    bytes: Count
    opset: Count
    params: Count
    max_abs_error: Positive
    max_rel_error: Positive
    tolerance: Positive
    batches: list[Count]
    seed: int
    real_examples: Count
    reference: Text
    sha256: Text
    compact: _Figures
    dense: _Figures | None
    timing: _Timing | None


@dataclass(frozen=True)
class Exported(Strict):
    """What an export wrote, what it was checked against, and what it costs.

    Attributes:
        onnx: the figures of the ONNX file.
    """

    onnx: _Onnx

    @staticmethod
    def keep(run: Run, compared: Comparison) -> None:
        """Write the figures of an export into its run, under a checksum.

        Raises:
            RunError: they cannot be written.
        """
        path = run.path / FILE
        record = {"onnx": compared.record()}
        write_record(path, asdict(fitting(Exported, record, path)))

    @staticmethod
    def read(run: Run) -> dict[str, Any] | None:
        """Read the figures of a run's last export as plain values; None before the first.

        Raises:
            RunError: the file is damaged.
        """
        path = run.path / FILE
        if not (path.exists() or path.is_symlink()):
            return None
        onnx = asdict(read_record(path, Exported).onnx)
        return {"onnx": {**onnx, "seed": str(onnx["seed"])}}  # JavaScript is exact to 2**53
