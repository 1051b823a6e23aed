"""Run directories: what stands on disk between two commands.

A *run* is a folder::

    plan.json                what was instrumented, and how
    checkpoint.safetensors   the gated file; once trained, with the trainer's state and history
    metrics.jsonl            a line an epoch, for people and their tools
"""

import contextlib
import dataclasses
import os
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from fxprune.errors import RunError, shell_word
from fxprune.files import is_temporary, read_bytes
from fxprune.formats import (
    TENSOR_BYTES,
    parsed,
    read_record,
    read_tensors,
    write_record,
    write_tensors,
)
from fxprune.gated.module import GatedModule
from fxprune.runs import trust
from fxprune.runs.contents import most_bytes
from fxprune.runs.gated_file import (
    AVERAGE,
    BEST,
    GATED,
    handed_over,
    plan_of,
    save,
    take_over,
    under,
)
from fxprune.runs.history import METRICS, EpochMetrics, best_of, history_of
from fxprune.runs.plan import Plan, Text
from fxprune.runs.schema import Strict
from fxprune.runs.writer import LOCK, only_writer

PLAN, CHECKPOINT = "plan.json", "checkpoint.safetensors"
SUFFIX = ".fxprune"
"""The ending of a run's folder, by which it is found."""

ADDED = ("train.json", "latency.json", "export.json", "report.html", "teacher.safetensors")
"""What later commands add, each of the network that was there then."""

MADE_FIRST = {CHECKPOINT, LOCK}
"""The files, beside temporary ones, of a run whose process was killed while it made the run."""


@dataclass(frozen=True)
class _Record(Strict):
    """The schema of plan.json."""

    spec: Text
    input: Text | None
    base: Text
    plan: Plan
    weights: Text | None = None
    origin: Text | None = None


@dataclass(frozen=True)
class Standing:
    """What a run hands over, see `gated_file.handed_over`, and what is known of it.

    Attributes:
        history: the whole epochs.
        metrics: of the epoch whose network it is; None before the first.
        average: whether it is an average of weights.
        stopped: whether the network was trained on since that epoch.
    """

    history: list[EpochMetrics]
    metrics: EpochMetrics | None
    average: bool = False
    stopped: bool = False

    @property
    def best(self) -> bool:
        """Whether it is another epoch's network than the last one's."""
        return bool(self.history) and self.metrics is not self.history[-1]


@dataclass(frozen=True)
class Run:
    """A folder in which a network is instrumented, trained and exported.

    Attributes:
        path: the folder.
        spec: the SPEC of the model.
        input: the `--input` that was given, if any.
        base: the folder that a file in the SPEC starts from.
        plan: how it was instrumented.
        trusted: the user said that it may import and call what it names.
        weights: the file with the weights that it began with, if any; it is not read again.
        origin: the run that it began with, if any; likewise.
    """

    path: Path
    spec: str
    input: str | None
    base: Path
    plan: Plan
    trusted: bool = dataclasses.field(default=False, compare=False)
    weights: str | None = None
    origin: str | None = None

    @property
    def checkpoint(self) -> Path:
        """The gated file."""
        return self.path / CHECKPOINT

    def require(self, kind: str, name: str) -> None:
        """Refuse a name that the run stores, before it is imported; see `fxprune.runs.trust`.

        Args:
            kind: what it is for, such as "spec" or "data".
            name: what would be imported.

        Raises:
            RunError: the user neither gave this name nor trusts the run.
        """
        try:
            trust.require(self.path, kind, name, self.base)
        except RunError:
            if not self.trusted:
                raise
            trust.record(self.path, kind, name, self.base, content=True)

    def record(self, kind: str, name: str) -> None:
        """Remember that the user gave this name.

        Only the SPEC's is recorded of a run that was not made here: the others would be imported
        from a folder of the stranger's choice, where something else may be called so.
        """
        if kind == "spec" or trust.recorded(self.path, "spec", self.spec, self.base) is not None:
            trust.record(self.path, kind, name, self.base)

    def inherit(self, new: "Run", kind: str, name: str) -> None:
        """Let a run that is made of this one import what this one may; see `trust.inherit`."""
        trust.inherit(self.path, new.path, kind, name, self.base)

    @staticmethod
    def create(
        path: Path,
        gated: GatedModule,
        spec: str,
        input: str | None = None,  # noqa: A002
        weights: Path | None = None,
    ) -> "Run":
        """Write a new run. A folder with a run that was never trained is written anew.

        Args:
            path: the folder; made if it is missing, but not what it is in.
            gated: the network.
            spec: the SPEC of its model, relative to the current folder.
            input: the `--input` that was given.
            weights: the file whose weights the network has.

        Raises:
            RunError: the folder holds something else, or a trained run, or cannot be written.
        """
        begun = None if weights is None else str(weights)
        run = Run(path, spec, input, Path.cwd(), Plan.of(gated), weights=begun)
        with run._begun() as write:
            save(gated, path / CHECKPOINT)
            write()
        run.record("spec", spec)
        return run

    @staticmethod
    def open(path: Path, *, trust: bool = False) -> "Run":
        """Read an existing run; nothing that it names is imported.

        Args:
            path: its folder.
            trust: let it import and call what it names, from now on.

        Raises:
            RunError: the folder is no run, or the run is damaged.
        """
        if path.is_file():
            raise RunError(
                f"{path} is no run",
                why="it is a file, and a run is a folder",
                do=f"give the folder that fxprune instrument wrote, NAME{SUFFIX}",
            )
        if not path.is_dir():
            raise RunError(
                f"there is no run {path}", do="fxprune instrument SPEC makes one; give its folder"
            )
        if not (path / PLAN).exists():
            raise RunError(
                f"{path} is no run", why=f"it has no {PLAN}", do="fxprune instrument SPEC makes one"
            )
        found = read_record(path / PLAN, _Record)
        base = (path / found.base).resolve()
        begun = found.weights, found.origin
        return Run(path, found.spec, found.input, base, found.plan, trust, *begun)

    @staticmethod
    def find(folder: Path, *, trust: bool = False) -> tuple["Run", str]:
        """Find the run that is meant where none is named: the folder itself, or one inside it.

        Args:
            folder: where to look.
            trust: as for `open`.

        Returns:
            The run, and a note for the user, empty if there was no choice.

        Raises:
            RunError: there is none, or it is damaged.
        """
        if (folder / PLAN).exists():
            return Run.open(folder, trust=trust), ""
        found = [path.parent for path in folder.glob(f"*{SUFFIX}/{PLAN}")]
        if not found:
            raise RunError(
                f"there is no run in {folder}",
                why=f"no folder here is called *{SUFFIX}",
                do="fxprune instrument SPEC makes one, or name the folder of one",
            )
        found.sort(key=_last_written, reverse=True)
        note = f"{found[0].name} is the newest of {len(found)} runs here" if found[1:] else ""
        return Run.open(found[0], trust=trust), note

    def branch(self, path: Path) -> "Run":
        """Begin a new run with the network that this one hands over.

        Its weights and what was learned of its channels are taken over, but no history, optimiser
        or fixed selection.

        Args:
            path: the new folder.

        Raises:
            RunError: the checkpoint is damaged, or the folder holds something else.
        """
        self.require("spec", self.spec)
        tensors, meta = self._read_checkpoint()
        kept = {
            name: tensor
            for name, tensor in handed_over(tensors).items()
            if not name.startswith(f"{GATED}settled/")
        }
        new = dataclasses.replace(self, path=path, weights=None, origin=str(self.path))
        with new._begun() as write:
            write_tensors(path / CHECKPOINT, kept, {"plan": meta["plan"]})
            write()
        self.inherit(new, "spec", self.spec)
        return new

    @contextlib.contextmanager
    def _begun(self) -> Iterator[Callable[[], None]]:
        """Make the folder; what is yielded writes plan.json, after the checkpoint."""
        path = self.path
        refuse_what_is_there(path)
        try:
            path.mkdir(exist_ok=True)
        except (OSError, ValueError) as error:
            raise RunError(
                f"cannot make the folder {path}",
                why=str(error),
                do="give another one with -o",
            ) from error
        base = os.path.relpath(self.base, path.resolve())
        record = asdict(_Record(self.spec, self.input, base, self.plan, self.weights, self.origin))
        with only_writer(path):
            refuse_what_is_there(path)  # a training that ended meanwhile
            for name in ADDED:
                (path / name).unlink(missing_ok=True)
            yield lambda: write_record(path / PLAN, record)

    def load(self, model: nn.Module) -> GatedModule:
        """Load the gated network that the run hands over, see `gated_file.handed_over`.

        Args:
            model: what the SPEC builds.

        Raises:
            RunError: the checkpoint is missing, damaged, or belongs to another model or plan.
        """
        if not self.checkpoint.exists():  # instrument writes it before the plan
            raise RunError(
                f"{self.path} has no {CHECKPOINT}",
                why="its network was deleted, or left behind when the run was copied",
                do="bring the file back, or begin anew: fxprune instrument SPEC -o ANOTHER",
            )
        most = most_bytes([*model.parameters(), *model.buffers()])
        tensors, _ = self._read_checkpoint(most)
        gated = self.plan.instrument(model, self.checkpoint)
        take_over(gated, handed_over(tensors), self.checkpoint)
        return gated

    def _read_checkpoint(
        self, most: int = TENSOR_BYTES
    ) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Read the checkpoint's tensors and meta; refuse more bytes, or one of another plan."""
        tensors, meta = read_tensors(self.checkpoint, most)
        if plan_of(meta, self.checkpoint) != self.plan:
            raise RunError(
                f"{self.checkpoint} does not belong to {self.path / PLAN}",
                why="it was made by another plan",
                do="instrument again, into another folder",
            )
        return tensors, meta

    def metrics(self) -> list[dict[str, Any]]:
        """Read the metrics of each epoch so far from the checkpoint; none before training.

        Raises:
            RunError: the checkpoint is missing or damaged.
        """
        return [asdict(metrics) for metrics in read_history(self.checkpoint)]

    def standing(self) -> "Standing":
        """Read what the run hands over now, and what is known of it.

        Raises:
            RunError: the checkpoint is missing or damaged.
        """
        tensors, meta = read_tensors(self.checkpoint)
        history = history_of(meta, self.checkpoint)
        average = bool(under(AVERAGE, tensors))
        if under(BEST, tensors):
            return Standing(history, best_of(history), average=average)
        last = history[-1] if history else None
        return Standing(history, last, average=average, stopped=meta.get("within") is not None)


def read_history(checkpoint: Path) -> list[EpochMetrics]:
    """Read the metrics of each epoch from a checkpoint; none before the first.

    Raises:
        RunError: it is missing or damaged.
    """
    return history_of(read_tensors(checkpoint)[1], checkpoint)


def metrics_of(folder: Path) -> list[dict[str, Any]]:
    """Read the metrics of each epoch in the folder of a training; none before its first.

    Where there is no checkpoint, they are those of metrics.jsonl.

    Raises:
        RunError: the file is damaged.
    """
    if (folder / CHECKPOINT).exists():
        return [asdict(metrics) for metrics in read_history(folder / CHECKPOINT)]
    return [asdict(metrics) for metrics in _written(folder / METRICS)]


def metrics_agree(run: Run) -> bool:
    """Tell whether a run's metrics.jsonl says what its checkpoint does.

    Raises:
        RunError: the checkpoint is damaged.
    """
    history = read_history(run.checkpoint)
    try:
        return _written(run.path / METRICS) == history
    except RunError:
        return False


def _written(path: Path) -> list[EpochMetrics]:
    """Read metrics.jsonl; a file that is missing holds no epoch."""
    if not path.exists():
        return []
    text = b"[" + b",".join(read_bytes(path).splitlines()) + b"]"
    return history_of({"history": parsed(text, path)}, path)


def refuse_what_is_there(path: Path) -> None:
    """Check that a new run can be made of a folder.

    Raises:
        RunError: it holds something else, or a trained run.
    """
    if not path.exists() and not path.is_symlink():
        if not path.absolute().parent.is_dir():
            raise RunError(
                f"cannot make the folder {path}",
                why=f"there is no folder {path.parent}",
                do="make that one, or give another one with -o",
            )
        return
    left = {item.name for item in path.iterdir()} if path.is_dir() else {"a file"}
    left = {name for name in left if not is_temporary(name)}
    if PLAN not in left and not left <= MADE_FIRST:
        raise RunError(
            f"cannot make a run of {path}",
            why="something else is there",
            do="give another folder with -o",
        )
    if METRICS in left or _seems_trained(path / CHECKPOINT):
        raise RunError(
            f"there is a trained run in {path}",
            do="give another folder with -o, go on with this one "
            f"(fxprune train {shell_word(path)}, or fxprune export), or delete it",
        )


def is_trained(checkpoint: Path) -> bool:
    """Tell whether a checkpoint, which may be missing, is of a training that has begun.

    Raises:
        RunError: it is damaged.
    """
    return checkpoint.exists() and "history" in read_tensors(checkpoint)[1]


def _seems_trained(checkpoint: Path) -> bool:
    try:
        return is_trained(checkpoint)
    except RunError as error:
        raise RunError(
            f"cannot tell whether {checkpoint.parent} is trained",
            why=f"{error.what}: {error.why}",
            do="give another folder with -o, or delete this one",
        ) from error


def _last_written(run: Path) -> float:
    times = [0.0]
    for file in run.iterdir():
        with contextlib.suppress(OSError):  # temporary files come and go
            times.append(file.stat().st_mtime)
    return max(times)
