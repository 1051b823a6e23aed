"""What a network is worth on a split, and whether it fits a data set at all."""

from collections.abc import Callable

import torch
from torch import Tensor, distributed, nn
from torch.nn import functional

from fxprune.data import WHOLE, DataSet, Share, Split
from fxprune.errors import DataError
from fxprune.trainer.options import Placement
from fxprune.trainer.progress import Stopped

Stop = Callable[[], bool]


@torch.no_grad()
def evaluate(
    model: nn.Module,
    split: Split,
    placement: Placement,
    batch_size: int = 128,
    share: Share = WHOLE,
    stop: Stop | None = None,
) -> tuple[float, float]:
    """Mean cross-entropy and share of right answers over a split, in `model.eval()`.

    The model is left in the mode in which it came. Several processes that give the share of each
    share the work; all get the figures of the whole split.

    Raises:
        Stopped: `stop`, which a lone process asks after each batch, said so.
    """
    was_training = model.training
    model.eval()
    loss = torch.zeros((), dtype=torch.float64, device=placement.device)
    right = torch.zeros((), dtype=torch.int64, device=placement.device)
    try:
        for images, labels in split.batches(batch_size, device=placement.device, share=share):
            logits = placement.forward(model, images)
            loss += functional.cross_entropy(logits, labels, reduction="sum").double()
            right += (logits.argmax(1) == labels).sum()
            if stop is not None and share.of == 1 and stop():
                raise Stopped
    finally:
        model.train(was_training)
    loss, right = summed(share, loss, right)
    return float(loss) / len(split), float(right) / len(split)


def summed(share: Share, *figures: Tensor) -> list[Tensor]:
    """The sums of some figures, each [], over all processes."""
    if share.of > 1:
        for figure in figures:
            distributed.all_reduce(figure)
    return list(figures)


@torch.no_grad()
def check_fit(model: nn.Module, data: DataSet, placement: Placement) -> None:
    """Refuses, before any training, data that the model cannot take."""
    was_training = model.training
    model.eval()
    images, _ = next(data.val.batches(2, device=placement.device))
    try:
        logits = placement.forward(model, images)
    except (RuntimeError, TypeError, AttributeError) as error:
        raise DataError(
            f"the model does not take the images of {data.name}, C x H x W = "
            + " x ".join(map(str, data.shape)),
            why=str(error).splitlines()[0],
            do="build the model for this shape (--input), or take other data",
        ) from error
    finally:
        model.train(was_training)
    if logits.dim() != 2 or logits.shape[1] < len(data.classes):
        raise DataError(
            f"the model's output {tuple(logits.shape)} does not fit {data.name}",
            why=f"two images should give [2, {len(data.classes)}], a number for each class",
            do="build the model for this number of classes",
        )
