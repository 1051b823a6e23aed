"""A training step of the built-in trainer: forward, backward, clipping, optimiser."""

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils import _pytree as pytree

from fxprune.data import DataSet
from fxprune.data.randaugment import with_randaugment
from fxprune.errors import DataError, ModelError
from fxprune.trainer.mixing import Mixing
from fxprune.trainer.optimizer import frozen, learning_rate, make_optimizer
from fxprune.trainer.options import TrainOptions
from fxprune.trainer.placement import Placement
from fxprune.trainer.task import Task, examples_of, shapes
from fxprune.trainer.teacher import Teacher


class Step:
    """Trains a network on one batch after the other.

    Args:
        optimizer: of the network's parameters.
        scaler: of the loss, disabled where it is not needed.
        options: how the network is trained.
        placement: where it runs.
        data: what it trains on.
        task: the loss.

    Attributes:
        teacher: from which the network learns too; set before the first step.

    Raises:
        OptionError: the options do not fit the data or the loss.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        scaler: torch.amp.GradScaler,
        options: TrainOptions,
        placement: Placement,
        data: DataSet,
        task: Task,
    ) -> None:
        self.teacher: Teacher | None = None
        self.optimizer, self.scaler, self.options = optimizer, scaler, options
        self.placement, self.task = placement, task
        self.mixing = Mixing(options, data, task)

    def __call__(
        self, network: nn.Module, inputs: Any, targets: Any, done: float
    ) -> tuple[Tensor, Tensor]:
        """Take one step.

        Args:
            network: the one that is trained, as this process calls it.
            inputs: of a batch.
            targets: likewise.
            done: the share of the run that is done, by which the learning rate goes.

        Returns:
            The mean loss, [], and how many examples were right before the step, int64 [].

        Raises:
            DataError: the batch does not fit the network.
            ModelError: the network cannot be trained.
        """
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self.options, done)
        self.optimizer.zero_grad(set_to_none=True)
        count = examples_of(inputs)
        inputs, targets = self.mixing(inputs, targets)
        losses, rights = [], []
        parts = list(_parts(inputs, targets, self.options.accumulate))
        for index, (some, their) in enumerate(parts):
            share = examples_of(some) / count
            last = index == len(parts) - 1
            with contextlib.nullcontext() if last else _unsynchronised(network):
                outputs = self._forward(network, some)
                loss = self.task.minimised(outputs, their, self.options.label_smoothing)
                if self.teacher is not None:
                    loss = self.teacher.loss(loss, outputs, self.teacher.says(some))
                self._backward(loss if len(parts) == 1 else share * loss)
            losses.append(share * loss.detach())
            rights.append(self.task.right(outputs, their).to(loss.device))
        self._clip()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        if len(parts) == 1:
            return loss.detach(), rights[0]
        return torch.stack(losses).sum(), torch.stack(rights).sum()

    def _forward(self, network: nn.Module, inputs: Any) -> Any:
        try:
            return self.placement.forward(network, inputs)
        except ValueError as error:
            if "more than 1 value per channel" not in str(error):
                raise
            raise DataError(
                "a batch norm cannot measure anything",
                why=f"it sees a single number of each channel in a batch of {examples_of(inputs)}",
                do="give more training images, or a larger batch",
            ) from error

    def _backward(self, loss: Tensor) -> None:
        try:
            torch.autograd.backward(self.scaler.scale(loss))
        except RuntimeError as error:
            if "modified by an inplace operation" not in str(error):
                raise
            raise ModelError(
                "the network cannot be trained as it is written",
                why=str(error).split(" Hint")[0],
                do="look for x += y, x[…] = y and relu_ on what a layer before still needs for its "
                "gradient, and write x = x + y there; the model itself cannot be trained either",
            ) from error

    def _clip(self) -> None:
        if self.options.clip is None:
            return
        self.scaler.unscale_(self.optimizer)
        parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        nn.utils.clip_grad_norm_(parameters, self.options.clip)


def check_options(model: nn.Module, data: DataSet, options: TrainOptions, task: Task) -> None:
    """Refuse, before anything is written, options that do not fit the network or the data.

    Raises:
        OptionError: there is one.
    """
    with frozen(model, options.freeze):
        make_optimizer(model, options)
    Mixing(options, data, task)
    with_randaugment(data, options.randaugment)


def _parts(inputs: Any, targets: Any, count: int) -> Iterator[tuple[Any, Any]]:
    """Split a batch into parts of about equal size.

    Raises:
        DataError: something of the batch has not one row per example.
    """
    if count == 1:
        yield inputs, targets
        return
    leaves, structure = pytree.tree_flatten((inputs, targets))
    examples = examples_of(inputs)
    if not all(
        isinstance(leaf, Tensor) and leaf.dim() and len(leaf) == examples for leaf in leaves
    ):
        raise DataError(
            f"the batches cannot be split into {count} parts",
            why=f"the targets are {shapes(targets)} for {examples} examples, not one row for each",
            do="leave accumulate out, or give targets with the examples first",
        )
    for part in zip(*(leaf.chunk(count) for leaf in leaves), strict=True):
        yield pytree.tree_unflatten(part, structure)


def _unsynchronised(network: nn.Module) -> Any:
    """Keep the gradients of the processes apart until the last part of a batch."""
    if isinstance(network, DistributedDataParallel):
        return network.no_sync()
    return contextlib.nullcontext()
