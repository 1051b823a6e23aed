"""The arms of the tables: ways to get a network of some size, each trained to its end.

* `Dense`: the whole network, with which all others are compared.
* `Gated`: fxprune, a selection in each step.
* `Narrow`: a plain network of the widths that another arm found, or of uniform ones, from scratch;
  for as many epochs as that arm, or for as many macs. The honest control.
* `Peer`: Torch-Pruning as its documentation has it: train dense, prune, fine-tune; for as many
  macs as another arm took.

The macs of a training are the forward ones of its steps; backward ones are in proportion. They are
given as a share of those of the dense arm.
"""

import abc
import dataclasses
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import _paths  # noqa: F401 - the tools that all share
import models
import torch
from memory import KeptPeak
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_pre_hook
from torch.utils.flop_counter import FlopCounterMode
from trail import Trail

import fxprune
from fxprune.bank.exchange import Selection
from fxprune.data import DataSet
from fxprune.policies import parse
from fxprune.trainer import loop

Record = dict[str, Any]


@dataclass(frozen=True)
class Job:
    """One training that is wanted.

    Attributes:
        build: makes the dense network.
        data: what it is trained on.
        options: how; the seed among them.
        folder: where its checkpoints are.
        deadline: until when it may take this time, by `time.monotonic`.
        other: the record of the arm that the wanted one is `after`, of the same seed.
    """

    build: Callable[[], nn.Module]
    data: DataSet
    options: loop.TrainOptions
    folder: Path
    deadline: float
    other: Record

    def model(self) -> nn.Module:
        """The dense network, with the seed's weights."""
        torch.manual_seed(self.options.seed)
        return models.initialised(self.build())

    @property
    def example(self) -> Tensor:
        """Two images."""
        return torch.zeros(2, *self.data.shape)

    def fit(
        self, model: nn.Module, share: float = 1.0, trail: Trail | None = None, **changes: Any
    ) -> Record | None:
        """Trains; None where the minutes were not enough.

        Args:
            model: what to train.
            share: of the dense network's macs, what a plain network has.
            trail: for a gated network, watches it.
            changes: options that differ.
        """
        options = dataclasses.replace(self.options, **changes)
        peak = KeptPeak(torch.device(options.device), self.folder / "peak_bytes")

        def watch(tick: loop.Tick) -> None:
            if trail is not None:
                trail.step(tick)
            if tick.metrics is not None:
                peak.keep()

        minutes = (self.deadline - time.monotonic()) / 60
        history = loop.fit(
            model, self.data, options, run=self.folder, progress=watch, minutes=minutes
        )
        if len(history) < options.epochs:
            return None
        steps = len(self.data.train) // options.batch_size
        spent = [share * epoch.epoch / self.options.epochs for epoch in history]
        if isinstance(model, fxprune.GatedModule):
            whole = (history[-1].run_macs_dense or 0) * self.options.epochs / options.epochs
            spent = [(epoch.run_macs or 0) / whole for epoch in history]
        return {
            "accuracy": history[-1].val_accuracy,
            "run_macs": spent[-1],
            "epochs": options.epochs,
            "seconds": steps * sum(epoch.step_seconds for epoch in history),
            "training_peak_mb": peak.bytes() / 2**20,
            "curve": [
                {"accuracy": epoch.val_accuracy, "loss": epoch.train_loss, "run_macs": macs}
                for epoch, macs in zip(history, spent, strict=True)
            ],
        }


@dataclass(frozen=True)
class Arm(abc.ABC):
    """A way to get a network.

    Attributes:
        name: in tables and folders.
        after: the arm whose record of the same network and seed this one needs.
        options: what differs from the recipe's options.
    """

    name: str
    after: str = ""
    options: Mapping[str, Any] = field(default_factory=dict)

    @abc.abstractmethod
    def train(self, job: Job) -> Record | None:
        """Trains to the end, or until the minutes are over: then None, and the next call goes on.

        Returns:
            `accuracy` on the test images after the last epoch; `macs` and `params` of the result
            and `run_macs` of the training, as shares of the dense arm's; `epochs`; `seconds` of
            all training steps; `training_peak_mb`; `curve`, with the accuracy after each epoch;
            and more.
        """


@dataclass(frozen=True)
class Dense(Arm):
    """The whole network."""

    def train(self, job: Job) -> Record | None:
        """See `Arm`."""
        record = job.fit(job.model())
        return record and record | {"macs": 1.0, "params": 1.0}


@dataclass(frozen=True)
class Gated(Arm):
    """fxprune; policy and budget are in their text forms.

    Widths are not rounded, so that all arms spend the same: the nets here are narrow ones. Where
    it is `after` another arm it trains for as many macs, not for as many epochs. With a `warmup`
    all channels execute in that share of the run first, whatever the policy's own warm-up is.
    """

    policy: str = "cucb"
    budget: str = "macs=0.27"
    round_to: int | None = 1
    warmup: float = 0.0

    def train(self, job: Job) -> Record | None:
        """See `Arm`."""
        policy = parse(self.policy)
        if self.warmup:
            steps = len(job.data.train) // job.options.batch_size * job.options.epochs
            policy = dataclasses.replace(policy, warmup=round(self.warmup * steps))
        gated = fxprune.instrument(
            job.model(),
            (job.example,),
            policy,
            self.budget,
            self.round_to,
            seed=job.options.seed,
        )
        trail = Trail(gated, job.folder / "trail.jsonl")
        epochs = job.options.epochs
        if self.after:
            epochs = round(job.other["run_macs"] * epochs / size_of(gated)["macs"])
        record = job.fit(gated, trail=trail, epochs=epochs)
        return record and record | size_of(gated) | trail.record(scores=job.options.seed == 0)


@dataclass(frozen=True)
class Narrow(Arm):
    """A plain network of the widths that the arm before it found, from scratch.

    Attributes:
        equal: what its training has in common with that arm's: its epochs, or its macs.
        budget: the uniform widths of this budget instead; empty for those that were found.
    """

    equal: Literal["epochs", "macs"] = "macs"
    budget: str = ""

    def train(self, job: Job) -> Record | None:
        """See `Arm`."""
        budget = self.budget or "keep=1"
        gated = fxprune.instrument(
            job.model(), (job.example,), "fixed{choice=first}", budget, round_to=1
        )
        if not self.budget:
            gated.settle(first_channels(gated, job.other["widths"]))
        size = size_of(gated)
        torch.manual_seed(job.options.seed)
        model = models.initialised(fxprune.shrink(gated))
        epochs = job.options.epochs
        if self.equal == "macs":
            epochs = max(round(job.other["run_macs"] * epochs / size["macs"]), 1)
        record = job.fit(model, size["macs"], epochs=epochs)
        return record and record | size


@dataclass(frozen=True)
class Peer(Arm):
    """Torch-Pruning, its global pruning to the macs of the arm before it.

    Attributes:
        sparse: GroupNorm with its sparsity regulariser in the dense training; else GroupMagnitude.
        dense_share: share of the macs that the dense training takes.
        tune_lr: the learning rate of the fine-tuning, as a share of the recipe's. In short
            trainings all of it does much better than the usual tenth.
    """

    sparse: bool = False
    dense_share: float = 0.5
    tune_lr: float = 1.0

    def train(self, job: Job) -> Record | None:
        """See `Arm`."""
        import torch_pruning as tp

        whole = job.other["run_macs"] * job.options.epochs
        first = max(round(self.dense_share * whole), 1)
        model = job.model()
        classifier = [m for m in model.modules() if isinstance(m, nn.Linear)]
        kind = tp.pruner.GroupNormPruner if self.sparse else tp.pruner.BasePruner
        pruner = kind(
            model,
            job.example,
            importance=tp.importance.GroupMagnitudeImportance(),
            global_pruning=True,
            pruning_ratio=1.0,
            max_pruning_ratio=0.95,
            iterative_steps=200,
            ignored_layers=classifier,
        )
        dense = dataclasses.replace(job, folder=job.folder / "dense")
        with _regularised(pruner if self.sparse else None, model):
            before = dense.fit(model, epochs=first)
        if before is None:
            return None
        macs, params = macs_of(model, job.example), params_of(model)
        while macs_of(model, job.example) > job.other["macs"] * macs:
            pruner.step()
        size = {"macs": macs_of(model, job.example) / macs, "params": params_of(model) / params}
        rest = max(round((whole - first) / size["macs"]), 1)
        tuned = dataclasses.replace(job, folder=job.folder / "tuned")
        record = tuned.fit(
            model.train(), size["macs"], epochs=rest, lr=self.tune_lr * job.options.lr
        )
        return record and _one_after_another(before, record) | size


@contextmanager
def _regularised(pruner: Any, model: nn.Module) -> Iterator[None]:
    """Adds a sparsity regulariser's gradient before each optimiser step, if there is one."""
    if pruner is None:
        yield
        return
    pruner.update_regularizer()
    handle = register_optimizer_step_pre_hook(lambda *_: pruner.regularize(model))
    try:
        yield
    finally:
        handle.remove()


def _one_after_another(first: Record, second: Record) -> Record:
    """The record of two trainings, of which the second goes on with the first one's network."""
    spent = first["run_macs"]
    later = [epoch | {"run_macs": spent + epoch["run_macs"]} for epoch in second["curve"]]
    sums = {key: first[key] + second[key] for key in ("run_macs", "epochs", "seconds")}
    peak = max(first["training_peak_mb"], second["training_peak_mb"])
    return second | sums | {"training_peak_mb": peak, "curve": first["curve"] + later}


def first_channels(gated: fxprune.GatedModule, widths: list[int]) -> Selection:
    """The first channels of each group."""
    spans = zip(gated.channels.layout.offsets, widths, strict=True)
    channels = [torch.arange(begin, begin + width) for begin, width in spans]
    return Selection(torch.cat(channels), tuple(widths))


def size_of(gated: fxprune.GatedModule) -> Record:
    """The macs and params of what an export would take, as shares; the widths and the sizes."""
    cost, widths = gated.cost, gated.best().widths
    return {
        "macs": cost.macs(widths) / cost.dense_macs,
        "params": cost.params(widths) / cost.dense_params,
        "widths": list(widths),
        "sizes": list(gated.channels.layout.sizes),
    }


def macs_of(model: nn.Module, images: Tensor) -> int:
    """Multiply-accumulates, by torch's own counter, which counts two for each."""
    training = model.training
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model.eval()(images.to(next(model.parameters()).device))
    model.train(training)
    return int(counter.get_total_flops()) // 2


def params_of(model: nn.Module) -> int:
    """Elements of all parameters."""
    return sum(parameter.numel() for parameter in model.parameters())
