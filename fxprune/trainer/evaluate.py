"""Score a network on a split, and check that it fits a data set."""

from collections.abc import Callable

import torch
from torch import Tensor, distributed, nn

from fxprune.data import WHOLE, DataSet, Share, Split
from fxprune.equivalence import leaves
from fxprune.errors import DataError
from fxprune.tracing.module import evaluating
from fxprune.trainer.placement import Placement
from fxprune.trainer.progress import Stopped
from fxprune.trainer.task import (
    CLASSIFY,
    Scores,
    ScoreSums,
    Task,
    examples_of,
    one_tensor,
    shapes,
)

Stop = Callable[[], bool]


@torch.no_grad()
def score(
    model: nn.Module,
    split: Split,
    placement: Placement,
    batch_size: int = 128,
    share: Share = WHOLE,
    stop: Stop | None = None,
    task: Task = CLASSIFY,
) -> Scores:
    """Score a network on a split, in `model.eval()`.

    All its modules are left in the modes in which they came. Several processes that give the share
    of each share the work; all get the figures of the whole split.

    Raises:
        Stopped: `stop`, which a lone process asks after each batch, said so.
    """
    sums = ScoreSums(task, placement.device)
    with evaluating(model):
        for inputs, targets in split.batches(batch_size, device=placement.device, share=share):
            outputs = placement.forward(model, inputs)
            sums.add(outputs, targets, task.minimised(outputs, targets), examples_of(inputs))
            if stop is not None and share.of == 1 and stop():
                raise Stopped
    return sums.scores(summed(share, sums.sums)[0])


def summed(share: Share, *figures: Tensor) -> list[Tensor]:
    """Add figures, each [], over all processes."""
    if share.of > 1:
        for figure in figures:
            distributed.all_reduce(figure)
    return list(figures)


@torch.no_grad()
def check_fit(model: nn.Module, data: DataSet, placement: Placement, task: Task = CLASSIFY) -> None:
    """Refuse, before any training, data that the model or the loss cannot take."""
    for split in (data.val, data.train):
        _check_split(model, split, data, placement, task)


def _check_split(
    model: nn.Module, split: Split, data: DataSet, placement: Placement, task: Task
) -> None:
    inputs, targets = next(split.batches(2, device=placement.device))
    try:
        with evaluating(model):
            outputs = placement.forward(model, inputs)
    except (RuntimeError, TypeError, AttributeError) as error:
        weights = next((p.dtype for p in model.parameters() if p.is_floating_point()), None)
        given = {x.dtype for x in leaves(inputs) if isinstance(x, Tensor)}
        raise DataError(
            f"the model does not take the images of {data.name}, {shapes(inputs)} as a batch",
            why=str(error).splitlines()[0],
            do="build the model for this shape (--input), or take other data"
            if weights in given
            else f"give images of the dtype of the weights, {weights}",
        ) from error
    task.check_metric(outputs, targets)
    if task.loss is not None:
        task.minimised(outputs, targets)
        return
    logits = one_tensor(outputs, training=False)
    if data.classes and (logits.dim() < 2 or logits.shape[1] < len(data.classes)):
        raise DataError(
            f"the model's output {tuple(logits.shape)} does not fit {data.name}",
            why=f"two images should give [2, {len(data.classes)}], a number for each class",
            do="build the model for this number of classes",
        )
    task.minimised(logits, targets)
