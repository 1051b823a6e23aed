"""Reports of run directories: what they say is read from the run alone."""

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fxprune.errors import RunError
from fxprune.export.compare import Comparison
from fxprune.files import read_json, write_json
from fxprune.gated.module import GatedModule
from fxprune.report import page
from fxprune.report.summary import History, Record, Subject, summarize
from fxprune.runs.run import Run
from fxprune.trainer.job import Job

EXPORT = "export.json"
PAGE = "report.html"

_FIGURES = ("params", "macs", "bytes", "latency")
_NUMBERS = ("bytes", "max_abs_error", "max_rel_error", "tolerance", "seed", "real_examples")


def record_of(run: Run, gated: GatedModule, dense_history: History = ()) -> Record:
    """Summarise a run.

    Args:
        run: its directory.
        gated: its network, as the run left it.
        dense_history: the epochs of the dense network's training, to draw beside it.

    Raises:
        RunError: its metrics or its export.json are damaged.
    """
    return summarize(
        Subject(
            title=run.path.resolve().name,
            policy=run.plan.policy,
            budget=run.plan.budget,
            history=run.metrics(),
            dense_history=dense_history,
            export=_export_of(run),
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


def keep_export(run: Run, compared: Comparison) -> None:
    """Keep the figures of an export in the run, for its report.

    Raises:
        RunError: it cannot be written.
    """
    write_json(run.path / EXPORT, {"onnx": compared.record()})


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


def _export_of(run: Run) -> Record | None:
    path = run.path / EXPORT
    if not path.exists():
        return None
    found = read_json(path)
    if not _is_export(found):
        raise RunError(
            f"cannot read {path}",
            why="it does not hold the figures of an export",
            do="delete it; fxprune export writes it anew",
        )
    # JavaScript has no exact integers above 2**53, and the seed is one
    return {"onnx": {**found["onnx"], "seed": str(found["onnx"]["seed"])}}


def _is_export(found: Any) -> bool:
    onnx = found.get("onnx") if isinstance(found, dict) else None
    if not isinstance(onnx, dict) or not isinstance(onnx.get("batches"), list):
        return False
    sides: Sequence[Any] = [onnx.get("compact"), onnx.get("dense") or onnx.get("compact")]
    return (
        all(_numbers(side, _FIGURES) for side in sides)
        and _numbers(onnx, _NUMBERS)
        and all(isinstance(onnx.get(key), str) for key in ("path", "reference"))
    )


def _numbers(value: Any, keys: Sequence[str]) -> bool:
    return isinstance(value, dict) and all(
        isinstance(value.get(key), int | float) and not isinstance(value.get(key), bool)
        for key in keys
    )
