"""Splits: the two halves of a data set, which the built-in trainer reads in batches.

The batches are ready for the network: float32 images [B, C, H, W], normalised, and int64 labels
[B]. What is random (order, crop, flip) is drawn from the generator that is passed in, so that an
epoch can be repeated to the same bits.

`TensorSplit` holds a whole split as uint8 in memory and augments batches at once;
`FolderSplit` decodes image files as they are needed.
"""

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn import functional
from torch.utils.data import Dataset, default_collate
from torchvision import datasets

from fxprune.data.drawn import Drawn
from fxprune.errors import DataError, described

Batch = tuple[Any, Any]
"""Inputs and targets: images, float32 [B, C, H, W], and labels, int64 [B]; or a user's own."""


@dataclass(frozen=True)
class Share:
    """What one of several processes takes of every batch: rows `rank`, `rank + of` and so on."""

    rank: int = 0
    of: int = 1

    def __call__(self, batch: Tensor, even: bool) -> Tensor:
        """Return this process's rows of a batch [B, ...]; with `even`, each process has as many."""
        size = len(batch) // self.of * self.of if even else len(batch)
        return batch[self.rank : size : self.of]


WHOLE = Share()


class Split(Protocol):
    """One half of a data set: what training sees, or what evaluation sees."""

    def __len__(self) -> int:
        """Count the examples."""

    def batches(
        self,
        size: int,
        *,
        device: torch.device | str = "cpu",
        shuffle: torch.Generator | None = None,
        augment: bool = False,
        share: Share = WHOLE,
    ) -> Iterator[Batch]:
        """Yield the split once.

        Args:
            size: examples per batch. In a shuffled pass the last incomplete batch is left out
                if there are others, since batch norms learn nothing good from a handful.
            device: where the batches are wanted.
            shuffle: source of the order and of the augmentation; None keeps the order.
            augment: crop and flip at random; needs `shuffle`.
            share: the rows of each batch that are wanted. The batches are the same for all
                shares; in a shuffled pass each share has equally many rows.

        Yields:
            Images, float32 [B, C, H, W], normalised; labels, int64 [B].
        """


@dataclass(frozen=True)
class Normalise:
    """Per-channel (x / 255 - mean) / std; the figures are for pixels in [0, 1]."""

    mean: tuple[float, ...]
    std: tuple[float, ...]

    @staticmethod
    def of(images: Tensor) -> "Normalise":
        """Compute exact mean and standard deviation of uint8 images [N, C, H, W]."""
        values = torch.arange(256, dtype=torch.float64) / 255
        means, stds = [], []
        for channel in images.unbind(1):
            counts = torch.bincount(channel.flatten(), minlength=256).double()
            share = counts / counts.sum()
            mean = (share * values).sum()
            means.append(float(mean))
            stds.append(float((share * (values - mean) ** 2).sum().sqrt()) or 1.0)
        return Normalise(tuple(means), tuple(stds))

    def __call__(self, images: Tensor) -> Tensor:
        """Normalise uint8 [B, C, H, W] to float32 of the same shape."""
        mean = images.new_tensor(self.mean, dtype=torch.float32).view(1, -1, 1, 1)
        std = images.new_tensor(self.std, dtype=torch.float32).view(1, -1, 1, 1)
        return images.float().sub_(mean * 255).div_(std * 255)


def check_tensors(images: Tensor, labels: Tensor) -> None:
    """Refuse what is no uint8 images [N, C, H, W], or no int64 labels [N] of them.

    Raises:
        DataError: a dtype or a shape is another one.
    """
    for what, part in (("images", images), ("labels", labels)):
        if not isinstance(part, Tensor):
            raise DataError(f"the {what} are {described(part)}", do="give a tensor")
    if images.dtype != torch.uint8 or images.dim() != 4:
        raise DataError(
            f"cannot take images of {images.dtype} {tuple(images.shape)}",
            do="give a uint8 tensor [N, C, H, W]",
        )
    if labels.dtype != torch.int64 or labels.shape != images.shape[:1]:
        raise DataError(
            f"cannot take labels of {labels.dtype} {tuple(labels.shape)}",
            do=f"give an int64 tensor [{len(images)}], one label per image",
        )


def crop_and_flip(images: Tensor, pad: int, flip: bool, generator: torch.Generator) -> Tensor:
    """Pad with zeros, crop back at a random position, and mirror with probability 1/2.

    Args:
        images: [B, C, H, W], any dtype; every image gets its own draw.
        pad: pixels on each side.
        flip: whether images are mirrored left to right at all.
        generator: a CPU generator; the draws are the same on every device.

    Returns:
        A new tensor of the same shape and dtype.
    """
    count, channels, height, width = images.shape
    top, left = torch.randint(2 * pad + 1, (2, count), generator=generator).to(images.device)
    rows = top[:, None] + torch.arange(height, device=images.device)
    columns = torch.arange(width, device=images.device).expand(count, -1)
    if flip:
        mirrored = torch.randint(2, (count, 1), generator=generator).to(images.device)
        columns = torch.where(mirrored.bool(), columns.flip(1), columns)
    columns = columns + left[:, None]
    padded = functional.pad(images, (pad, pad, pad, pad)).flatten(2)
    pixels = rows[:, :, None] * (width + 2 * pad) + columns[:, None, :]
    return padded.gather(2, pixels.view(count, 1, -1).expand(-1, channels, -1)).view(images.shape)


@dataclass(frozen=True, eq=False)
class TensorSplit:
    """A split that lies in memory.

    Attributes:
        images: uint8 [N, C, H, W].
        labels: int64 [N].
        normalise: what turns pixels into the network's input.
        pad: pixels that the random crop may move an image, each way.
        flip: whether augmentation mirrors images (wrong for digits and letters).
        operation: applied to each image, uint8 [C, H, W], before the crop; it draws from torch's
            global generator, which is seeded from `shuffle` and put back afterwards.
    """

    images: Tensor
    labels: Tensor
    normalise: Normalise
    pad: int = 0
    flip: bool = False
    operation: Callable[[Tensor], Tensor] | None = None

    def __post_init__(self) -> None:
        check_tensors(self.images, self.labels)

    def __len__(self) -> int:
        """Count the examples."""
        return len(self.labels)

    def part(self, index: Tensor) -> "TensorSplit":
        """Return the examples of an index, int64 [examples]."""
        return replace(self, images=self.images[index], labels=self.labels[index])

    def batches(
        self,
        size: int,
        *,
        device: torch.device | str = "cpu",
        shuffle: torch.Generator | None = None,
        augment: bool = False,
        share: Share = WHOLE,
    ) -> Iterator[Batch]:
        """Yield the split once; see `Split.batches`."""
        order, even = shuffled(len(self), size, shuffle), shuffle is not None
        for index in torch.split(order, size):
            images, labels = self.images[index], self.labels[index].to(device)
            if augment and shuffle is not None:  # the whole batch, for any share
                images = self._operated(images, shuffle).to(device)
                images = crop_and_flip(images, self.pad, self.flip, shuffle)
            images = images.to(device)
            images, labels = share(images, even), share(labels, even)
            if len(labels):
                yield self.normalise(images), labels

    def _operated(self, images: Tensor, generator: torch.Generator) -> Tensor:
        if self.operation is None:
            return images
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(int(torch.randint(2**62, (), generator=generator)))
            return torch.stack([self.operation(image) for image in images])


def seed_of(shuffle: torch.Generator | None) -> int:
    """Draw the seed of a pass; it is the same each time where nothing is shuffled."""
    return 0 if shuffle is None else int(torch.randint(2**62, (), generator=shuffle))


def rows(count: int, size: int, shuffle: torch.Generator | None, share: Share) -> list[list[int]]:
    """List the examples that a process takes of each batch of a pass, if it takes any."""
    batches = torch.split(shuffled(count, size, shuffle), size)
    taken = (share(batch, shuffle is not None).tolist() for batch in batches)
    return [batch for batch in taken if batch]


def shuffled(count: int, size: int, shuffle: torch.Generator | None) -> Tensor:
    """Order the examples of a pass; if shuffled, without the last incomplete batch of several.

    Returns:
        int64 [examples].
    """
    if shuffle is None:
        return torch.arange(count)
    return torch.randperm(count, generator=shuffle)[: count // size * size or count]


@dataclass(frozen=True, eq=False)
class FolderSplit:
    """A split of image files, decoded as they are needed.

    Attributes:
        plain: the files with the transform of evaluation.
        augmented: the same files with the transform of training.
        normalise: what turns pixels into the network's input; None where the transforms do that.
        workers: processes that decode; 0 decodes in this one.
    """

    plain: datasets.ImageFolder
    augmented: datasets.ImageFolder
    normalise: Normalise | None
    workers: int = 0

    def __len__(self) -> int:
        """Count the examples."""
        return len(self.plain)

    def part(self, index: Tensor) -> "FolderSplit":
        """Return the examples of an index, int64 [examples]."""
        both = [copy.copy(images) for images in (self.plain, self.augmented)]
        for images in both:
            images.samples = [images.samples[i] for i in index.tolist()]
            images.imgs = images.samples
            images.targets = [target for _, target in images.samples]
        return replace(self, plain=both[0], augmented=both[1])

    def batches(
        self,
        size: int,
        *,
        device: torch.device | str = "cpu",
        shuffle: torch.Generator | None = None,
        augment: bool = False,
        share: Share = WHOLE,
    ) -> Iterator[Batch]:
        """Yield the split once; see `Split.batches`.

        The transforms draw from torch's global generator, see `Drawn`.
        """
        images = self.augmented if augment and shuffle is not None else self.plain
        drawn = Drawn(_Decoded(images), _batch, seed_of(shuffle))
        index = rows(len(self), size, shuffle, share)
        for batch in drawn.batches(index, shuffle, self.workers):
            if isinstance(batch, DataError):
                raise batch
            images, labels = batch
            images = images.to(device)
            ready = images if self.normalise is None else self.normalise(images)
            yield ready, labels.to(device)


@dataclass(frozen=True, eq=False)
class _Decoded(Dataset[Any]):
    """Images with labels; in place of one that cannot be decoded, the error to raise.

    An error that is raised in a process that decodes would arrive as a traceback.
    """

    images: datasets.ImageFolder

    def __getitem__(self, index: int) -> Any:
        try:
            return self.images[index]
        # as Pillow's formats do; ultralytics lets Pillow ask for a plug-in that may be missing
        except (OSError, SyntaxError, ValueError, EOFError, ImportError) as error:
            return DataError(
                f"cannot read the image {self.images.samples[index][0]}",
                why=str(error),
                do="write the image file anew, or take it out of its folder",
            )


def _batch(items: list[Any]) -> Any:
    """Collect the images and labels of a batch, or the first error among them."""
    broken = next((item for item in items if isinstance(item, DataError)), None)
    return default_collate(items) if broken is None else broken
