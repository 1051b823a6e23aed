"""The command export."""

import dataclasses
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
from fxprune.errors import OptionError

if TYPE_CHECKING:
    from fxprune.runs.run import Run
    from fxprune.trainer.job import Job


FORMATS = (".onnx", ".pt2", ".py")


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
    from fxprune.cli import lines, tables
    from fxprune.cli.exporting import Exporting, refuse_to_replace
    from fxprune.export.bench import Target
    from fxprune.export.onnx import OnnxOptions
    from fxprune.passes import parse
    from fxprune.registry import split
    from fxprune.runs.promise import COMMAND, Promise
    from fxprune.runs.sources import files_of

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
    exporting = Exporting(paths, lowered, calibrate, options, wanted, target)
    refuse_to_replace(exporting.files, output or named, files_of(run.spec, run.base))
    with console.phases(exporting.phases) as begin:
        record = exporting.write(run, job, begin)
    if ".onnx" in paths:
        record["asked"] = promise.asked if promise else None
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
