"""Reports of run directories: what they say is read from the run alone."""

import shlex
from pathlib import Path

from fxprune.gated.module import GatedModule
from fxprune.report import page
from fxprune.report.exported import Exported
from fxprune.report.summary import History, Record, Subject, summarize
from fxprune.runs.promise import Promise
from fxprune.runs.run import Run
from fxprune.trainer.job import Job

PAGE = "report.html"


def record_of(run: Run, gated: GatedModule, dense_history: History = ()) -> Record:
    """Summarise a run.

    Args:
        run: its directory.
        gated: its network, as the run left it.
        dense_history: the epochs of the dense network's training, to draw beside it.

    Raises:
        RunError: its metrics, its export.json or its latency.json are damaged.
    """
    return summarize(
        Subject(
            title=run.path.resolve().name,
            policy=run.plan.policy,
            budget=run.plan.budget,
            history=run.metrics(),
            dense_history=dense_history,
            export=Exported.read(run),
            latency=_latency_of(run),
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
    plan, name = run.plan, shlex.quote(run.path.name)
    shape = f" --input {shlex.quote(run.input)}" if run.input else ""
    rounding = "" if plan.round_to is None else f" --round-to {plan.round_to}"
    lines = [
        f"fxprune instrument {shlex.quote(run.spec)}{shape} --policy {shlex.quote(plan.policy)}"
        f" --budget {shlex.quote(plan.budget)}{rounding} --seed {plan.seed} -o {name}"
    ]
    job = Job.read(run)
    if job is not None:
        options = job.options
        lines.append(
            f"fxprune train {name} --data {shlex.quote(job.data)} --epochs {options.epochs}"
            f" --lr {options.lr:g} --batch-size {options.batch_size} --seed {options.seed}"
        )
    return [*lines, f"fxprune export {name} --onnx"]


def _latency_of(run: Run) -> Record | None:
    """The latency that was measured when the widths were chosen, if it was."""
    promise = Promise.read(run.path)
    if promise is None or promise.dense is None or promise.compact is None:
        return None
    return {"asked": promise.asked, "dense": promise.dense, "compact": promise.compact}
