"""The built-in trainer: one plain loop for dense and gated networks.

Every epoch is a function of the state at its start, the seed and the epoch's number: order of
the data, augmentation and the network's own draws (dropout) come from generators that are seeded
anew. So a run that is continued from its last checkpoint ends in the same bits as one that was
never interrupted (same machine, same number of threads).

The validation split is only evaluated, after each epoch; by it nothing is chosen but, where
`best` or `early_stop` is given, the epoch that is handed over.
"""

import contextlib
import math
import statistics
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from numbers import Real
from pathlib import Path
from typing import Any

import torch
from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel

from fxprune.data import WHOLE, Batch, DataSet, Share
from fxprune.data.own import steps_of
from fxprune.data.randaugment import with_randaugment
from fxprune.errors import OptionError, require_kind
from fxprune.files import as_path
from fxprune.gated.attach import attach
from fxprune.gated.ddp import share_buffers
from fxprune.gated.module import GatedModule
from fxprune.runs.history import EpochMetrics, keep_metrics
from fxprune.runs.writer import only_writer, require_lock
from fxprune.tracing.module import require_module
from fxprune.trainer import checkpoint, teacher
from fxprune.trainer.churn import Churn
from fxprune.trainer.clock import Clock
from fxprune.trainer.evaluate import Stop, check_fit, score, summed
from fxprune.trainer.optimizer import frozen, make_optimizer
from fxprune.trainer.options import TrainOptions
from fxprune.trainer.outcome import Outcome, stopped_early
from fxprune.trainer.placement import Placement
from fxprune.trainer.plan import RunPlan, plan_run
from fxprune.trainer.progress import Progress, Stopped
from fxprune.trainer.recalibration import recalibrate
from fxprune.trainer.step import Step
from fxprune.trainer.task import Loss, Metric, Task, examples_of, name_of
from fxprune.trainer.teacher import Teacher

__all__ = ["EpochMetrics", "Placement", "Stopped", "Tick", "TrainOptions", "fit"]


@dataclass(frozen=True)
class Tick:
    """One report of progress: `steps_done` of all `steps` of the run are done.

    Attributes:
        steps_done: steps of the run that are done.
        steps: all of them.
        metrics: of an epoch, there when the tick ends it.
        fall_ends: the epoch, from 1, in which a gated network comes down to its budget, while it
            has not: the epoch's validation is at the budget's widths already, for which it has
            not been trained.
    """

    steps_done: int
    steps: int
    metrics: EpochMetrics | None = None
    fall_ends: int | None = None


def fit(
    model: nn.Module,
    data: DataSet,
    options: TrainOptions,
    *,
    loss: Loss | None = None,
    metric: Metric | None = None,
    run: str | Path | None = None,
    ready: Callable[[], None] | None = None,
    progress: Callable[[Tick], None] | None = None,
    minutes: float | None = None,
    stop: Stop | None = None,
) -> list[EpochMetrics]:
    """Train `model` in place, and leave it in eval mode, with the weights that are handed over.

    These are the last step's; with `ema` their average, with `best` or `early_stop` those of the
    best epoch. The checkpoint holds the last step's as well, from which another call goes on.

    The processes of a torch.distributed process group, if there is one, share each batch; the
    first of them writes.

    Args:
        model: any module that maps images [B, C, H, W] to logits [B, classes], or to what the loss
            takes. A gated one selects its channels meanwhile, and is settled at the end of its
            last epoch.
        data: what to train and evaluate on.
        options: how.
        loss: from what the network returns, and the target, to a scalar; by default the
            cross-entropy.
        metric: likewise to a number, higher is better, or an object with `update`, `compute` and
            `reset`; by default the share of right answers.
        run: a folder for the checkpoint and metrics.jsonl. If it already holds a checkpoint, the
            run goes on from there.
        ready: called before the first step, when all that can be refused beforehand was not.
        progress: called after every step.
        minutes: no epoch is begun that would, going by the last one, end after so long.
        stop: asked after every step whether to write a checkpoint and stop there; the answer of
            any process counts. Another call goes on after that step.

    Returns:
        The metrics of all epochs of the run, those before a resumption included.

    Raises:
        DataError: the data do not fit the model, or the loss does not fit both.
        ModelError: the network returns something else than the loss takes, or cannot be trained.
        OptionError: an argument is of another kind, the loss became infinite or NaN, or the run
            cannot cost as little as it has to.
        RunError: the checkpoint is damaged, or belongs to another model, other options or data;
            or another process writes to the run.
        Stopped: `stop` said so, and the checkpoint is written.
        TraceError: the model is no nn.Module.
    """
    task = Task(loss, metric)
    require_module(model)
    require_kind(data, DataSet, "the data", "give what fxprune.data.load or own_data returned")
    require_kind(options, TrainOptions, "the options", "give TrainOptions(…)")
    require_kind(minutes, Real | None, "minutes", "give a number")
    for name, function in (("ready", ready), ("progress", progress), ("stop", stop)):
        require_kind(function, Callable | None, name, "give a function")
    run = None if run is None else as_path(run)
    first = run is not None and _share(len(data.train), options.batch_size).rank == 0
    with only_writer(run) if run is not None and first else contextlib.nullcontext():
        deadline = math.inf if minutes is None else time.monotonic() + 60 * minutes
        placement = Placement.of(options)
        model.to(placement.device)
        check_fit(model, data, placement, task)
        with frozen(model, options.freeze):
            session = _Session(
                model, make_optimizer(model, options), data, options, placement, task
            )
            history = session.resume(run) if run is not None else []
            session.learn_from_dense(run, goes_on=bool(history))
            if ready is not None:
                ready()
            session.wrap()
            for epoch in range(len(history), options.epochs):
                over = history and time.monotonic() + history[-1].seconds > deadline
                if session.agree(bool(over or stopped_early(options, history))):
                    break
                metrics = session.epoch(epoch, progress, stop)
                if metrics is not None:
                    history.append(metrics)
                    session.outcome.epoch(history)
                session.save(run, history)
                if metrics is None or (epoch < options.epochs - 1 and session.asked(stop)):
                    raise Stopped
            session.outcome.hand_over()
            model.eval()
            return history


class _Session:
    """What the epochs of one call of `fit` share."""

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        data: DataSet,
        options: TrainOptions,
        placement: Placement,
        task: Task,
    ) -> None:
        self.task = task
        self.model, self.optimizer = model, optimizer
        self.data = with_randaugment(data, options.randaugment)
        self.network: nn.Module = model
        self.share = _share(len(data.train), options.batch_size)
        self.options, self.placement = options, placement
        self.scaler = torch.amp.GradScaler(
            placement.device.type, enabled=placement.amp is torch.float16
        )
        self.step = Step(optimizer, self.scaler, options, placement, data, task)
        self.so_far = Progress.begin(placement.device)
        self.steps_per_epoch = steps_of(data.train, options.batch_size)
        self.steps = self.steps_per_epoch * options.epochs
        self.gated = model if isinstance(model, GatedModule) else None
        self.plan: RunPlan | None = None
        self.spent: int | None = 0
        if self.gated is not None:
            self.plan = plan_run(self.gated, options, self.steps)
            attach(self.gated, optimizer, schedule=self.plan.by_step)
        elif options.train_macs is not None:
            raise OptionError(
                "train_macs is for gated networks",
                why="a plain network executes all of its macs in every step",
                do="give what fxprune.instrument returned, or leave train_macs out",
            )
        self._refuse_a_best_of_one()
        self.outcome = Outcome(model, options)
        self.trained = checkpoint.Trained.of(model, optimizer, self.scaler, self.outcome)

    def resume(self, run: Path) -> list[EpochMetrics]:
        """Take up the state of `run`, if it has one, and return its history."""
        history, so_far = self.trained.load(run, self.options, self.data, self.share)
        if history and self.share.rank == 0:
            keep_metrics(run, history)  # of a process that was killed before it had written them
        if history or so_far is not None:
            self.spent = history[-1].run_macs if so_far is None else so_far.spent
            self.so_far = so_far or self.so_far
            done = len(history) * self.steps_per_epoch + self.so_far.step
            if self.gated is not None and self.plan is not None:
                if done < self._settles_at(self.gated):
                    self.gated.unsettle()  # the run was shorter when it ended
                self.gated.spend(self.plan.by_step.share(self.gated.steps))
        return history

    def learn_from_dense(self, run: Path | None, *, goes_on: bool) -> None:
        """Load the teacher of the distillation; a new one is written into `run`."""
        goes_on = goes_on or self.so_far.step > 0
        self.step.teacher = Teacher.of(
            self.model, self.options, self.placement, run if goes_on else None
        )
        begins = self.step.teacher is not None and not goes_on
        if begins and run is not None and self.share.rank == 0:
            teacher.keep(self.model, run)

    def save(self, run: Path | None, history: Sequence[EpochMetrics]) -> None:
        """Write the checkpoint, with the epoch that is on its way; all processes have to call."""
        if run is None:
            return
        kept = self.so_far.keep(self.share, self.spent) if self.so_far.step else None
        if self.share.rank == 0:
            require_lock(run)
            self.trained.save(run, self.options, self.data, history, self.share.of, kept)

    def asked(self, stop: Stop | None) -> bool:
        """Tell whether any process was asked to stop."""
        if stop is None or self.share.of == 1:
            return stop is not None and stop()
        any_of_them = torch.tensor(int(stop()))
        distributed.all_reduce(any_of_them, distributed.ReduceOp.MAX)
        return bool(any_of_them)

    def wrap(self) -> None:
        """Wrap the network in DistributedDataParallel, if there are several processes."""
        if self.share.of > 1:
            self.network = DistributedDataParallel(self.model)

    def agree(self, answer: bool) -> bool:
        """Return the first process's answer, on all of them."""
        if self.share.of == 1:
            return answer
        first = torch.tensor(int(answer), device=self.placement.device)
        distributed.broadcast(first, 0)
        return bool(first)

    def epoch(
        self, epoch: int, progress: Callable[[Tick], None] | None, stop: Stop | None
    ) -> EpochMetrics | None:
        """Train one epoch and evaluate, or go on after its step `so_far`; `epoch` counts from 0.

        Returns:
            The metrics; None if `stop` asked to end, and `so_far` holds the sums until then.
        """
        began, so_far = time.perf_counter(), self.so_far
        self.model.train()
        figures = self._train(epoch, progress, stop)
        if figures is None:
            return None
        if isinstance(self.network, DistributedDataParallel):  # as before each of its forwards
            for network in self.outcome.networks:
                share_buffers(network.buffers(), self.network)
        train_loss, train_accuracy = self._train_scores(epoch)
        try:
            val = score(
                self.outcome.network,
                self.data.val,
                self.placement,
                self.options.batch_size,
                self.share,
                stop,
                self.task,
            )
        except Stopped:
            return None
        self.so_far = Progress.begin(self.placement.device)
        metrics = EpochMetrics(
            epoch=epoch + 1,
            lr=self.optimizer.param_groups[0]["lr"],
            train_loss=train_loss,
            train_accuracy=train_accuracy if val.labelled else None,
            val_loss=val.loss if math.isfinite(val.loss) else None,
            val_accuracy=val.accuracy,
            val_top5=val.top5,
            metric=None if self.task.metric is None else name_of(self.task.metric),
            val_metric=val.metric,
            step_seconds=statistics.median(so_far.seconds),
            seconds=time.perf_counter() - began,
            settled=None if self.gated is None else self.gated.settled,
            **figures,
        )
        if progress is not None:
            done = epoch * self.steps_per_epoch + so_far.step
            progress(Tick(done, self.steps, metrics, self._fall_ends(done)))
        return metrics

    def _train(
        self, epoch: int, progress: Callable[[Tick], None] | None, stop: Stop | None
    ) -> dict[str, Any] | None:
        """Take the steps of an epoch, and after the last epoch measure batch norms anew.

        Returns:
            The cost, widths and churn, as fields of `EpochMetrics`; None if `stop` asked to end.
        """
        device, so_far = self.placement.device, self.so_far
        seed = self.options.seed * 1_000_003 + epoch
        generator = torch.Generator().manual_seed(seed)
        clock = Clock(device, so_far.seconds)
        churn = Churn(self.gated, so_far.churn)
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            torch.manual_seed(seed + self.share.rank * 2**40)
            done = epoch * self.steps_per_epoch + so_far.step
            batches = self._train_batches(generator, self.share)
            deque(islice(batches, so_far.step), maxlen=0)  # drawn again, and left out
            so_far.put_back_random(self.share)
            for inputs, targets in batches:
                self._settle(done)
                self._count()
                with clock:
                    loss, right = self.step(self.network, inputs, targets, done / self.steps)
                so_far.add(loss, right, examples_of(inputs))
                self.outcome.step()
                churn.step()
                done += 1
                if progress is not None:
                    progress(Tick(done, self.steps))
                if self.asked(stop):
                    so_far.pause(churn.shares(), clock.all())
                    return None
            figures = {**self._cost(done), **churn.figures()}
            so_far.pause(churn.shares(), clock.all())
            if epoch == self.options.epochs - 1:
                self._settle(self.steps)
                self._recalibrate(generator)
        return figures

    def _train_scores(self, epoch: int) -> tuple[float, float]:
        """Return the mean training loss of an epoch and its share of right answers.

        Raises:
            OptionError: the loss is not finite.
        """
        so_far = self.so_far
        count = torch.full_like(so_far.right, so_far.seen)
        loss, right, count = summed(self.share, so_far.loss.clone(), so_far.right.clone(), count)
        mean = float(loss / count)
        if not math.isfinite(mean):
            raise OptionError(
                f"the loss is {mean} in epoch {epoch + 1}",
                why="the training diverged, or the data hold infinite or NaN values",
                do="give a smaller learning rate, or a warm-up; look at the data",
            )
        return mean, float(right / count)

    def _refuse_a_best_of_one(self) -> None:
        """Refuse to choose among epochs where a single one ends with the final channels."""
        ends = range(self.steps_per_epoch, self.steps, self.steps_per_epoch)
        if not self.options.keeps_best or any(
            self.gated is None or end > self._settles_at(self.gated) for end in ends
        ):
            return
        raise OptionError(
            "there is no best epoch to choose",
            why=f"of {self.options.epochs} epochs the last alone ends with the final channels",
            do="give more epochs or a larger settle, or leave best and early_stop out",
        )

    def _settle(self, done: int) -> None:
        """Fix the selection of a gated network once the last share of the run is reached."""
        gated = self.gated
        if gated is not None and not gated.settled and done >= self._settles_at(gated):
            gated.settle()

    def _count(self) -> None:
        """Count the macs of the next step of a gated network."""
        if self.gated is not None and self.spent is not None:
            self.spent += self._examples * self.gated.cost.macs(self.gated.widths)

    def _fall_ends(self, done: int) -> int | None:
        """Return the epoch in which the budget is reached, if that is not yet so."""
        if self.plan is None:
            return None
        reached = self.plan.by_step.starts[-1]
        return None if reached < done else reached // self.steps_per_epoch + 1

    def _settles_at(self, gated: GatedModule) -> int:
        return self.options.settles_at(self.steps, gated.settings.policy.falls)

    @property
    def _examples(self) -> int:
        """The examples of a step, over all processes."""
        return min(self.options.batch_size, len(self.data.train))

    def _cost(self, done: int) -> dict[str, int | None]:
        """Return the last step's cost and that of `done` steps, as fields of `EpochMetrics`."""
        if self.gated is None or self.plan is None:
            return {}
        widths, cost = self.gated.widths, self.gated.cost
        planned = self.plan.macs(done)
        return {
            "macs": cost.macs(widths),
            "params": cost.params(widths),
            "run_macs": self.spent,
            "run_macs_planned": None if planned is None else self._examples * planned,
            "run_macs_dense": self._examples * done * cost.dense_macs,
        }

    def _train_batches(self, generator: torch.Generator, share: Share = WHOLE) -> Iterator[Batch]:
        return self.data.train.batches(
            self.options.batch_size,
            device=self.placement.device,
            shuffle=generator,
            augment=self.options.augment,
            share=share,
        )

    def _recalibrate(self, generator: torch.Generator) -> None:
        """Measure batch norms' statistics of the network as it now is, on whole batches."""
        count = self.options.recalibrate
        for network in self.outcome.networks if count else ():
            recalibrate(network, islice(self._train_batches(generator), count), self.placement)


def _share(examples: int, batch_size: int) -> Share:
    """Return what this process takes of every batch."""
    if not (distributed.is_available() and distributed.is_initialized()):
        return WHOLE
    share = Share(distributed.get_rank(), distributed.get_world_size())
    if batch_size % share.of or examples < share.of:
        raise OptionError(
            f"{share.of} processes cannot share a batch of {min(batch_size, examples)} evenly",
            do="give a batch size that is a multiple of their number",
        )
    return share
