"""What a training leaves in its run after each epoch, and how another call goes on from there.

The checkpoint is the gated file (`fxprune.runs.run`), or a plain network's state, with the
optimiser's state, the options, the history, and what the data looked like.
"""

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fxprune.data import DataSet
from fxprune.errors import RunError
from fxprune.files import read_tensors, write_bytes, write_tensors
from fxprune.gated.module import GatedModule
from fxprune.runs.run import CHECKPOINT, GATED, METRICS, Plan, gated_state, under
from fxprune.trainer.options import TrainOptions

OPTIMIZER, MODEL = "optimizer/", "model/"


@dataclass(frozen=True)
class Trained:
    """What changes in a training but for its history.

    Attributes:
        model: plain or gated.
        optimizer: attached to it, if it is gated.
        scaler: of the loss, disabled where it is not needed.
    """

    model: nn.Module
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler

    def save(
        self, run: Path, options: TrainOptions, data: DataSet, history: list[dict[str, Any]]
    ) -> None:
        """Writes the checkpoint, then metrics.jsonl from the same history.

        Raises:
            RunError: the folder cannot be written to.
        """
        if isinstance(self.model, GatedModule):
            tensors, meta = gated_state(self.model)
        else:
            tensors = {f"{MODEL}{key}": value for key, value in self.model.state_dict().items()}
            meta = {}
        state = self.optimizer.state_dict()
        plain: dict[str, dict[str, Any]] = {}
        for index, slots in state["state"].items():
            for key, value in slots.items():
                if isinstance(value, Tensor):
                    tensors[f"{OPTIMIZER}{index}/{key}"] = value
                else:
                    plain.setdefault(str(index), {})[key] = value
        meta |= {
            "options": dataclasses.asdict(options),
            "data": _looks(data),
            "history": history,
            "optimizer": {"state": plain, "param_groups": state["param_groups"]},
            "scaler": self.scaler.state_dict(),
        }
        run.mkdir(parents=True, exist_ok=True)
        write_tensors(run / CHECKPOINT, tensors, meta)
        lines = [json.dumps(item) + "\n" for item in history]
        write_bytes(run / METRICS, "".join(lines).encode())

    def load(self, run: Path, options: TrainOptions, data: DataSet) -> list[dict[str, Any]]:
        """Takes up the state of `run`, if it has one, and returns its history.

        All options but the epochs have to be what they were; of these there may be more.

        Raises:
            RunError: it belongs to another model, plan, options or data, or is damaged.
        """
        path = run / CHECKPOINT
        if not path.exists():
            return []
        tensors, meta = read_tensors(path)
        self._check(path, meta, options, data)
        if "history" not in meta:  # never trained
            return []
        try:
            if isinstance(self.model, GatedModule):
                self.model.train()
                self.model.restore(under(GATED, tensors))
            else:
                self.model.load_state_dict(under(MODEL, tensors))
            state: dict[int, dict[str, Any]] = {
                int(index): dict(slots) for index, slots in meta["optimizer"]["state"].items()
            }
            for name, value in under(OPTIMIZER, tensors).items():
                index, _, key = name.partition("/")
                state.setdefault(int(index), {})[key] = value
            groups = meta["optimizer"]["param_groups"]
            self.optimizer.load_state_dict({"state": state, "param_groups": groups})
        except (RuntimeError, ValueError, KeyError) as error:
            raise _foreign(path, f"it belongs to another model: {_first_line(error)}") from error
        self.scaler.load_state_dict(meta["scaler"])
        history: list[dict[str, Any]] = meta["history"]
        return history

    def _check(
        self, path: Path, meta: dict[str, Any], options: TrainOptions, data: DataSet
    ) -> None:
        old = Plan.from_json(meta["plan"], path) if "plan" in meta else None
        if old != (Plan.of(self.model) if isinstance(self.model, GatedModule) else None):
            raise _foreign(
                path, "it belongs to another model, or to one that was instrumented otherwise"
            )
        if "history" not in meta:
            return
        was = {field.name: field.default for field in dataclasses.fields(TrainOptions)}
        was |= meta["options"]
        now = json.loads(json.dumps(dataclasses.asdict(options)))
        differ = [key for key in now if key != "epochs" and now[key] != was[key]]
        # A shorter run would have begun to save earlier, and settled earlier.
        differ += ["epochs"] if now["epochs"] < was["epochs"] else []
        if differ:
            raise RunError(
                f"cannot go on from {path}",
                why="it was trained with other options: "
                + ", ".join(f"{key} {was[key]} (now {now[key]})" for key in differ),
                do="give the same options, but for more epochs, or begin another run",
            )
        seen, looks = meta.get("data", {}), _looks(data)
        if any(
            seen.get(key, looks[key]) != looks[key] for key in ("train", "val", "classes", "shape")
        ):
            raise RunError(
                f"cannot go on from {path}",
                why=f"it was trained on other data: {_told(seen)}; now {_told(looks)}",
                do="give the same data, or begin another run",
            )


def _looks(data: DataSet) -> dict[str, Any]:
    """By what other data are recognised; the name is for messages, since folders may move."""
    return {
        "name": data.name,
        "train": len(data.train),
        "val": len(data.val),
        "classes": list(data.classes),
        "shape": list(data.shape),
    }


def _told(looks: dict[str, Any]) -> str:
    shape = " x ".join(map(str, looks["shape"]))
    return (
        f"{looks['name']}, {looks['train']} and {looks['val']} images of {shape} "
        f"in {len(looks['classes'])} classes"
    )


def _foreign(path: Path, why: str) -> RunError:
    return RunError(
        f"cannot go on from {path}",
        why=why,
        do="give another folder, or delete this one's checkpoint",
    )


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__
