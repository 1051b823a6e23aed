"""The command export."""

import dataclasses
import json
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fxprune.cli import console
from fxprune.cli.arguments import (
    Json,
    LatencyCommand,
    TransformName,
    Trust,
    print_result,
    run_of,
)
from fxprune.errors import DataError, OptionError, RunError, SpecError

if TYPE_CHECKING:
    from torch import Tensor

    from fxprune.data import DataSet
    from fxprune.export.compare import Comparison
    from fxprune.gated.module import GatedModule
    from fxprune.runs.run import Run
    from fxprune.trainer.job import Job
    from fxprune.trainer.task import Task


FORMATS = (".onnx", ".pt2", ".py")
OTHER_SIZE = "give --dynamic-hw for images of any size, or instrument with --input and their size"


def export(
    targets: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="RUN FILE",
            help="The run directory, by default the one in the current directory, the newest if "
            "there are several; and the file to write, like --output.",
            show_default=False,
        ),
    ] = None,
    onnx: Annotated[bool, typer.Option("--onnx", help="Write ONNX; the default.")] = False,
    pt2: Annotated[
        bool, typer.Option("--pt2", help="Write torch.export's format, which needs torch only.")
    ] = False,
    torch_code: Annotated[
        bool,
        typer.Option(
            "--torch",
            help="Write plain code, NAME.py, and its weights, NAME.safetensors: a network of "
            "torch's own layers that loads, and trains on, without fxprune.",
        ),
    ] = False,
    fp16: Annotated[
        bool, typer.Option("--fp16", help="Write NAME.fp16.onnx too, in half precision.")
    ] = False,
    int8: Annotated[
        bool,
        typer.Option("--int8", help="Write NAME.int8.onnx too, quantised on the run's data."),
    ] = False,
    calibrate: Annotated[
        int,
        typer.Option(min=1, metavar="N", help="Training examples that the ranges of int8 are of."),
    ] = 200,
    opset: Annotated[
        int | None,
        typer.Option(help="Version of ONNX's operators.", show_default="the exporter's"),
    ] = None,
    input_names: Annotated[
        str,
        typer.Option(
            metavar="NAME,…", help="Of the inputs in the ONNX file, in order.", show_default=False
        ),
    ] = "",
    output_names: Annotated[
        str,
        typer.Option(
            metavar="NAME,…",
            help="Of the outputs; by default the keys of a dict that the network returns.",
            show_default=False,
        ),
    ] = "",
    dynamic_hw: Annotated[
        bool, typer.Option("--dynamic-hw", help="Height and width of the images may vary.")
    ] = False,
    batch: Annotated[
        int | None,
        typer.Option(
            help="The one batch size that the file takes; by default any.", show_default=False
        ),
    ] = None,
    fold: Annotated[
        bool,
        typer.Option(
            "--fold",
            help="Make batch norms part of the layers before them; short for --passes fold.",
        ),
    ] = False,
    passes: Annotated[
        str,
        typer.Option(
            "--passes",
            metavar="PASS,…",
            help="What is done to the compact network before it is written: fold, or passes of "
            "your own as my_package.module:Class, with options in braces: "
            "'fold,mine:Quantize{bits=8}'. Each result is checked, and so is the file.",
            show_default=False,
        ),
    ] = "",
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            metavar="PATH",
            help="The file or folder to write to; by default NAME.onnx here.",
            show_default=False,
        ),
    ] = None,
    latency_command: LatencyCommand = "",
    transform: TransformName = "",
    trust: Trust = False,
    as_json: Json = False,
) -> None:
    """Write the compact network, checked against the trained one before it gets its name.

    The file is run at batch sizes 1, 2 and 7 on fresh random inputs, and on real ones if the data
    of the training are at hand. If an output differs, no file is written and the exit code is 1.

    Examples: [bold]fxprune export --onnx[/bold],
    [bold]fxprune export model.fxprune --onnx --pt2 -o build/[/bold],
    [bold]fxprune export --passes fold,my_passes:DropDropout[/bold].
    """
    from fxprune.cli import lines, records, tables
    from fxprune.cli.spec import network_of
    from fxprune.export.bench import Target
    from fxprune.export.compare import compact_of, compare_onnx
    from fxprune.export.onnx import OnnxOptions
    from fxprune.export.plain import export_plain
    from fxprune.export.pt2 import export_pt2
    from fxprune.export.reference import reference_of
    from fxprune.gated.module import zero_inputs
    from fxprune.passes import parse
    from fxprune.registry import split
    from fxprune.runs.promise import COMMAND, Promise
    from fxprune.runs.sources import files_of
    from fxprune.trainer.low_precision import Lowering, OutputForm

    texts = (["fold"] if fold else []) + split(passes)
    wanted = [parse(text) for text in dict.fromkeys(texts)]
    folder, named = _targets(targets or [])
    run = run_of(folder, trust=trust)
    job = _job_of(run, transform)
    promise = Promise.read(run.path)
    target = promise.target if promise else Target()
    if latency_command:
        target = dataclasses.replace(target, command=latency_command)
    elif target.command:
        run.require(COMMAND, target.command)
    options = OnnxOptions(opset, _names(input_names), _names(output_names), dynamic_hw, batch)
    lowered = [kind for kind, asked in (("fp16", fp16), ("int8", int8)) if asked]
    paths = _places(
        output or named,
        run.path.resolve().stem,
        {".onnx": onnx or bool(lowered), ".pt2": pt2, ".py": torch_code},
    )
    sources = files_of(run.spec, run.base)
    refuse_to_replace(_files(paths, lowered), output or named, sources)
    with console.phases(_phases(paths, lowered)) as begin:
        begin()
        dense = network_of(run)
        gated = run.load(dense)
        begin()
        compact = compact_of(gated, passes=wanted)
        record = records.of_run(run, gated)
        record |= {key: compact.meta[key] for key in ("folded", "unfolded") if key in compact.meta}
        begin()
        source = _data_of(run, job)
        data = None if source is None else source[0]
        example = zero_inputs(gated)
        real = real_inputs(data, example, dynamic_hw)
        if int8:
            _check_calibration(source, example, real, dynamic_hw)
        if ".onnx" in paths:
            notes = notes_of(run, data)
            dense.load_state_dict(gated.dense_state_dict())
            compared = compare_onnx(
                gated,
                compact,
                dense,
                paths[".onnx"],
                real=real,
                notes=notes,
                target=target,
                options=options,
                begin=begin,
            )
            record["onnx"] = compared.record()
            keep_export(run, gated, compared)
            record["asked"] = promise.asked if promise else None
            if lowered:
                layout = OutputForm(isinstance(compact(*example), dict), batch)
                scored = source if real else None  # others cannot be run in the file
                lowering = Lowering(lowered, scored, example, real, calibrate, layout)
                record["files"] = [
                    records.of_file(file)
                    for file in lowering.write(paths[".onnx"], compared.report, begin)
                ]
        if ".py" in paths:
            begin()
            record["torch"] = records.of_file(export_plain(compact, example, paths[".py"]))
        if ".pt2" in paths:
            begin()
            record["pt2"] = records.of_file(
                export_pt2(compact, example, paths[".pt2"], reference=reference_of(gated, dense))
            )
    print_result(record, tables.show_export, as_json)
    for line in lines.remarks(record):
        console.note(line)
    if promise and promise.by_command and not target.command:  # a run of an older version
        console.note(
            "the budget was measured by a command: give it as --latency-command to repeat that"
        )


def _targets(targets: list[str]) -> tuple[Path | None, Path | None]:
    """Tell the run from the file to write, by the file's ending."""
    files = [Path(target) for target in targets if Path(target).suffix in FORMATS]
    folders = [Path(target) for target in targets if Path(target).suffix not in FORMATS]
    if len(files) > 1 or len(folders) > 1:
        raise OptionError(
            f"cannot read {' '.join(targets)!r}", do="name one run and at most one file to write"
        )
    return next(iter(folders), None), next(iter(files), None)


def _names(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(",") if part.strip())


def _places(wanted: Path | None, name: str, asked: dict[str, bool]) -> dict[str, Path]:
    """Choose the file to write for each format asked for, by its ending; ONNX if none is."""
    ending = wanted.suffix if wanted is not None and wanted.suffix in FORMATS else None
    kinds = [kind for kind, on in asked.items() if on] or [ending or ".onnx"]
    if ending is not None and ending not in kinds:
        raise OptionError(
            f"{wanted} ends in {ending}",
            why=f"what is asked for is {' and '.join(kinds)}",
            do=f"name a folder or a file that ends in {kinds[0]}, or ask for {ending} as well",
        )
    if ending is None:
        folder = wanted or Path()
        if wanted is not None and not folder.is_dir():
            raise OptionError(
                f"there is no folder {folder}", do=f"give a folder, or a file ending in {kinds[0]}"
            )
        return {kind: folder / f"{name}{kind}" for kind in kinds}
    assert wanted is not None
    return {kind: wanted.with_suffix(kind) for kind in kinds}


def _phases(paths: Collection[str], lowered: Sequence[str]) -> list[str]:
    """Name what an export does, one after the other, for the files with these endings."""
    phases = ["building the network", "shrinking it", "reading the data"]
    # most options are of ONNX: what is refused of them is so before other files are written
    phases += ["writing .onnx", "exporting the dense network", "timing"] if ".onnx" in paths else []
    phases += [f"writing {kind}" for kind in lowered]
    phases += ["scoring the files"] if lowered else []
    phases += ["writing plain code"] if ".py" in paths else []
    phases += ["writing .pt2"] if ".pt2" in paths else []
    return phases


def _job_of(run: "Run", transform: str | None) -> "Job | None":
    """Read what the run was trained on and how; with this transform where one is given.

    Raises:
        RunError: the run names code that is not trusted; nothing of it is imported before.
    """
    from fxprune.cli.spec import maker
    from fxprune.data import own_transforms
    from fxprune.trainer.job import Job

    job = Job.read(run)
    if job is None:
        return None
    if transform:
        job = dataclasses.replace(job, transform=transform)
        job.record(run, ["transform"])
    job.require(run)
    if transform:
        own_transforms(maker(run.base)(transform, "transform"), transform)
    return job


def _files(paths: dict[str, Path], lowered: Sequence[str]) -> list[Path]:
    """List the files that an export writes."""
    found = list(paths.values())
    found += [paths[".py"].with_suffix(".safetensors")] if ".py" in paths else []
    return [*found, *(paths[".onnx"].with_suffix(f".{kind}.onnx") for kind in lowered)]


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
