"""Mixed examples: torchvision's MixUp and CutMix over the batches of a training."""

from typing import Any

import torch
from torch import Tensor
from torchvision.transforms import v2

from fxprune.data import DataSet
from fxprune.errors import OptionError
from fxprune.trainer.options import TrainOptions
from fxprune.trainer.task import Task, shapes


class Mixing:
    """Mixes the images and the labels of a batch; where both kinds are on, one of them at random.

    The draws come from torch's global generator.

    Raises:
        OptionError: the data have no classes, or the loss is the user's own.
    """

    def __init__(self, options: TrainOptions, data: DataSet, task: Task) -> None:
        kinds = {"mixup": v2.MixUp, "cutmix": v2.CutMix}
        self.words = [word for word in kinds if getattr(options, word) > 0]
        if self.words and not data.classes:
            raise OptionError(
                "mixed labels need data with classes",
                why=f"{data.name} does not say how many classes there are",
                do=f"leave {' and '.join(self.words)} out",
            )
        if self.words and task.loss is not None:
            raise OptionError(
                "mixed labels need the built-in loss",
                why="a label becomes a share of each class, which a loss of your own may not take",
                do=f"leave {' and '.join(self.words)} out, or the loss",
            )
        self.mixers = [
            kinds[word](alpha=getattr(options, word), num_classes=len(data.classes))
            for word in self.words
        ]

    def __call__(self, images: Any, labels: Any) -> tuple[Any, Any]:
        """Mix a batch.

        Args:
            images: float [B, C, H, W].
            labels: int64 [B].

        Returns:
            Images of the same shape, and labels as shares, float [B, classes]; both as they are
            where nothing is mixed.
        """
        if not self.mixers:
            return images, labels
        if not (isinstance(images, Tensor) and isinstance(labels, Tensor) and labels.dim() == 1):
            raise OptionError(
                "the examples of this batch cannot be mixed",
                why=f"it has {shapes(images)} and {shapes(labels)}",
                do="give images [B, C, H, W] with one class each, int64 [B]",
            )
        at = int(torch.randint(len(self.mixers), ())) if len(self.mixers) > 1 else 0
        mixed, shares = self.mixers[at](images, labels)
        return mixed, shares
