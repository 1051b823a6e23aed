"""Gated networks on disk, and run directories.

A *gated file* holds a gated network's state, and in its metadata the plan by which `load` makes
the network again from the original model. A *run* is a folder::

    plan.json                what was instrumented, and how
    checkpoint.safetensors   the gated file; once trained, with the trainer's state
    metrics.jsonl            a line an epoch
"""

import dataclasses
import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fxprune import registry
from fxprune.api import instrument
from fxprune.budget.budget import Budget
from fxprune.channels.graph import ChannelGraph
from fxprune.errors import OptionError, RunError
from fxprune.files import FORMAT, read_json, read_tensors, write_json, write_tensors
from fxprune.gated.module import GatedModule

PLAN, CHECKPOINT, METRICS = "plan.json", "checkpoint.safetensors", "metrics.jsonl"
SUFFIX = ".fxprune"
"""The ending of a run's folder, by which it is found."""

GATED = "gated/"
"""What the names of the gated network's tensors begin with in a gated file."""


def fingerprint(channels: ChannelGraph) -> str:
    """Identifies the channel groups of a network: sizes, members, and the parameters' shapes."""
    digest = hashlib.sha256()
    for group in channels.groups:
        digest.update(f"\n{group.size}".encode())
        for member in group.members:
            digest.update(f" {member.parameter} {member.dim} ".encode())
            digest.update(member.positions.contiguous().numpy().tobytes())
    digest.update(str(sorted((name, tuple(s)) for name, s in channels.shapes.items())).encode())
    return digest.hexdigest()[:16]


@dataclass(frozen=True)
class Plan:
    """By what a network was instrumented: enough to do it again.

    Attributes:
        inputs: shape and dtype of each example input, such as ((2, 3, 32, 32), "float32").
        policy: in its text form.
        budget: in its text form.
        round_to: widths are multiples of this; see `Budget`.
        every: steps between two selections.
        seed: for policies that draw.
        fingerprint: of the channel groups; another network has another.
        torch: the version that wrote it.
    """

    inputs: tuple[tuple[tuple[int, ...], str], ...]
    policy: str
    budget: str
    round_to: int | None
    every: int
    seed: int
    fingerprint: str
    torch: str = dataclasses.field(compare=False)

    @staticmethod
    def of(gated: GatedModule) -> "Plan":
        """The plan of a gated network."""
        settings = gated.settings
        return Plan(
            inputs=tuple((s, str(dtype).removeprefix("torch.")) for s, dtype in gated.inputs),
            policy=registry.to_text(settings.policy),
            budget=str(settings.budget),
            round_to=settings.budget.round_to,
            every=settings.every,
            seed=settings.seed,
            fingerprint=fingerprint(gated.channels),
            torch=str(torch.__version__),
        )

    @staticmethod
    def from_json(value: Any, path: Path) -> "Plan":
        """Takes what `dataclasses.asdict` became in JSON; `path` is for the message.

        Raises:
            RunError: a field is missing, unknown or of another kind.
        """
        try:
            inputs = tuple((tuple(map(int, s)), str(dtype)) for s, dtype in value["inputs"])
            plan = Plan(**{**value, "inputs": inputs})
        except (TypeError, KeyError, ValueError) as error:
            raise RunError(f"cannot read {path}", why=f"its plan is damaged: {error}") from error
        for field in dataclasses.fields(Plan)[1:]:
            if not isinstance(getattr(plan, field.name), field.type):  # type: ignore[arg-type]
                raise RunError(f"cannot read {path}", why=f"its {field.name} is damaged")
        return plan

    def instrument(self, model: nn.Module, path: Path) -> GatedModule:
        """Does it again; `path` is for the message.

        Raises:
            RunError: the model has other channel groups, or the plan names what is not known.
        """
        try:
            inputs = tuple(torch.zeros(s, dtype=getattr(torch, name)) for s, name in self.inputs)
            budget = Budget.parse(self.budget, self.round_to)
            gated = instrument(model, inputs, self.policy, budget, every=self.every, seed=self.seed)
        except (AttributeError, TypeError, OptionError) as error:
            raise RunError(f"cannot read {path}", why=f"its plan is damaged: {error}") from error
        if fingerprint(gated.channels) != self.fingerprint:
            raise RunError(
                f"{path} belongs to another network",
                why="the channel groups of this model are others",
                do="give the model that was instrumented",
            )
        return gated


def save(gated: GatedModule, path: str | Path) -> None:
    """Writes a gated network to one file: its state and the plan, but not its code.

    The optimiser's own state is not in it; that of resting channels is.

    Args:
        gated: the network; it does not change.
        path: where to, conventionally `*.safetensors`.

    Raises:
        RunError: the file cannot be written.
    """
    write_tensors(Path(path), *gated_state(gated))


def load(path: str | Path, model: nn.Module) -> GatedModule:
    """Reads what `save` wrote.

    Args:
        path: the file.
        model: the original model, with any values in its parameters; it does not change.

    Returns:
        A gated network with the saved state, on the model's device and in training mode.

    Raises:
        RunError: the file is missing, damaged or foreign, or belongs to another model.
    """
    path = Path(path)
    tensors, meta = read_tensors(path)
    if "plan" not in meta:
        raise RunError(f"{path} holds no gated network")
    gated = Plan.from_json(meta["plan"], path).instrument(model, path)
    gated.train()
    gated.restore(under(GATED, tensors))
    return gated


def gated_state(gated: GatedModule) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors and the meta of a gated file."""
    tensors = {f"{GATED}{name}": value for name, value in gated.training_state().items()}
    return tensors, {"plan": dataclasses.asdict(Plan.of(gated))}


def under(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Those tensors whose names begin with `prefix`, without it."""
    return {key[len(prefix) :]: value for key, value in tensors.items() if key.startswith(prefix)}


@dataclass(frozen=True)
class Run:
    """A folder in which a network is instrumented, trained and exported.

    Attributes:
        path: the folder.
        spec: the SPEC of the model.
        input: the `--input` that was given, if any.
        base: the folder that a file in the SPEC starts from.
        plan: how it was instrumented.
    """

    path: Path
    spec: str
    input: str | None
    base: Path
    plan: Plan

    @property
    def checkpoint(self) -> Path:
        """The gated file."""
        return self.path / CHECKPOINT

    @staticmethod
    def create(path: Path, gated: GatedModule, spec: str, input: str | None = None) -> "Run":  # noqa: A002
        """Writes a new run. A folder with a run that was never trained is written anew.

        Args:
            path: the folder; made if it is missing, but not what it is in.
            gated: the network.
            spec: the SPEC of its model, relative to the current folder.
            input: the `--input` that was given.

        Raises:
            RunError: the folder holds something else, or a trained run, or cannot be written.
        """
        _refuse_what_is_there(path)
        try:
            path.mkdir(exist_ok=True)
        except OSError as error:
            raise RunError(f"cannot make the folder {path}", why=str(error)) from error
        save(gated, path / CHECKPOINT)
        plan = Plan.of(gated)
        value = {
            "format": FORMAT,
            "spec": spec,
            "input": input,
            "base": os.path.relpath(Path.cwd(), path.resolve()),
            "plan": dataclasses.asdict(plan),
        }
        write_json(path / PLAN, value)
        return Run(path, spec, input, Path.cwd(), plan)

    @staticmethod
    def open(path: Path) -> "Run":
        """Reads an existing run.

        Raises:
            RunError: it is none, or damaged.
        """
        if not path.is_dir():
            raise RunError(
                f"there is no run {path}", do="fxprune instrument SPEC makes one; give its folder"
            )
        if not (path / PLAN).exists():
            raise RunError(
                f"{path} is no run", why=f"it has no {PLAN}", do="fxprune instrument SPEC makes one"
            )
        value = read_json(path / PLAN)
        if not isinstance(value, dict) or value.get("format") != FORMAT:
            raise RunError(
                f"cannot read {path / PLAN}", why="it was not written by this version of fxprune"
            )
        spec, given, base = (value.get(key) for key in ("spec", "input", "base"))
        if not (isinstance(spec, str) and isinstance(base, str) and isinstance(given, str | None)):
            raise RunError(f"cannot read {path / PLAN}", why="its spec is damaged")
        plan = Plan.from_json(value.get("plan"), path / PLAN)
        return Run(path, spec, given, (path / base).resolve(), plan)

    @staticmethod
    def find(folder: Path) -> tuple["Run", str]:
        """The run that is meant where none is named: the folder itself, or one inside it.

        Returns:
            The run, and a note for the user, empty if there was no choice.

        Raises:
            RunError: there is none, or it is damaged.
        """
        if (folder / PLAN).exists():
            return Run.open(folder), ""
        found = [path.parent for path in folder.glob(f"*{SUFFIX}/{PLAN}")]
        if not found:
            raise RunError(
                f"there is no run in {folder}",
                why=f"no folder here is called *{SUFFIX}",
                do="fxprune instrument SPEC makes one, or name the folder of one",
            )
        found.sort(key=_last_written, reverse=True)
        note = f"{found[0].name} is the newest of {len(found)} runs here" if found[1:] else ""
        return Run.open(found[0]), note

    def load(self, model: nn.Module) -> GatedModule:
        """The gated network as the run left it.

        Args:
            model: what the SPEC builds.

        Raises:
            RunError: the checkpoint is missing, damaged, or belongs to another model or plan.
        """
        _, meta = read_tensors(self.checkpoint)
        if "plan" not in meta or Plan.from_json(meta["plan"], self.checkpoint) != self.plan:
            raise RunError(
                f"{self.checkpoint} does not belong to {self.path / PLAN}",
                why="it was made by another plan",
                do="instrument again, into another folder",
            )
        return load(self.checkpoint, model)

    def metrics(self) -> list[dict[str, Any]]:
        """The metrics of each epoch so far; none before training.

        Raises:
            RunError: the file is damaged.
        """
        return metrics_of(self.path)


def metrics_of(folder: Path) -> list[dict[str, Any]]:
    """Reads the metrics of each epoch in the folder of a training; none before its first.

    Raises:
        RunError: the file is damaged.
    """
    path = folder / METRICS
    if not path.exists():
        return []
    try:
        return [json.loads(line) for line in path.read_text().splitlines()]
    except (OSError, ValueError) as error:
        raise RunError(f"cannot read {path}", why=str(error)) from error


def _refuse_what_is_there(path: Path) -> None:
    if not path.exists():
        return
    if (path / METRICS).exists():
        raise RunError(
            f"there is a trained run in {path}",
            do="give another folder with -o, or delete this one",
        )
    if not path.is_dir() or not ((path / PLAN).exists() or not any(path.iterdir())):
        raise RunError(
            f"cannot make a run of {path}",
            why="something else is there",
            do="give another folder with -o",
        )


def _last_written(run: Path) -> float:
    return max(file.stat().st_mtime for file in run.iterdir())
