"""Prune a trained network: instrument it, train it for a short while, compare it.

Either the size is given, as a budget, or the accuracy: then the smallest network that stays within
so many points of the dense one is searched, by a few short runs, and the best is finished. What
is searched is judged on images held out of the training split; the validation split is used
once, for what is reported.
"""

import copy
import dataclasses
import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import NormalDist
from typing import Any

import torch
from torch import Tensor, fx, nn

from fxprune import api
from fxprune.budget.budget import Budget
from fxprune.channels.graph import Widths
from fxprune.data import DataSet, Split, load
from fxprune.errors import (
    BudgetError,
    DataError,
    FxpruneWarning,
    OptionError,
    message,
    require_kind,
)
from fxprune.gated.module import GatedModule
from fxprune.policies import Policy
from fxprune.tracing.module import evaluating, require_module
from fxprune.tracing.signature import flat_inputs
from fxprune.trainer.evaluate import check_fit
from fxprune.trainer.loop import EpochMetrics, Tick, fit
from fxprune.trainer.options import TrainOptions
from fxprune.trainer.placement import Placement
from fxprune.trainer.recipe import OPTIONS, POLICY, SHORT
from fxprune.trainer.step import check_options
from fxprune.trainer.task import Loss, Task, shapes

HELD_OUT, MOST_HELD_OUT = 0.1, 5000
"""Share and number of training images that a search is judged on."""

FIRST, LEAST = 0.5, 0.1  # shares of the macs: where a search begins, and what it never tries
TRIALS = 4
Z = NormalDist().inv_cdf(0.975)


@dataclass(frozen=True, eq=False)
class Hits:
    """Which images of a split a network names right.

    Attributes:
        right: bool [images].
        labels: int64 [images].
    """

    right: Tensor
    labels: Tensor

    @property
    def accuracy(self) -> float:
        """The share of images that are right."""
        return float(self.right.double().mean())

    @property
    def chance(self) -> float:
        """The share that always naming the most frequent class would reach."""
        return float(torch.bincount(self.labels).max()) / len(self.labels)

    @property
    def near_chance(self) -> bool:
        """Whether the network may as well have guessed."""
        spread = math.sqrt(self.chance * (1 - self.chance) / len(self.labels))
        return self.accuracy <= 1.5 * self.chance + 3 * spread


@dataclass(frozen=True)
class Drop:
    """How many points of accuracy were lost, with a 95 % interval.

    Attributes:
        points: dense less compact, percentage points.
        low: lower end of the interval.
        high: upper end.
    """

    points: float
    low: float
    high: float

    @staticmethod
    def between(dense: Hits, compact: Hits) -> "Drop":
        """Compare two networks on the same images.

        With b images that only the dense network names right and c that only the compact one
        does, of n: (b - c) / n, with the variance (b + c - (b - c)^2 / n) / n^2 of a difference
        of paired shares (Newcombe, Statistics in Medicine 17, 1998, method 1).
        """
        count = len(dense.labels)
        lost = int((dense.right & ~compact.right).sum())
        won = int((compact.right & ~dense.right).sum())
        drop = (lost - won) / count
        spread = math.sqrt(max(lost + won - (lost - won) ** 2 / count, 0.0)) / count
        return Drop(100 * drop, 100 * (drop - Z * spread), 100 * (drop + Z * spread))


@dataclass(frozen=True)
class Trial:
    """A short run of a search.

    Attributes:
        macs: the share of the dense network's macs.
        drop: on the images that were held out.
    """

    macs: float
    drop: Drop


@dataclass(frozen=True, eq=False)
class Pruned:
    """The result of pruning a network.

    Attributes:
        model: the compact network in evaluation mode: plain modules, its own tensors.
        gated: the gated network that it was, for `fxprune.save` and the proof of an export.
        budget: what it was given.
        dense: the dense network's hits on the validation split.
        compact: the compact network's.
        history: the epochs of its training.
        trials: the short runs of a search, in their order; none where the budget was given.
        held_out: the drop on the images that a search held out, of the finished network.
    """

    model: fx.GraphModule
    gated: GatedModule
    budget: Budget
    dense: Hits
    compact: Hits
    history: Sequence[EpochMetrics]
    trials: Sequence[Trial] = ()
    held_out: Drop | None = None

    @property
    def drop(self) -> Drop:
        """What was lost on the validation split."""
        return Drop.between(self.dense, self.compact)

    @property
    def widths(self) -> Widths:
        """The widths of the channel groups."""
        return self.gated.best().widths


@dataclass(frozen=True, eq=False)
class Watcher:
    """Functions called while a pruning goes on; each does nothing by default.

    Attributes:
        began: a phase began.
        measured: the dense network's hits on the validation split, before anything changes.
        ticked: a training step is done.
        tried: a short run of a search is done.
        made: the gated network that is finished exists: returns the folder for its checkpoints, or
            None. Called again for a larger one, where that lost too much after all.
        ready: its training begins; no other process writes to the folder.
    """

    began: Callable[[str], None] = lambda _: None
    measured: Callable[[Hits], None] = lambda _: None
    ticked: Callable[[Tick], None] = lambda _: None
    tried: Callable[[Trial], None] = lambda _: None
    made: Callable[[GatedModule], Path | None] = lambda _: None
    ready: Callable[[], None] = lambda: None


SILENT = Watcher()


def prune(
    model: nn.Module,
    example_inputs: Tensor | tuple[Tensor, ...] | Mapping[str, Tensor],
    *,
    data: DataSet | str,
    macs: float | None = None,
    params: float | None = None,
    keep: float | None = None,
    latency: float | None = None,
    speedup: float | None = None,
    budget: str | Budget | None = None,
    max_drop: float | None = None,
    policy: str | Policy = POLICY,
    options: TrainOptions = OPTIONS,
    round_to: int | None = None,
    watcher: Watcher = SILENT,
    loss: Loss | None = None,
    exclude: str | Sequence[str] = (),
) -> Pruned:
    """Make a trained network smaller: instrument it, train it for a short while, shrink it.

    Args:
        model: the trained network; it is not changed.
        example_inputs: as for `fxprune.instrument`.
        data: images with classes, or the name of a data set that `fxprune.data.load` knows. Its
            images have to be prepared as those that the network was trained on.
        macs: the share of the dense network's multiply-accumulates that shall stay. Give exactly
            one of this and the next six.
        params: that of its parameters.
        keep: that of the channels of each group.
        latency: that of its time in ONNX Runtime on this machine.
        speedup: how many times as fast it shall be; 2 is `latency=0.5`.
        budget: in its text form, or a `Budget`.
        max_drop: the smallest network is searched that loses at most so many points of accuracy.
        policy: how channels are chosen.
        options: how it is trained.
        round_to: see `fxprune.instrument`.
        watcher: called with how far it is.
        loss: what is minimised, from the logits [B, classes] and the labels [B] to a scalar; by
            default the cross-entropy.
        exclude: patterns of layers that keep all channels that they make.

    Warns:
        UserWarning: the dense network's accuracy is near chance.
        FxpruneWarning: no whole training stayed within `max_drop`.

    Returns:
        The compact network, and the hits of both networks on the validation split.

    Raises:
        OptionError: not exactly one goal is given, or an option is out of its range.
        BudgetError: the budget cannot be met, or no trial stays within `max_drop`.
        DataError: the data do not fit the model.
        TraceError, GateError: as `fxprune.instrument`.
    """
    shares = {"macs": macs, "params": params, "keep": keep, "latency": latency, "speedup": speedup}
    goals = [f"{kind}={share}" for kind, share in shares.items() if share is not None]
    goals += [str(max_drop)] if max_drop is not None else []
    if len(goals) + (budget is not None) != 1:
        raise OptionError(
            "a pruning has one goal",
            why=f"given: {', '.join([*goals, *([str(budget)] if budget else [])]) or 'none'}",
            do="give one of macs, params, keep, latency, speedup, budget and max_drop",
        )
    points: Any = max_drop  # a caller may have no types
    if points is not None and not (isinstance(points, int | float) and 0 <= points < 100):
        raise OptionError(f"max_drop cannot be {points!r}", do="give points, such as 1")
    require_module(model)
    require_kind(options, TrainOptions, "the options", "give TrainOptions(…)")
    if options.keeps_best:
        raise OptionError(
            "a pruning chooses no epoch",
            why="the validation split is for what it reports, and best and early_stop choose by it",
            do="leave them out, or instrument, train and export, one after the other",
        )
    given = None if max_drop is not None else Budget.parse(budget or goals[0], round_to)
    example = flat_inputs(model, example_inputs)
    size = example[0].shape
    do = "give a fxprune.data.DataSet, or the name of one that fxprune.data.load knows"
    require_kind(data, DataSet | str, "the data", do)
    if isinstance(data, str):
        data = load(data, image_size=(size[-2], size[-1]) if len(size) == 4 else (224, 224))
    placement = Placement.of(options)
    watcher.began("the dense network's accuracy")
    model = copy.deepcopy(model).to(placement.device)
    check_fit(model, data, placement, Task(loss))
    _check_classes(model, data, placement)
    dense = hits(model, data.val, placement, options.batch_size)
    if dense.near_chance:
        warnings.warn(
            f"the dense network is right on {100 * dense.accuracy:.1f} % of the validation images, "
            "near chance: look at its weights, at the order of the classes, and at how the images "
            "are prepared (fxprune.data.Preprocess)",
            stacklevel=2,
        )
    watcher.measured(dense)
    work = _Work(model, example, data, loss, policy, options, round_to, exclude, watcher)
    if given is not None:
        gated, history = work.run(given, data, options, finish=True)
        return work.result(gated, given, dense, history)
    assert max_drop is not None
    return work.search(max_drop, dense)


@torch.no_grad()
def hits(model: nn.Module, split: Split, placement: Placement, batch_size: int = 128) -> Hits:
    """Run a network over a split, in `model.eval()`; its modes are left as they were."""
    right, labels = [], []
    with evaluating(model):
        for images, truth in split.batches(batch_size, device=placement.device):
            right.append((placement.forward(model, images).argmax(1) == truth).cpu())
            labels.append(truth.cpu())
    return Hits(torch.cat(right), torch.cat(labels))


@dataclass
class _Work:
    """What the runs of one pruning share; see `prune`."""

    model: nn.Module
    example_inputs: tuple[Tensor, ...]
    data: DataSet
    loss: Loss | None
    policy: str | Policy
    options: TrainOptions
    round_to: int | None
    exclude: str | Sequence[str]
    watcher: Watcher
    trials: list[Trial] = field(default_factory=list)

    def run(
        self, budget: Budget, data: DataSet, options: TrainOptions, *, finish: bool
    ) -> tuple[GatedModule, list[EpochMetrics]]:
        """Instrument the network and train it; what is finished gets a folder."""
        self.watcher.began(f"instrumenting for {budget.kind}={budget.value:.3g}")
        example = tuple(tensor.to(_device_of(self.model)) for tensor in self.example_inputs)
        gated = api.instrument(
            self.model, example, self.policy, budget, self.round_to, exclude=self.exclude
        )
        check_options(gated, data, options, Task(self.loss))
        folder = self.watcher.made(gated) if finish else None
        self.watcher.began(f"training at {budget.kind}={budget.value:.3g}")
        ready = self.watcher.ready if finish else None
        ticked = self.watcher.ticked
        history = fit(
            gated, data, options, loss=self.loss, run=folder, ready=ready, progress=ticked
        )
        return gated, history

    def search(self, max_drop: float, dense: Hits) -> Pruned:
        """Halve the room between sizes that lose too much and sizes that do not, then finish."""
        rest, held_out = hold_out(self.data)
        judged = self._hits(self.model, held_out)
        short = dataclasses.replace(self.options, epochs=min(SHORT, self.options.epochs))
        low, high, share = LEAST, 1.0, FIRST
        kept: list[float] = []
        for _ in range(TRIALS):
            gated, _ = self.run(self._macs(share), rest, short, finish=False)
            drop = Drop.between(judged, self._hits(gated, held_out))
            self.trials.append(Trial(share, drop))
            self.watcher.tried(self.trials[-1])
            if drop.points <= max_drop:
                high = share
                kept.append(share)
            else:
                low = share
            share = round(math.sqrt(low * high), 3)
        if not kept:
            raise BudgetError(
                f"no network was found within {max_drop:g} points of the dense one",
                why=f"at macs={self.trials[-1].macs} a short run loses "
                f"{self.trials[-1].drop.points:.1f}",
                do="allow more points, give more epochs, or a budget of your own",
            )
        for share in sorted(kept):  # a whole training may lose more than the short one did
            budget = self._macs(share)
            gated, history = self.run(budget, rest, self.options, finish=True)
            drop = Drop.between(judged, self._hits(gated, held_out))
            if drop.points <= max_drop:
                break
        else:
            text = message(
                f"the pruned network is not within {max_drop:g} points of the dense one",
                why=f"it loses {drop.points:.1f} on the images held out, after a whole training of "
                "each size whose short one kept within them; the largest of these is returned",
                do="give more epochs, or allow more points",
            )
            warnings.warn(text, FxpruneWarning, stacklevel=3)
        result = self.result(gated, budget, dense, history)
        return dataclasses.replace(result, trials=tuple(self.trials), held_out=drop)

    def _macs(self, share: float) -> Budget:
        return Budget("macs", share, self.round_to)

    def _hits(self, model: nn.Module, split: Split) -> Hits:
        return hits(model, split, Placement.of(self.options), self.options.batch_size)

    def result(
        self,
        gated: GatedModule,
        budget: Budget,
        dense: Hits,
        history: Sequence[EpochMetrics],
    ) -> Pruned:
        """Shrink the network, with its hits on the validation split."""
        compact = api.shrink(gated.eval())
        return Pruned(compact, gated, budget, dense, self._hits(compact, self.data.val), history)


@torch.no_grad()
def _check_classes(model: nn.Module, data: DataSet, placement: Placement) -> None:
    """Refuse, before any training, what has no share of right answers.

    Raises:
        DataError: the network does not return one number per class, or the labels are none.
    """
    inputs, labels = next(data.val.batches(2, device=placement.device))
    with evaluating(model):
        outputs = placement.forward(model, inputs)
    fits = isinstance(outputs, Tensor) and outputs.dim() == 2 and isinstance(labels, Tensor)
    if not (fits and labels.dim() == 1 and not labels.is_floating_point()):
        raise DataError(
            f"pruning in one go compares shares of right answers, and {data.name} has none",
            why=f"the network returns {shapes(outputs)}, the targets are {shapes(labels)}",
            do="instrument, train with --loss and --metric, and export, one after the other",
        )


def hold_out(data: DataSet) -> tuple[DataSet, Split]:
    """Split the training images, the same ones each time: what still trains, and what judges.

    Raises:
        DataError: the data cannot be split, or are too few.
    """
    count = len(data.train)
    judged = min(int(HELD_OUT * count), MOST_HELD_OUT)
    part = getattr(data.train, "part", None)
    if part is None or judged < 1:
        raise DataError(
            f"no images of {data.name} can be held out to search on",
            why="its training split has no part()" if part is None else f"it has {count} images",
            do="give a budget, such as macs=0.5, instead of the points that may be lost",
        )
    order = torch.randperm(count, generator=torch.Generator().manual_seed(0))
    return dataclasses.replace(data, train=part(order[judged:])), part(order[:judged])


def _device_of(model: nn.Module) -> torch.device:
    return next((tensor.device for tensor in model.parameters()), torch.device("cpu"))
