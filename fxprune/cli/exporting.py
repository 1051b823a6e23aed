"""Exports of the command line: what is written, after which checks, with which figures."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fxprune.cli import console
from fxprune.errors import DataError, RunError, SpecError

if TYPE_CHECKING:
    from torch import Tensor, nn
    from torch.fx import GraphModule

    from fxprune.data import DataSet
    from fxprune.export.bench import Target
    from fxprune.export.compare import Comparison
    from fxprune.export.onnx import OnnxOptions
    from fxprune.gated.module import GatedModule
    from fxprune.passes import Pass
    from fxprune.runs.run import Run
    from fxprune.trainer.job import Job
    from fxprune.trainer.task import Task

OTHER_SIZE = (
    "give --input with their size when the run is made, or fxprune export --dynamic-hw for any size"
)


@dataclass(frozen=True)
class Exporting:
    """The files that an export writes.

    Attributes:
        paths: the file of each format, by its ending.
        lowered: the precisions in which the ONNX file is written too: fp16, int8.
        calibrate: how many training examples the ranges of int8 are of.
        options: of the ONNX file.
        passes: what is done to the compact network before.
        target: where and how the ONNX file is timed.
    """

    paths: dict[str, Path]
    lowered: list[str]
    calibrate: int
    options: "OnnxOptions"
    passes: "list[Pass]"
    target: "Target"

    @property
    def files(self) -> list[Path]:
        """All files that are written."""
        paths, found = self.paths, [*self.paths.values()]
        found += [paths[".py"].with_suffix(".safetensors")] if ".py" in paths else []
        return [*found, *(paths[".onnx"].with_suffix(f".{kind}.onnx") for kind in self.lowered)]

    @property
    def phases(self) -> list[str]:
        """What is done, one after the other."""
        names = ["building the network", "shrinking it"]
        # most options are of ONNX: what is refused of them is so before other files are written
        if ".onnx" in self.paths:
            names += ["reading the data", "writing .onnx", "exporting the dense network", "timing"]
        names += [f"writing {kind}" for kind in self.lowered]
        names += ["scoring the files"] if self.lowered else []
        names += ["writing plain code"] if ".py" in self.paths else []
        names += ["writing .pt2"] if ".pt2" in self.paths else []
        return names

    def write(self, run: "Run", job: "Job | None", begin: Callable[[], None]) -> dict[str, Any]:
        """Write the files; returns the record of the export.

        Args:
            run: the run of the network.
            job: what it was trained on, and how; None if that is not known.
            begin: called before each of the phases.
        """
        from fxprune.cli import records
        from fxprune.cli.spec import network_of
        from fxprune.export.compare import compact_of
        from fxprune.export.plain import export_plain
        from fxprune.export.pt2 import export_pt2
        from fxprune.export.reference import reference_of
        from fxprune.gated.module import example_of

        begin()
        dense = network_of(run)
        gated = run.load(dense)
        begin()
        compact = compact_of(gated, passes=self.passes)
        record = records.of_run(run, gated)
        record |= {key: compact.meta[key] for key in ("folded", "unfolded") if key in compact.meta}
        if ".onnx" in self.paths:
            begin()
            record |= self._write_onnx(run, _data_of(run, job), gated, compact, dense, begin)
        example = example_of(gated)
        if ".py" in self.paths:
            begin()
            # every other network is what `shrink` has just compared
            own = reference_of(gated, dense) if self.passes else None
            plain = export_plain(compact, example, self.paths[".py"], reference=own)
            record["torch"] = records.of_file(plain)
        if ".pt2" in self.paths:
            begin()
            reference = reference_of(gated, dense)
            pt2 = export_pt2(compact, example, self.paths[".pt2"], reference=reference)
            record["pt2"] = records.of_file(pt2)
        return record

    def _write_onnx(
        self,
        run: "Run",
        source: "tuple[DataSet, Task] | None",
        gated: "GatedModule",
        compact: "GraphModule",
        dense: "nn.Module",
        begin: Callable[[], None],
    ) -> dict[str, Any]:
        """Write the ONNX file, those of lower precision, and the figures for the run's report."""
        from fxprune.cli import records
        from fxprune.export.compare import compare_onnx
        from fxprune.gated.module import example_of
        from fxprune.trainer.low_precision import Lowering, OutputForm

        data = None if source is None else source[0]
        example, path = example_of(gated), self.paths[".onnx"]
        dynamic_hw = self.options.dynamic_hw
        real = real_inputs(data, example, dynamic_hw)
        if "int8" in self.lowered:
            _check_calibration(source, example, real, dynamic_hw)
        dense.load_state_dict(gated.dense_state_dict())
        compared = compare_onnx(
            gated,
            compact,
            dense,
            path,
            real=real,
            notes=notes_of(run, data),
            target=self.target,
            options=self.options,
            begin=begin,
        )
        record: dict[str, Any] = {"onnx": compared.record()}
        keep_export(run, gated, compared)
        if self.lowered:
            layout = OutputForm(isinstance(compact(*example), dict), self.options.batch)
            scored = source if real else None  # others cannot be run in the file
            lowering = Lowering(self.lowered, scored, example, real, self.calibrate, layout)
            files = lowering.write(path, compared.report, begin)
            record["files"] = [records.of_file(file) for file in files]
        return record


def refuse_to_replace(
    files: Sequence[Path], named: Path | None = None, sources: Sequence[Path] = ()
) -> None:
    """Refuse to replace the network's own code, and what the user did not name and made elsewhere.

    Raises:
        RunError: one of the files is that.
    """
    from fxprune.export.marks import is_exported

    known = {source.resolve() for source in sources}
    for file in files:
        is_source = file.resolve() in known
        if is_source or (file.exists() and file != named and not is_exported(file)):
            raise RunError(
                f"{file} is there already, and no export wrote it",
                why="the run's network is built from it" if is_source else "",
                do=f"give another place, such as -o small{file.suffix}, or move it away",
            )


def _data_of(run: "Run", job: "Job | None") -> "tuple[DataSet, Task] | None":
    """Load the data that the run was trained on, its loss and its metric; None if not at hand."""
    from fxprune.cli.spec import maker
    from fxprune.trainer.task import Task

    if job is None:
        return None
    try:
        made = job.made(run, maker(run.base))
        data = job.load(run.plan.inputs[0][0], made=made)
        return data, Task(made.get("loss"), made.get("metric"))
    except (DataError, SpecError, RunError) as error:
        console.note(f"checked on random inputs only: {error.what}")
        return None


def real_inputs(
    data: "DataSet | None", example: "Sequence[Tensor]", dynamic_hw: bool = False
) -> "tuple[Tensor, ...]":
    """Take a few inputs of the data; none, with a note, where a file does not take them.

    Args:
        data: of the run.
        example: the network's inputs.
        dynamic_hw: the file takes images of any height and width.
    """
    from torch import Tensor
    from torch.utils import _pytree as pytree

    from fxprune.export.onnx import BATCHES

    if data is None:
        return ()
    try:
        inputs, _ = next(data.val.batches(max(BATCHES)))
    except DataError as error:
        console.note(f"checked on random inputs only: {error.what}")
        return ()
    found = tuple(pytree.tree_leaves(inputs))
    if not all(isinstance(leaf, Tensor) for leaf in found):
        return ()
    misfit = _misfit(found, example, dynamic_hw)
    if misfit:
        console.note(f"checked on random inputs only: {misfit}; {OTHER_SIZE}")
        return ()
    return found


def _misfit(given: "Sequence[Tensor]", example: "Sequence[Tensor]", dynamic_hw: bool) -> str:
    """Say how examples of the data are not what a file takes; nothing if they are."""
    if len(given) != len(example):
        return f"an example of the data has {len(given)} inputs, the file takes {len(example)}"
    for own, wanted in zip(given, example, strict=True):
        varies = dynamic_hw and own.dim() == wanted.dim() == 4 and own.shape[1] == wanted.shape[1]
        if own.shape[1:] != wanted.shape[1:] and not varies:
            sizes = list(own.shape[1:]), list(wanted.shape[1:])
            return f"an example of the data is {sizes[0]}, the file takes {sizes[1]}"
    return ""


def notes_of(run: "Run", data: "DataSet | None") -> dict[str, str]:
    """Collect what the file says beside its figures: the run, the classes and the preprocessing."""
    notes = {"spec": run.spec, "policy": run.plan.policy, "budget": run.plan.budget}
    if data is not None:
        notes["classes"] = json.dumps(list(data.classes))
        notes["preprocessing"] = json.dumps(dict(data.preprocessing))
    return notes


def _check_calibration(
    source: "tuple[DataSet, Task] | None",
    example: "tuple[Tensor, ...]",
    real: "tuple[Tensor, ...]",
    dynamic_hw: bool,
) -> None:
    """Refuse, before anything is written, data that int8 cannot be calibrated on."""
    from fxprune.export.low_precision import refuse_not_finite
    from fxprune.trainer.low_precision import calibration_batches

    if source is None:
        raise DataError(
            "there are no data to calibrate int8 with",
            do="train the run with fxprune train first: the ranges are measured on its data",
        )
    given = next(calibration_batches(source[0], 2, 2))
    misfit = _misfit(given, example, dynamic_hw)
    if misfit or not real:
        raise DataError(
            f"the calibration data do not fit the network's {len(example)} inputs",
            why=misfit or "the validation examples, on which the file is scored, do not",
            do=OTHER_SIZE,
        )
    refuse_not_finite([given])


def keep_export(run: "Run", gated: "GatedModule", compared: "Comparison") -> None:
    """Keep the figures of an export for the run's report, and write that anew."""
    from fxprune.report.exported import Exported
    from fxprune.report.of_runs import write_beside

    try:
        Exported.keep(run, compared)
        write_beside(run, gated)
    except RunError as error:  # the file itself is written, and the run may be read-only
        console.note(f"the report of {run.path} was not written: {error.what}")
