"""Export of a trained gated network, compared with the dense one: size, macs and time."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx, nn

from fxprune.equivalence import fresh_inputs
from fxprune.errors import ExportError
from fxprune.export.bench import HERE, Target, measure, timing_record
from fxprune.export.onnx import DEFAULT, ExportReport, OnnxOptions, export_onnx
from fxprune.export.reference import reference_of
from fxprune.export.timing import Effort, Timing
from fxprune.files import scratch
from fxprune.gated.module import GatedModule, example_of
from fxprune.passes import Pass, Program, apply, run_passes

EFFORT = Effort(precision=0.006, noisy=math.inf, patience=10.0)
"""A figure in any case, with what it is worth: the file is written, and good."""


@dataclass(frozen=True)
class Figures:
    """One of the two networks that are compared.

    Attributes:
        params: elements of its parameters.
        macs: multiply-accumulates of one example.
        bytes: size of its ONNX file.
        latency: median time of one example, as the target says, seconds.
    """

    params: int
    macs: int
    bytes: int
    latency: float


@dataclass(frozen=True)
class Comparison:
    """The exported network beside the dense one.

    Attributes:
        report: what was written, and how far it is from `reference`.
        reference: what it was checked against, in words.
        compact: its figures.
        dense: those of the dense network, exported likewise; None if it cannot be exported.
        timing: how long the compact file takes beside the dense one; None if there is no dense
            file.
        target: on what it was timed.
    """

    report: ExportReport
    reference: str
    compact: Figures
    dense: Figures | None
    timing: Timing | None
    target: Target

    def record(self) -> dict[str, Any]:
        """Give all figures as values that JSON can hold, with the file's SHA-256."""
        return {
            **asdict(self.report),
            "path": str(self.report.path),
            "reference": self.reference,
            "sha256": sha256(self.report.path.read_bytes()).hexdigest(),
            "compact": asdict(self.compact),
            "dense": None if self.dense is None else asdict(self.dense),
            "timing": None if self.timing is None else timing_record(self.timing, self.target),
        }


def compact_of(gated: GatedModule, *, passes: Sequence[str | Pass] = ()) -> fx.GraphModule:
    """Build the compact network in eval mode; `gated` is put into eval mode as well.

    Args:
        gated: the network.
        passes: what is done to the compact network then; see `fxprune.passes.run_passes`.
    """
    return run_passes(passes, apply("shrink", Program(gated.eval(), ()))).graph_module


def compare_onnx(
    gated: GatedModule,
    compact: nn.Module,
    dense: nn.Module,
    path: Path,
    *,
    dense_path: Path | None = None,
    real: Sequence[Tensor] = (),
    notes: Mapping[str, object] | None = None,
    target: Target = HERE,
    options: OnnxOptions = DEFAULT,
    begin: Callable[[], None] = lambda: None,
) -> Comparison:
    """Write `compact` as ONNX, checked against `reference_of`, and measure it beside `dense`.

    Args:
        gated: the network that was trained, in eval mode.
        compact: what `compact_of` made of it.
        dense: the original model with any values.
        path: where to.
        dense_path: where the dense network is written to; by default a temporary file.
        real: real inputs for the check, at least 7 examples.
        notes: more for the file's metadata.
        target: on what both are timed.
        options: names, operator set, and which sizes may vary.
        begin: called as each of three phases begins: writing, the dense network, timing.

    Raises:
        ExportError, ParityError, RunError: as `fxprune.export_onnx`.
    """
    example = example_of(gated)
    one = fresh_inputs(example, options.batch or 1, torch.Generator().manual_seed(0))
    best, cost = gated.best().widths, gated.cost
    begin()
    reference = reference_of(gated, dense)
    report = export_onnx(
        compact, example, path, inputs=real, reference=reference, notes=notes, options=options
    )
    begin()
    with scratch() as folder:
        try:
            full = export_onnx(dense, example, dense_path or folder / "dense.onnx", options=options)
        except ExportError:
            full = None
        begin()
        content = report.path.read_bytes()
        beside = content if full is None else full.path.read_bytes()
        timing = measure(beside, content, one, target, effort=EFFORT)
    seconds = [times[target.cold] for times in (timing.dense, timing.compact)]
    compacted = Figures(report.params, cost.macs(best), report.bytes, seconds[1])
    original = None
    if full is not None:
        original = Figures(full.params, cost.dense_macs, full.bytes, seconds[0])
    other = "the dense network, removed channels at zero"
    words = "the gated network" if reference is gated else other
    beside_dense = None if full is None else timing
    return Comparison(report, words, compacted, original, beside_dense, target.settled())
