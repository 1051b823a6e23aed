"""The command train."""

import contextlib
import dataclasses
import itertools
import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fxprune.cli import console
from fxprune.cli.arguments import (
    Crop,
    Flip,
    Json,
    Loss,
    Mean,
    Resize,
    RunFolder,
    Std,
    TransformName,
    Trust,
    print_result,
    run_of,
    show_tick,
)
from fxprune.cli.options import NONE_GIVEN, Given, options_of
from fxprune.cli.signals import ended, held
from fxprune.errors import OptionError, shell_word
from fxprune.trainer.options import PYTHON_ONLY, TrainOptions

if TYPE_CHECKING:
    from fxprune.runs.run import Run


OPTIONS = [
    field.name for field in dataclasses.fields(TrainOptions) if field.name not in PYTHON_ONLY
]


_MOST_PATIENCE = 1e8
"""In seconds: three years."""


@options_of(TrainOptions(), *OPTIONS)
def train(
    folder: RunFolder = None,
    data: Annotated[
        str | None,
        typer.Option(
            help="cifar10, cifar100, fashion-mnist, mnist, digits; folder:DIR with DIR/train "
            "and DIR/val and a folder per class in each, or with --val-split a folder per class; "
            "or [bold]data.py:factory[/bold], [bold]pkg.mod:factory[/bold] of your own.",
            show_default=False,
        ),
    ] = None,
    val_split: Annotated[
        float | None,
        typer.Option(
            metavar="SHARE",
            help="The share of each class of folder:DIR that only evaluates.",
            show_default=False,
        ),
    ] = None,
    loss: Loss = None,
    metric: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Your own metric, named and called as a loss is, or a class with update, compute "
            "and reset; by default the share of right answers.",
            show_default=False,
        ),
    ] = None,
    given: Given = NONE_GIVEN,
    data_root: Annotated[
        Path | None,
        typer.Option(help="Where data sets are, or are put.", show_default="data"),
    ] = None,
    download: Annotated[bool, typer.Option("--download", help="Fetch missing data.")] = False,
    mean: Mean = None,
    std: Std = None,
    resize: Resize = None,
    crop: Crop = None,
    flip: Flip = None,
    transform: TransformName = None,
    workers: Annotated[
        int | None,
        typer.Option(
            min=0,
            help="Processes that load images.",
            show_default="one a core for folder:, at most 8",
        ),
    ] = None,
    log: Annotated[
        str,
        typer.Option(
            metavar="tensorboard,csv",
            help="Write the metrics of each epoch for other tools, into the run directory.",
            show_default=False,
        ),
    ] = "",
    minutes: Annotated[
        float | None,
        typer.Option(
            help="Begin no epoch that would end after so many minutes; the same command goes on "
            "later.",
            show_default=False,
        ),
    ] = None,
    origin: Annotated[
        Path | None,
        typer.Option(
            "--from",
            metavar="RUN",
            help="Begin a new run with the network of this one as it is, and with its options "
            "where none are given; RUN is the new folder.",
            show_default=False,
        ),
    ] = None,
    patience: Annotated[
        float,
        typer.Option(help="With torchrun: seconds that a process waits for the others."),
    ] = 1800.0,
    trust: Trust = False,
    as_json: Json = False,
) -> None:
    """Train a run; called again, go on from its last epoch.

    Each epoch ends with the accuracy that the exported network would have now. Options that are
    not given are those of the last call for this run. Ctrl-C, SIGTERM and SIGHUP end it
    after a step, with a checkpoint. The processes of torchrun share each batch.

    Examples: [bold]fxprune train model.fxprune --data cifar10 --download --epochs 30[/bold],
    [bold]torchrun --nproc-per-node 2 -m fxprune train model.fxprune --data cifar10[/bold].
    """
    from fxprune.cli import lines, records, tables
    from fxprune.cli.spec import maker, network_of
    from fxprune.data.own import steps_of
    from fxprune.report.of_runs import write_beside
    from fxprune.trainer.job import Job
    from fxprune.trainer.launch import first_alone, launched
    from fxprune.trainer.logs import open_logs
    from fxprune.trainer.loop import EpochMetrics, Stopped, Tick, fit
    from fxprune.trainer.unused import unused

    _check_times(minutes, patience)
    run = run_of(folder, trust=trust) if origin is None else _branch(origin, folder, trust)
    with contextlib.ExitStack() as undo, launched(patience) as rank, console.silenced(rank != 0):
        if origin is not None:
            undo.callback(shutil.rmtree, run.path)  # unless a training begins
        looks = {"mean": mean, "std": std, "resize": resize, "crop": crop, "flip": flip}
        own = {"loss": loss, "metric": metric}
        job = Job.of(run, data, data_root, given, looks, transform, own=own, val_split=val_split)
        with console.phases(["loading the data", "building the network"]) as begin:
            begin()
            made = job.made(run, maker(run.base))
            with first_alone(rank, wanted=download):
                images = job.load(
                    run.plan.inputs[0][0],
                    made=made,
                    download=download,
                    workers=workers,
                )
            begin()
            gated = run.load(network_of(run))
        remarks = lines.remarks_on_data(images, job.options), unused(job, images, workers)
        for line in (lines.data_line(images), *itertools.chain(*remarks)):
            console.note(line)

        def keep() -> None:
            """Keep the job for the next call, and a new run; not if it was refused."""
            undo.pop_all()
            if rank == 0:
                job.keep(run)

        before = [EpochMetrics(**metrics) for metrics in run.metrics()]
        logs = open_logs(log, run.path, before) if rank == 0 else []

        def show(bar: console.Bar, tick: Tick) -> None:
            show_tick(bar, tick)
            if tick.metrics is not None:
                for one in logs:
                    one.epoch(tick.metrics)

        try:
            with held() as stop, console.bar("training") as bar:
                history = fit(
                    gated,
                    images,
                    job.options,
                    loss=made.get("loss"),
                    metric=made.get("metric"),
                    run=run.path,
                    ready=keep,
                    progress=lambda tick: show(bar, tick),
                    minutes=minutes,
                    stop=stop,
                )
        except Stopped:
            said = f"stopped; fxprune train {shell_word(run.path)} goes on after the last step"
            raise ended(said) from None
        finally:
            for one in logs:
                one.close()
        record = records.of_training(run, job, gated, history)
        print_result(record, tables.show_training, as_json)
        steps = steps_of(images.train, job.options.batch_size)
        waited = lines.remarks_on_waiting(history[-1], steps)
        for line in (*lines.remarks_on_training(record), *waited):
            console.note(line)
        if rank == 0:
            console.note(f"report: {write_beside(run, gated)}")
        console.note(f"next: fxprune export {shell_word(run.path)} --onnx")


def _check_times(minutes: float | None, patience: float) -> None:
    """Refuse times that the parser lets through.

    Raises:
        OptionError: one is NaN or out of its range.
    """
    if minutes is not None and not minutes >= 0:
        raise OptionError(f"minutes cannot be {minutes}", do="give a number from 0 up")
    if not 1 <= patience <= _MOST_PATIENCE:
        raise OptionError(
            f"patience cannot be {patience}", do=f"give seconds, from 1 to {_MOST_PATIENCE:g}"
        )


def _branch(origin: Path, folder: Path | None, trust: bool) -> "Run":
    """Begin a new run from another one's checkpoint."""
    from fxprune.runs.promise import Promise
    from fxprune.trainer.job import Job

    if folder is None:
        raise OptionError(
            "--from needs the folder of the new run", do="fxprune train NEW --from OLD"
        )
    if "LOCAL_RANK" in os.environ:
        raise OptionError(
            "--from is for one process", do="begin the new run without torchrun, with --minutes 0"
        )
    old = run_of(origin, trust=trust)
    job = Job.read(old)
    if job is not None:
        job.require(old)
    new = old.branch(folder)
    Promise.inherit(old, new)
    if job is not None:
        job.write(new)
        for kind, name in job.code.items():
            old.inherit(new, kind, name)
    return new
