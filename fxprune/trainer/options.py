"""How a network is trained: the options, and what follows from them on a given machine."""

import dataclasses
import math
from dataclasses import dataclass
from numbers import Integral, Real
from types import UnionType
from typing import Any, Literal, get_args, get_origin

from fxprune.budget.schedule import Constant, Cubic, Schedule, parse
from fxprune.errors import OptionError, brief, described
from fxprune.registry import to_text
from fxprune.runs.schema import Strict

PYTHON_ONLY = frozenset({"milestones", "decay", "recalibrate"})
"""The fields of `TrainOptions` for which the command line has no option."""

RANGES: dict[str, tuple[float, float]] = {
    "epochs": (1, math.inf),
    "lr": (0, math.inf),
    "decay": (0, 1),
    "lr_warmup": (0, 1),
    "batch_size": (2, math.inf),
    "momentum": (0, 1),
    "weight_decay": (0, math.inf),
    "accumulate": (1, math.inf),
    "early_stop": (1, math.inf),
    "label_smoothing": (0, 1),
    "distil": (0, 1),
    "temperature": (0.01, math.inf),
    "randaugment": (0, 30),
    "mixup": (0, math.inf),
    "cutmix": (0, math.inf),
    "settle": (0, 1),
    "recalibrate": (0, math.inf),
    "seed": (0, 2**40),
}
"""The least and the largest value of options that are numbers."""

_KINDS: dict[Any, tuple[type, str]] = {
    int: (Integral, "a whole number"),
    float: (Real, "a number"),
    bool: (bool, "True or False"),
    str: (str, "a text"),
    tuple: (tuple, "a tuple"),
}
"""What the value of a field of each type may be, and words for it."""


@dataclass(frozen=True)
class TrainOptions(Strict):
    """How a network is trained; the same options give the same bits.

    `fxprune train` has an option for each field but `milestones`, `decay` and `recalibrate`, and
    shows what is said here as its help.

    Attributes:
        epochs: passes over the training split.
        lr: the largest learning rate.
        optimizer: the method: any of torch.optim by name, such as sgd (with momentum), adamw or
            nadam; or one of timm's, such as timm:lamb.
        schedule: how the learning rate falls: cosine to 0; step to a tenth of itself after 50, 75
            and 95 % of the run.
        milestones: shares of the run at which step cuts the learning rate.
        decay: what step multiplies the learning rate by.
        lr_warmup: share of the run in which the learning rate rises linearly from 0.
        batch_size: examples per step.
        momentum: of SGD.
        weight_decay: L2 for SGD, decoupled for AdamW.
        decay_norms: whether norms and biases decay too.
        clip: the largest norm of the gradients of a step, all parameters together; they are
            scaled down to it. Without it there is no limit.
        accumulate: parts into which each batch is split, whose gradients are added up: a step
            sees the same batch in less memory.
        freeze: layers that do not train, by names of named_modules(), * and ? allowed, commas
            between them. Their batch norms go on measuring.
        ema: decay of an average of the weights over the steps (EMA), such as 0.999; it rises to
            this in the first steps. The average is evaluated and exported; 0 is off.
        best: exports the epoch that scored best on the validation split, of those that ended with
            the final channels, in place of the last.
        early_stop: ends the training after so many epochs in a row, with the final channels, that
            were not better than the best; that one is exported.
        label_smoothing: share of the target spread over all classes.
        distil: share of the loss that is the divergence from the dense network as it was before
            the training (distillation); 0 is off.
        temperature: of distillation: what both networks' logits are divided by.
        augment: random crops and flips, as the data set says.
        randaugment: strength of RandAugment (torchvision's, two operations on each image), 1 to
            30, usually 9; 0 is off.
        mixup: mixes pairs of images and their labels (torchvision's MixUp) by shares drawn from
            Beta(a, a) of this a; 0 is off.
        cutmix: likewise pastes a part of one image into another (CutMix).
        amp: reduced precision: auto is bfloat16 (else float16 with loss scaling) on a GPU, off
            on a CPU.
        channels_last: NHWC memory: auto is on, except on a GPU in full precision.
        budget_schedule: how a gated network falls from all channels to its budget: constant (the
            budget from the first step on), linear or cubic, with options in braces:
            linear{begin=0.2,end=0.5}. quick, for trained networks, is cubic{begin=0.01,end=0.1}.
            auto is constant for policies that do best with it (balance) unless `train_macs` is
            given; for others quick in a run that was instrumented with trained weights, else
            cubic{begin=0.1,end=0.4}. quick and auto end earlier where the channels settle
            earlier, and `train_macs` stretches them.
        train_macs: what the whole run may cost, as a share of the dense run's forward macs; plans
            how long the network takes to fall to its budget. Without it there is no limit.
        settle: last share of the run, in which only the channels that are exported train; by
            default 0.75 where auto gives the budget from the first step on, else 0.5.
        recalibrate: batches over which batch norms measure their statistics anew at the end;
            0 keeps the running ones.
        seed: of the order of the examples, of augmentation and of dropout.
        device: where it trains: auto (a GPU if there is one), cpu, cuda, cuda:1 …
    """

    epochs: int = 20
    lr: float = 0.1
    optimizer: str = "sgd"
    schedule: Literal["cosine", "step"] = "cosine"
    milestones: tuple[float, ...] = (0.5, 0.75, 0.95)
    decay: float = 0.1
    lr_warmup: float = 0.0
    batch_size: int = 128
    momentum: float = 0.9
    weight_decay: float = 5e-4
    decay_norms: bool = True
    clip: float | None = None
    accumulate: int = 1
    freeze: str = ""
    ema: float = 0.0
    best: bool = False
    early_stop: int | None = None
    label_smoothing: float = 0.0
    distil: float = 0.0
    temperature: float = 4.0
    augment: bool = True
    randaugment: int = 0
    mixup: float = 0.0
    cutmix: float = 0.0
    amp: Literal["auto", "off", "bfloat16", "float16"] = "auto"
    channels_last: Literal["auto", "off", "on"] = "auto"
    budget_schedule: str = "auto"
    train_macs: float | None = None
    settle: float | None = None
    recalibrate: int = 100
    seed: int = 0
    device: str = "auto"

    def __post_init__(self) -> None:
        self._check_types()
        self._write_one_way()
        self._check_numbers()
        self._check_choices()
        self._check_together()

    def _check_types(self) -> None:
        """Check what the command line's own parser does not let through."""
        for field in dataclasses.fields(self):
            value, kinds = getattr(self, field.name), (get_origin(field.type) or field.type,)
            kinds = get_args(field.type) if UnionType in kinds else kinds
            if type(None) in kinds and value is None:
                continue
            kind, words = _KINDS.get(kinds[0], (object, ""))
            if not isinstance(value, kind) and field.name != "device":  # a torch.device is one too
                raise OptionError(
                    f"{field.name} cannot be {brief(value)}",
                    do=f"give {words}, not {described(value)}",
                )

    def _write_one_way(self) -> None:
        """Write texts that say the same in the same way: a run that goes on compares them."""
        patterns = (part.strip() for part in self.freeze.split(","))
        texts = {
            "optimizer": self.optimizer.strip().lower(),
            "freeze": ",".join(filter(None, patterns)),
        }
        if self.budget_schedule not in ("auto", "quick"):
            texts["budget_schedule"] = to_text(parse(self.budget_schedule))
        for name, text in texts.items():
            object.__setattr__(self, name, text)

    def _check_numbers(self) -> None:
        for name, (low, high) in RANGES.items():
            value = getattr(self, name)
            if value is not None and not (low <= value <= high and math.isfinite(value)):
                most = f" to {high:g}" if math.isfinite(high) else " up, not infinity"
                raise OptionError(
                    f"{name} cannot be {value}", do=f"give a number from {low:g}{most}"
                )
        if self.clip is not None and not 0 < self.clip < math.inf:
            raise OptionError(f"clip cannot be {self.clip}", do="give a number above 0")
        if not 0 <= self.ema < 1:
            raise OptionError(f"ema cannot be {self.ema}", do="give a number from 0 up, below 1")
        if self.train_macs is not None and not 0 < self.train_macs <= 1:
            raise OptionError(
                f"train_macs cannot be {self.train_macs}",
                why="it is a share of the macs of the dense run",
                do="give a number above 0, and at most 1",
            )

    def _check_choices(self) -> None:
        for field in dataclasses.fields(self):
            choices = getattr(field.type, "__args__", ())
            if getattr(field.type, "__origin__", None) is Literal and (
                getattr(self, field.name) not in choices
            ):
                raise OptionError(
                    f"{field.name} cannot be {getattr(self, field.name)!r}",
                    do=f"give one of {', '.join(choices)}",
                )

    def _check_together(self) -> None:
        """Check options against each other."""
        if self.randaugment and not self.augment:
            raise OptionError(
                "randaugment needs augment",
                why="it is a part of the augmentation, which is off",
                do="leave one of the two out",
            )
        if self.accumulate > self.batch_size // 2:
            raise OptionError(
                f"a batch of {self.batch_size} cannot be split into {self.accumulate} parts",
                why="a part has two examples at least, since batch norms measure over it",
                do="give a smaller accumulate, or a larger batch_size",
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

    @property
    def keeps_best(self) -> bool:
        """Whether the best epoch is exported."""
        return self.best or self.early_stop is not None

    def schedule_of_budget(self, falls: bool) -> Schedule:
        """Make the budget's schedule, also what names stand for; `falls` is the policy's."""
        latest = 1 - self.settled_share(falls)
        if self.budget_schedule == "quick":
            end = min(0.1, latest)
            return Cubic(begin=end / 10, end=end)
        if self.budget_schedule != "auto":
            return parse(self.budget_schedule)
        if self._begins_with_the_budget(falls):
            return Constant()
        end = min(0.4, latest)
        return Cubic(begin=end / 4, end=end)

    def settled_share(self, falls: bool) -> float:
        """Return `settle`, what None stands for included; `falls` is the policy's."""
        if self.settle is not None:
            return self.settle
        return 0.75 if self._begins_with_the_budget(falls) else 0.5

    def settles_at(self, steps: int, falls: bool) -> int:
        """Return the step, of all steps of a run, from which on the selection is fixed."""
        return steps - int(self.settled_share(falls) * steps)

    def _begins_with_the_budget(self, falls: bool) -> bool:
        return self.budget_schedule == "auto" and not falls and self.train_macs is None
