"""How a network is trained: the options, and what follows from them on a given machine."""

import dataclasses
import math
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from pydantic import ConfigDict
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from fxprune.budget.schedule import Constant, Cubic, Schedule, parse
from fxprune.errors import OptionError
from fxprune.runs.plan import STRICT
from fxprune.trainer.task import call


@dataclass(frozen=True)
class TrainOptions:
    """How a network is trained; the same options give the same bits.

    Attributes:
        epochs: passes over the training split.
        lr: the largest learning rate.
        optimizer: "sgd" (with momentum) or "adamw".
        schedule: "cosine" down to 0, or "step": times `decay` at each of `milestones`.
        milestones: shares of the run at which "step" cuts the learning rate.
        decay: what "step" multiplies by.
        lr_warmup: share of the run in which the learning rate rises linearly from 0.
        batch_size: examples per step.
        momentum: of SGD.
        weight_decay: L2 for SGD, decoupled for AdamW; on all parameters.
        label_smoothing: share of the target spread over all classes.
        augment: random crops and flips, as the data set says.
        amp: reduced precision: "auto" is bfloat16 (else float16 with loss scaling) on a GPU, off
            on a CPU.
        channels_last: NHWC memory: "auto" is on, but for a GPU in full precision.
        budget_schedule: how a gated network falls from all channels to its budget, such as
            "linear{begin=0.1,end=0.6}"; see `fxprune.budget.schedule`. "constant" is the budget
            from the
            first step on; "auto" is that for policies that do best with it (`Policy.falls`) unless
            `train_macs` is given, and for others "cubic" from the first tenth to 0.4 of the run,
            or earlier where the network settles earlier.
        train_macs: what the whole run may cost, as a share of the dense run's forward macs; the
            length of the budget's fall is planned by it. None for no limit.
        settle: last share of the run, in which a gated network trains on the selection that is
            exported. None is 0.75 where "auto" gives the budget from the first step on, else 0.5.
        recalibrate: batches over which batch norms measure their statistics anew at the end;
            0 keeps the running ones.
        seed: of everything that is random.
        device: "auto" is a GPU if there is one.
    """

    __pydantic_config__: ClassVar[ConfigDict] = STRICT

    epochs: int = 20
    lr: float = 0.1
    optimizer: Literal["sgd", "adamw"] = "sgd"
    schedule: Literal["cosine", "step"] = "cosine"
    milestones: tuple[float, ...] = (0.5, 0.75, 0.95)
    decay: float = 0.1
    lr_warmup: float = 0.0
    batch_size: int = 128
    momentum: float = 0.9
    weight_decay: float = 5e-4
    label_smoothing: float = 0.0
    augment: bool = True
    amp: Literal["auto", "off", "bfloat16", "float16"] = "auto"
    channels_last: Literal["auto", "off", "on"] = "auto"
    budget_schedule: str = "auto"
    train_macs: float | None = None
    settle: float | None = None
    recalibrate: int = 100
    seed: int = 0
    device: str = "auto"

    def __post_init__(self) -> None:
        ranges: dict[str, tuple[float, float]] = {
            "epochs": (1, math.inf),
            "lr": (0, math.inf),
            "decay": (0, 1),
            "lr_warmup": (0, 1),
            "batch_size": (2, math.inf),
            "momentum": (0, 1),
            "weight_decay": (0, math.inf),
            "label_smoothing": (0, 1),
            "settle": (0, 1),
            "recalibrate": (0, math.inf),
        }
        for name, (low, high) in ranges.items():
            value = getattr(self, name)
            if value is not None and not (low <= value <= high and math.isfinite(value)):
                most = f" to {high:g}" if math.isfinite(high) else " up, not infinity"
                raise OptionError(
                    f"{name} cannot be {value}", do=f"give a number from {low:g}{most}"
                )
        for field in dataclasses.fields(self):
            choices = getattr(field.type, "__args__", ())
            if getattr(field.type, "__origin__", None) is Literal and (
                getattr(self, field.name) not in choices
            ):
                raise OptionError(
                    f"{field.name} cannot be {getattr(self, field.name)!r}",
                    do=f"one of {', '.join(choices)}",
                )
        if self.train_macs is not None and not 0 < self.train_macs <= 1:
            raise OptionError(
                f"train_macs cannot be {self.train_macs}",
                why="it is a share of the macs of the dense run",
                do="give a number above 0, and at most 1",
            )
        schedule = self.schedule_of_budget(falls=True)
        end = schedule.end if schedule.left(0.0) > 0 else 0.0
        settled = self.settled_share(falls=True)
        if self.train_macs is None and end > 1 - settled + 1e-9:
            raise OptionError(
                f"the budget cannot fall until {end:g} of the run",
                why=f"the channels settle after {1 - settled:g} of it",
                do="give the schedule an earlier end, or a smaller settle",
            )

    def schedule_of_budget(self, falls: bool) -> Schedule:
        """The budget's schedule, what "auto" stands for included; `falls` is the policy's."""
        if self.budget_schedule != "auto":
            return parse(self.budget_schedule)
        if self._begins_with_the_budget(falls):
            return Constant()
        end = min(0.4, 1 - self.settled_share(falls))
        return Cubic(begin=end / 4, end=end)

    def settled_share(self, falls: bool) -> float:
        """`settle`, what None stands for included; `falls` is the policy's."""
        if self.settle is not None:
            return self.settle
        return 0.75 if self._begins_with_the_budget(falls) else 0.5

    def settles_at(self, steps: int, falls: bool) -> int:
        """The step, of all steps of a run, from which on the selection is fixed."""
        return steps - int(self.settled_share(falls) * steps)

    def _begins_with_the_budget(self, falls: bool) -> bool:
        return self.budget_schedule == "auto" and not falls and self.train_macs is None


@dataclass(frozen=True)
class Placement:
    """Where and in which precision the network runs; what the "auto" options came to."""

    device: torch.device
    amp: torch.dtype | None
    channels_last: bool

    @staticmethod
    def of(options: TrainOptions) -> "Placement":
        """Settles the "auto" options on this machine.

        Raises:
            OptionError: the device is unknown or not there.
        """
        gpu = torch.cuda.is_available()
        try:
            device = torch.device(
                options.device if options.device != "auto" else "cuda" if gpu else "cpu"
            )
        except RuntimeError as error:
            raise OptionError(f"unknown device {options.device!r}", do="auto, cpu, cuda") from error
        if device.type not in ("cpu", "cuda"):
            raise OptionError(
                f"cannot train on the device {options.device!r}",
                why="the built-in trainer runs on cpu and cuda",
                do="give one of these, or train in a loop of your own",
            )
        try:
            torch.empty(0, device=device)
        except (RuntimeError, AssertionError) as error:  # the latter where torch is built without
            raise OptionError(f"there is no device {options.device!r}", do="give cpu") from error
        amp = {"off": None, "bfloat16": torch.bfloat16, "float16": torch.float16}.get(options.amp)
        if options.amp == "auto" and device.type == "cuda":
            amp = torch.bfloat16 if torch.cuda.is_bf16_supported(False) else torch.float16
        automatic = device.type != "cuda" or amp is not None
        channels_last = {"off": False, "on": True, "auto": automatic}[options.channels_last]
        return Placement(device, amp, channels_last)

    def prepare(self, inputs: Any) -> Any:
        """Inputs with images [B, C, H, W] in the wanted memory format."""
        if not self.channels_last:
            return inputs

        def placed(tensor: Tensor) -> Tensor:
            if tensor.dim() != 4:
                return tensor
            return tensor.contiguous(memory_format=torch.channels_last)

        return pytree.tree_map_only(Tensor, placed, inputs)

    def forward(self, model: nn.Module, inputs: Any) -> Any:
        """What the network returns for the inputs of a batch, in float32."""
        with torch.autocast(self.device.type, self.amp, enabled=self.amp is not None):
            outputs = call(model, self.prepare(inputs))
        if self.amp is None:
            return outputs
        return pytree.tree_map_only(
            Tensor, lambda found: found.float() if found.is_floating_point() else found, outputs
        )


def learning_rate(options: TrainOptions, share: float) -> float:
    """The learning rate after `share` (0 to 1) of the run."""
    if share < options.lr_warmup:
        return options.lr * share / options.lr_warmup
    if options.schedule == "step":
        return options.lr * options.decay ** sum(share >= at for at in options.milestones)
    rest = (share - options.lr_warmup) / max(1 - options.lr_warmup, 1e-12)
    return options.lr * (1 + math.cos(math.pi * rest)) / 2


def make_optimizer(model: nn.Module, options: TrainOptions) -> torch.optim.Optimizer:
    """The optimiser over all of the model's parameters."""
    if options.optimizer == "adamw":
        return torch.optim.AdamW(
            model.parameters(), lr=options.lr, weight_decay=options.weight_decay
        )
    return torch.optim.SGD(
        model.parameters(),
        lr=options.lr,
        momentum=options.momentum,
        weight_decay=options.weight_decay,
    )
