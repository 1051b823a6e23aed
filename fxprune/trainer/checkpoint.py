"""Checkpoints: the state that a training writes after each epoch, and from which it goes on.

The checkpoint is the gated file (`fxprune.runs.run`), or a plain network's state, with the
optimiser's state, the options, the history, and what the data looked like.
"""

import dataclasses
import json
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from fxprune.data import DataSet, Share
from fxprune.errors import FxpruneWarning, OptionError, RunError
from fxprune.formats import fitting, read_tensors, write_tensors
from fxprune.gated.module import GatedModule
from fxprune.gated.slot_order import entry_of, with_order, without_order
from fxprune.runs.contents import check_plain, check_values, is_wild, most_bytes
from fxprune.runs.gated_file import gated_state, plan_of, take_over, under
from fxprune.runs.history import EpochMetrics, history_of, keep_metrics
from fxprune.runs.plan import Plan
from fxprune.runs.run import CHECKPOINT, SUFFIX
from fxprune.runs.schema import Strict
from fxprune.trainer.options import TrainOptions
from fxprune.trainer.outcome import Outcome
from fxprune.trainer.placement import Placement
from fxprune.trainer.progress import WITHIN, Progress, Within

OPTIMIZER, MODEL = "optimizer/", "model/"

Scalar = bool | int | float | str | None
Count = Annotated[int, Field(ge=0, lt=2**31)]


@dataclass(frozen=True)
class _Optimizer(Strict):
    """The schema of the part of an optimiser's state that is no tensor."""

    state: dict[Annotated[str, Field(pattern=r"^\d{1,9}$")], dict[str, Scalar]]
    param_groups: list[dict[str, Scalar | list[int] | list[float] | list[float | None]]]


@dataclass(frozen=True)
class _Looks(Strict):
    """Properties by which other data are recognised; the name is for messages only."""

    name: str
    train: Count
    val: Count
    classes: tuple[str, ...]
    shape: tuple[Count, ...]

    @staticmethod
    def of(data: DataSet) -> "_Looks":
        """Describe a data set."""
        return _Looks(data.name, len(data.train), len(data.val), data.classes, data.shape)

    def __str__(self) -> str:
        shape = " x ".join(map(str, self.shape))
        return (
            f"{self.name}, {self.train} and {self.val} images of {shape} "
            f"in {len(self.classes)} classes"
        )


@dataclass(frozen=True)
class _SavedPlacement(Strict):
    """Where a training took its steps: on another kind of device it has other bits."""

    device: Literal["cpu", "cuda"]
    amp: Literal["bfloat16", "float16"] | None
    channels_last: bool

    @staticmethod
    def of(options: TrainOptions) -> "_SavedPlacement":
        """Settle the "auto" options on this machine."""
        placement = Placement.of(options)
        amp: Any = None if placement.amp is None else str(placement.amp).removeprefix("torch.")
        kind: Any = placement.device.type
        return _SavedPlacement(kind, amp, placement.channels_last)

    def __str__(self) -> str:
        layout = ", channels last" if self.channels_last else ""
        return f"{self.device} in {self.amp or 'float32'}{layout}"


@dataclass(frozen=True)
class _Training(Strict):
    """The schema of the meta of a trained checkpoint, the plan and the history aside."""

    options: TrainOptions
    data: _Looks
    optimizer: _Optimizer
    scaler: dict[str, int | float]
    processes: Annotated[int, Field(ge=1, lt=2**20)]
    within: Within | None
    averaged: Annotated[int, Field(ge=0, lt=2**62)] | None = None
    place: _SavedPlacement | None = None


@dataclass(frozen=True)
class Trained:
    """The tensors and counters of a training that a checkpoint has to restore.

    Attributes:
        model: plain or gated.
        optimizer: attached to it, if it is gated.
        scaler: of the loss, disabled where it is not needed.
        outcome: what is handed over.
        wild: names of tensors that were not finite before the training, such as masks.
    """

    model: nn.Module
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    outcome: Outcome
    wild: frozenset[str]

    @staticmethod
    def of(
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        scaler: torch.amp.GradScaler,
        outcome: Outcome,
    ) -> "Trained":
        """Begin with a model that is not trained yet."""
        tensors, _ = _state_of(model)
        wild = frozenset(_plain_name(name) for name, t in tensors.items() if is_wild(t))
        return Trained(model, optimizer, scaler, outcome, wild)

    def save(
        self,
        run: Path,
        options: TrainOptions,
        data: DataSet,
        history: Sequence[EpochMetrics],
        processes: int,
        kept: tuple[dict[str, Tensor], Within] | None,
    ) -> None:
        """Write the checkpoint, then metrics.jsonl from the same history.

        Args:
            run: the folder.
            options: how the network is trained.
            data: on what.
            history: the whole epochs so far.
            processes: how many train it together.
            kept: the epoch that is on its way, if one is.

        Raises:
            OptionError: a parameter or what the optimiser keeps is NaN or infinite; nothing is
                written.
            RunError: the folder cannot be written to.
        """
        tensors, meta = _state_of(self.model)
        state = without_order(self.optimizer.state_dict())
        parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        plain: dict[str, dict[str, Any]] = {}
        for index, slots in state["state"].items():
            for key, value in slots.items():
                if isinstance(value, Tensor):
                    if not _fits(value, parameters[index]):
                        raise _no_place(self.optimizer, key, value)
                    tensors[f"{OPTIMIZER}{index}/{key}"] = value
                else:
                    plain.setdefault(str(index), {})[key] = value
        if kept is not None:
            tensors |= kept[0]
        tensors |= self.outcome.tensors()
        self._refuse_wild(tensors, len(history))
        meta |= {
            "averaged": self.outcome.averaged,
            "processes": processes,
            "place": dataclasses.asdict(_SavedPlacement.of(options)),
            "within": None if kept is None else dataclasses.asdict(kept[1]),
            "options": dataclasses.asdict(options),
            "data": dataclasses.asdict(_Looks.of(data)),
            "history": [dataclasses.asdict(metrics) for metrics in history],
            "optimizer": {"state": plain, "param_groups": _plain(state["param_groups"])},
            "scaler": self.scaler.state_dict(),
        }
        write_tensors(run / CHECKPOINT, tensors, meta)
        keep_metrics(run, history)

    def load(
        self, run: Path, options: TrainOptions, data: DataSet, share: Share
    ) -> tuple[list[EpochMetrics], Progress | None]:
        """Load the state of `run`, if it has one.

        All options but the epochs and the device have to be what they were; of epochs there may be
        more. What changes the bits without being refused is warned of.

        Returns:
            Its history, and the epoch that was stopped, if one was.

        Raises:
            RunError: it belongs to another model, plan, options or data, or is damaged.
        """
        path = run / CHECKPOINT
        if not path.exists():
            return [], None
        gated = self.model if isinstance(self.model, GatedModule) else None
        own = gated.dense_tensors() if gated is not None else self.model.state_dict()
        tensors, meta = read_tensors(path, most_bytes(own.values()))
        self._check_plan(path, meta)
        if "history" not in meta:  # never trained
            return [], None
        history = history_of(meta, path)
        rest = {key: value for key, value in meta.items() if key not in ("plan", "history")}
        training = fitting(_Training, rest, path)
        _check_options(path, training, options, data)
        try:
            if gated is not None:
                take_over(gated, tensors, path)
            else:
                check_plain(path, under(MODEL, tensors), own)
                self.model.load_state_dict(under(MODEL, tensors))
            self._load_optimizer(path, under(OPTIMIZER, tensors), training.optimizer)
            self.scaler.load_state_dict(training.scaler)
            self.outcome.restore(tensors, training.averaged, path)
            so_far = None
            if training.within is not None:
                kept = under(WITHIN, tensors)
                so_far = Progress.read(
                    kept, training.within, share, next(iter(own.values())).device
                )
        except (RuntimeError, ValueError, KeyError) as error:
            raise _foreign(path, f"it belongs to another model: {_first_line(error)}") from error
        self._warn(run, training, options, data, share)
        return history, so_far

    def _warn(
        self, run: Path, training: _Training, options: TrainOptions, data: DataSet, share: Share
    ) -> None:
        """Warn of what is otherwise than it was, so that the run does not end in the same bits."""
        place = _SavedPlacement.of(options)
        otherwise = "it does not end in the bits of a run that was trained one way throughout"
        moved = f"unless these are the same examples, {otherwise}"
        for how, was, now, but in (
            ("by", _processes(training.processes), _processes(share.of), otherwise),
            ("with the data", training.data.name, data.name, moved),
            ("with", str(training.place or place), str(place), otherwise),
        ):
            if was != now:
                warnings.warn(
                    f"{run} was trained {how} {was} so far, and goes on {how} {now}: {but}",
                    FxpruneWarning,
                    stacklevel=4,
                )

    def _refuse_wild(self, tensors: Mapping[str, Tensor], epoch: int) -> None:
        for name, tensor in tensors.items():
            if is_wild(tensor) and _plain_name(name) not in self.wild:
                raise OptionError(
                    f"{name.partition('/')[2]} is not finite after epoch {epoch}",
                    why="the training diverged; the checkpoint of the epoch before is kept",
                    do="give a smaller learning rate, or a warm-up",
                )

    def _check_plan(self, path: Path, meta: dict[str, Any]) -> None:
        old = plan_of(meta, path) if "plan" in meta else None
        if old != (Plan.of(self.model) if isinstance(self.model, GatedModule) else None):
            raise _foreign(
                path, "it belongs to another model, or to one that was instrumented otherwise"
            )

    def _load_optimizer(self, path: Path, tensors: Mapping[str, Tensor], saved: _Optimizer) -> None:
        parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        state: dict[int, dict[str, Any]] = {
            int(index): dict(slots) for index, slots in saved.state.items()
        }
        for name, value in tensors.items():
            index, _, key = name.partition("/")
            like = parameters[int(index)] if int(index) < len(parameters) else None
            if like is None or not _fits(value, like):
                raise _foreign(path, f"it belongs to another model: the optimiser's {name}")
            state.setdefault(int(index), {})[key] = value
        check_values(path, {f"{OPTIMIZER}{name}": value for name, value in tensors.items()}, {})
        groups_now = without_order(self.optimizer.state_dict())["param_groups"]
        now = json.loads(json.dumps(_plain(groups_now)))
        groups = [dict(group) for group in saved.param_groups]
        if [_settled(group) for group in groups] != [_settled(group) for group in now]:
            raise _foreign(path, "its optimiser has other settings")
        loaded: dict[str, Any] = {"state": state, "param_groups": groups}
        if isinstance(self.model, GatedModule):  # it was restored, in whose order they lie
            gated = {
                id(p) for name, p in self.model.named_parameters() if name in self.model.bank.dense
            }
            numbers = (number for number, p in enumerate(parameters) if id(p) in gated)
            loaded = with_order(loaded, numbers, entry_of(self.model.trained))
        self.optimizer.load_state_dict(loaded)


def _state_of(model: nn.Module) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Collect a network's tensors and the meta, as a checkpoint has them."""
    if isinstance(model, GatedModule):
        return gated_state(model)
    return {f"{MODEL}{key}": value for key, value in model.state_dict().items()}, {}


def _plain_name(name: str) -> str:
    """Return a tensor's name without what says which of several networks it is of."""
    return name.partition("/")[2].removeprefix("dense/")


def _fits(state: Tensor, parameter: Tensor) -> bool:
    """Tell whether a state is a number, or as large as its parameter or 1 along each dimension."""
    if state.dim() == 0:
        return True
    pairs = zip(state.shape, parameter.shape, strict=False)
    return state.dim() == parameter.dim() and all(size in (1, whole) for size, whole in pairs)


def _no_place(optimizer: torch.optim.Optimizer, key: str, state: Tensor) -> OptionError:
    return OptionError(
        f"a checkpoint cannot keep the state {key!r} of {type(optimizer).__name__}",
        why=f"it has the shape {list(state.shape)}, which is not that of a parameter",
        do="give another optimizer, such as sgd or adamw",
    )


def _processes(count: int) -> str:
    return "one process" if count == 1 else f"{count} processes"


def _settled(group: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options of an optimiser's group that do not change from step to step."""
    return {key: value for key, value in group.items() if key not in ("lr", "step")}


def _plain(groups: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Make the counters of groups numbers: some optimisers keep tensors, and read both."""
    return [
        {key: value.item() if isinstance(value, Tensor) else value for key, value in group.items()}
        for group in groups
    ]


def _check_options(path: Path, training: _Training, options: TrainOptions, data: DataSet) -> None:
    was, now = dataclasses.asdict(training.options), dataclasses.asdict(options)
    differ = [key for key in now if key not in ("epochs", "device") and now[key] != was[key]]
    # A shorter run would have begun to save earlier, and settled earlier.
    differ += ["epochs"] if now["epochs"] < was["epochs"] else []
    refuse_others(path, {key: (was[key], now[key]) for key in differ})
    saw, sees = training.data, _Looks.of(data)
    if dataclasses.replace(saw, name=sees.name) != sees:
        raise RunError(
            f"cannot go on from {path}",
            why=f"it was trained on other data: {saw}; now {sees}",
            do="give the same data, or begin another run",
        )


def refuse_others(path: Path, differ: Mapping[str, tuple[Any, Any]]) -> None:
    """Refuse to go on from a checkpoint with options that differ from those it was trained with.

    Args:
        path: the checkpoint.
        differ: by the option's name, what it was and what it is now.

    Raises:
        RunError: there is one.
    """
    if differ:
        raise RunError(
            f"cannot go on from {path}",
            why="it was trained with other options: "
            + ", ".join(f"{key} {was} (now {now})" for key, (was, now) in differ.items()),
            do="give the same options, but for more epochs, or begin another run from this "
            f"checkpoint: fxprune train NEW{SUFFIX} --from {path.parent}, with the options that it "
            "is to have",
        )


def _foreign(path: Path, why: str) -> RunError:
    return RunError(
        f"cannot go on from {path}",
        why=why,
        do="give another folder, or delete this one's checkpoint",
    )


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__
