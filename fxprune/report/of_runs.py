"""Reports of run directories: what they say is read from the run alone."""

import dataclasses
import shlex
from collections.abc import Iterator
from pathlib import Path

from fxprune.errors import shell_word
from fxprune.gated.module import GatedModule
from fxprune.report import page
from fxprune.report.exported import Exported
from fxprune.report.summary import History, Record, Subject, summarize
from fxprune.runs.promise import Promise
from fxprune.runs.run import Run
from fxprune.trainer.job import Job
from fxprune.trainer.options import PYTHON_ONLY, TrainOptions

PAGE = "report.html"
USUAL = ("epochs", "lr", "batch_size", "seed")  # shown though they may be the defaults


def record_of(run: Run, gated: GatedModule, dense_history: History = ()) -> Record:
    """Summarise a run.

    Args:
        run: its directory.
        gated: its network, as the run left it.
        dense_history: the epochs of the dense network's training, to draw beside it.

    Raises:
        RunError: its metrics, its export.json or its latency.json are damaged.
    """
    stands, job = run.standing(), Job.read(run)
    return summarize(
        Subject(
            title=run.path.resolve().name,
            policy=run.plan.policy,
            budget=run.plan.budget,
            history=[dataclasses.asdict(metrics) for metrics in stands.history],
            dense_history=dense_history,
            export=Exported.read(run),
            latency=_latency_of(run),
            network={
                "epoch": stands.metrics and stands.metrics.epoch,
                "best": stands.best,
                "average": stands.average,
                "stopped": stands.stopped,
            },
            of_epochs=None if job is None else job.options.epochs,
            commands=commands_of(run),
        ),
        gated,
    )


def write_beside(run: Run, gated: GatedModule, dense_history: History = ()) -> Path:
    """Write the report of a run into its directory, and return its path.

    Raises:
        RunError: it cannot be written, or what it shows is damaged.
    """
    path = run.path / PAGE
    page.write(path, [record_of(run, gated, dense_history)])
    return path


def commands_of(run: Run) -> list[str]:
    """List the commands that repeat a run, quoted for a shell."""
    plan, name = run.plan, shell_word(run.path.name)
    shape = f" --input {shlex.quote(run.input)}" if run.input else ""
    rounding = "" if plan.round_to is None else f" --round-to {plan.round_to}"
    every = "" if plan.every == 1 else f" --every {plan.every}"
    weights = "" if run.weights is None else f" --weights {shlex.quote(run.weights)}"
    begin = (
        f"fxprune instrument {shlex.quote(run.spec)}{shape}{weights}"
        f" --policy {shlex.quote(plan.policy)} --budget {shlex.quote(plan.budget)}{rounding}{every}"
        f" --seed {plan.seed} -o {name}"
    )
    lines = [begin] if run.origin is None else []
    job = Job.read(run)
    if job is not None:
        given = " ".join(shlex.quote(word) for word in _options_of(job))
        origin = "" if run.origin is None else f" --from {shlex.quote(run.origin)}"
        lines.append(f"fxprune train {name}{origin} {given}")
    return [*lines, f"fxprune export {name} --onnx"]


def _options_of(job: Job) -> Iterator[str]:
    """Yield the options of `fxprune train` that a job has, without those at their defaults."""
    yield from ("--data", job.data)
    named = {"transform": job.transform, "loss": job.loss, "metric": job.metric}
    named["val-split"] = str(job.val_split) if job.val_split else None
    for name, value in named.items():
        if value:
            yield from (f"--{name}", value)
    prepared = job.preprocess
    texts = {"mean": prepared.mean, "std": prepared.std, "resize": prepared.resize}
    for name, numbers in texts.items():
        if numbers:
            yield from (f"--{name}", ("x" if name == "resize" else ",").join(map(str, numbers)))
    if prepared.crop != "resized":
        yield from ("--crop", prepared.crop)
    if prepared.flip is not None:
        yield "--flip" if prepared.flip else "--no-flip"
    for field in dataclasses.fields(TrainOptions):
        value = getattr(job.options, field.name)
        if field.name in PYTHON_ONLY or (value == field.default and field.name not in USUAL):
            continue
        flag = field.name.replace("_", "-")
        if isinstance(value, bool):
            yield f"--{flag}" if value else f"--no-{flag}"
        else:
            yield from (f"--{flag}", str(value))


def _latency_of(run: Run) -> Record | None:
    """Return the latency that was measured when the widths were chosen, if it was."""
    promise = Promise.read(run.path)
    if promise is None or promise.dense is None or promise.compact is None:
        return None
    return {"asked": promise.asked, "dense": promise.dense, "compact": promise.compact}
