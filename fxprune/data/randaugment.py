"""RandAugment for training images: torchvision's, drawn for each image."""

import copy
from dataclasses import replace

from torchvision.transforms import v2

from fxprune.data.load import DataSet
from fxprune.data.splits import FolderSplit, Split, TensorSplit
from fxprune.errors import OptionError


def with_randaugment(data: DataSet, strength: int) -> DataSet:
    """Return the data with RandAugment in the augmentation of the training images.

    Args:
        data: images of one of fxprune's own data sets.
        strength: of the operations, 1 to 30; 0 returns the data as they are.

    Raises:
        OptionError: the images are the user's own, or prepared by the user's own transform.
    """
    if not strength:
        return data
    return replace(data, train=_strengthened(data.train, data.name, v2.RandAugment(2, strength)))


def _strengthened(train: Split, name: str, operation: v2.Transform) -> Split:
    if isinstance(train, TensorSplit) and train.images.shape[1] in (1, 3):
        return replace(train, operation=operation)
    if isinstance(train, FolderSplit) and train.normalise is not None:
        # its own transform ends in uint8
        augmented = copy.copy(train.augmented)
        augmented.transform = v2.Compose([augmented.transform, operation])
        return replace(train, augmented=augmented)
    raise OptionError(
        f"randaugment cannot be put into the images of {name}",
        why="it takes images of 1 or 3 channels in uint8, and these come from your own code"
        if not isinstance(train, TensorSplit)
        else f"it takes images of 1 or 3 channels, and these have {train.images.shape[1]}",
        do="put torchvision.transforms.v2.RandAugment into a transform of your own",
    )
