"""Loads data sets by name."""

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torchvision import datasets

from fxprune.data.folder import open_folders, workers_for
from fxprune.data.preprocess import IMAGENET, Preprocess
from fxprune.data.splits import Batch, FolderSplit, Normalise, Split, TensorSplit, check_tensors
from fxprune.errors import DataError, described, require_kind

FOLDER = "folder:"


Transform = Callable[[Any], Tensor]
Transforms = Transform | tuple[Transform, Transform]
USUAL = Preprocess()

NAMES = ("cifar10", "cifar100", "fashion-mnist", "mnist", "digits", f"{FOLDER}DIR")


@dataclass(frozen=True, eq=False)
class DataSet:
    """Images with classes, or what a user's own are: what trains, and what only evaluates.

    Attributes:
        name: for messages and reports.
        train: what trains.
        val: what only evaluates.
        classes: their names; empty where the targets are no classes, or not known by name.
        shape: of the first input of one example: (C, H, W) of an image.
        preprocessing: what happens to an image before the network sees it, in words and figures.
    """

    name: str
    train: Split
    val: Split
    classes: tuple[str, ...]
    shape: tuple[int, ...]
    preprocessing: Mapping[str, str] = field(default_factory=dict)


def load(
    name: str,
    *,
    root: Path = Path("data"),
    download: bool = False,
    image_size: tuple[int, int] = (224, 224),
    workers: int | None = None,
    preprocess: Preprocess = USUAL,
    transform: Transforms | None = None,
    val_split: float = 0.0,
) -> DataSet:
    """Load a data set by its name.

    Args:
        name: one of `NAMES`; `folder:DIR` wants DIR/train and DIR/val with a folder per class.
        root: where torchvision's data sets are, or are put.
        download: fetch what is missing.
        image_size: height and width that `folder:` images are brought to, pixels.
        workers: processes that decode the images of `folder:`; None for one a core, at most 8,
            and none where the images are few.
        preprocess: what happens to an image before the network sees it.
        transform: for `folder:` instead of that, from an image of Pillow to the network's input,
            float32 [C, H, W]: one for evaluation and training, or one for each.
        val_split: the share of each class of a `folder:` that is only evaluated, where there is a
            folder per class and no DIR/train and DIR/val.

    Raises:
        DataError: no such name, files missing or damaged, or scikit-learn missing for `digits`.
        OptionError: the name is no text.
    """
    require_kind(name, str, "the data set", f"give its name: {', '.join(NAMES)}")
    if name.startswith(FOLDER):
        path = Path(name.removeprefix(FOLDER)).expanduser()
        return _folder(path, image_size, workers, preprocess, transform, val_split)
    if transform is not None or preprocess.resize or preprocess.crop != Preprocess.crop:
        raise DataError(
            f"the images of {name} are not resized, cropped or transformed",
            why="they are in memory, and have their size",
            do=f"give --mean, --std and --no-flip alone, or {FOLDER}DIR",
        )
    if name == "digits":
        return _digits(preprocess)
    if name in _TORCHVISION:
        return _torchvision(name, root, download, preprocess)
    raise DataError(
        f"unknown data set {name!r}",
        do=f"known: {', '.join(NAMES)}; your own is file.py:factory or pkg.mod:factory",
    )


def from_tensors(
    name: str,
    train: Batch,
    val: Batch,
    classes: tuple[str, ...],
    *,
    pad: int = 0,
    flip: bool = False,
    preprocess: Preprocess = USUAL,
) -> DataSet:
    """Make a data set of images in memory.

    Args:
        name: what it is called in reports.
        train: images, uint8 [N, C, H, W], and labels, int64 [N], to train on.
        val: the same, only to evaluate on.
        classes: their names; labels count from 0 in this order.
        pad: pixels that augmentation may move an image, each way.
        flip: whether augmentation mirrors images.
        preprocess: the mean and std, by default those of `train`, and whether to mirror images.

    Raises:
        DataError: wrong dtypes or shapes, or a label outside the classes.
    """
    parts: tuple[Any, ...] = (train, val)  # a caller may have no types
    for part in parts:
        if not isinstance(part, tuple | list) or len(part) != 2:
            raise DataError(
                f"a split of {name} is {described(part)}",
                why="images and their labels are needed",
                do="give two splits, train and val, each as (images, labels)",
            )
        check_tensors(*part)
    own = Normalise.of(train[0])
    normalise = Normalise(*preprocess.statistics((own.mean, own.std)))
    flip = flip if preprocess.flip is None else preprocess.flip
    splits = [TensorSplit(*part, normalise, pad, flip) for part in (train, val)]
    for split in splits:
        if len(split) == 0 or not 0 <= int(split.labels.min()) <= int(split.labels.max()) < len(
            classes
        ):
            raise DataError(
                f"cannot use the data set {name}",
                why=f"a split is empty or has labels outside 0..{len(classes) - 1}",
                do="give examples in both splits, and a class for each label",
            )
    _, channels, height, width = train[0].shape
    shape = channels, height, width
    return DataSet(name, splits[0], splits[1], classes, shape, _described(normalise))


@dataclass(frozen=True)
class _Known:
    """How one of torchvision's data sets is read and augmented."""

    make: Callable[..., Any]
    pad: int
    flip: bool


_TORCHVISION = {
    "cifar10": _Known(datasets.CIFAR10, pad=4, flip=True),
    "cifar100": _Known(datasets.CIFAR100, pad=4, flip=True),
    "fashion-mnist": _Known(datasets.FashionMNIST, pad=2, flip=True),
    "mnist": _Known(datasets.MNIST, pad=2, flip=False),
}


def _torchvision(name: str, root: Path, download: bool, preprocess: Preprocess) -> DataSet:
    known = _TORCHVISION[name]
    try:
        parts = [known.make(root, train=train, download=download) for train in (True, False)]
    except (RuntimeError, OSError, EOFError, ValueError) as error:
        raise DataError(
            f"cannot read the data set {name} from {root}",
            why=str(error),
            do="check the connection to the internet, or put the files there by hand"
            if download
            else "give --download to fetch it, or the folder that holds it with --data-root",
        ) from error
    train, val = [(_images(part.data), torch.as_tensor(part.targets)) for part in parts]
    classes = tuple(parts[0].classes)
    return from_tensors(
        name, train, val, classes, pad=known.pad, flip=known.flip, preprocess=preprocess
    )


def _images(data: Any) -> Tensor:
    """Convert [N, H, W] or [N, H, W, C] to uint8 [N, C, H, W]."""
    images = torch.as_tensor(data)
    return images[:, None] if images.dim() == 3 else images.permute(0, 3, 1, 2).contiguous()


def _digits(preprocess: Preprocess) -> DataSet:
    """Load 1,797 handwritten digits, 8x8; every fifth is kept for evaluation."""
    try:
        bunch = importlib.import_module("sklearn.datasets").load_digits()
    except ImportError as error:
        raise DataError(
            "the data set digits needs scikit-learn",
            do='install it: pip install "fxprune[demo]"',
        ) from error
    images = torch.from_numpy(bunch.images * 15).to(torch.uint8)[:, None]  # 0..16 -> 0..240
    labels = torch.from_numpy(bunch.target).to(torch.int64)
    held_out = torch.arange(len(labels)) % 5 == 4
    return from_tensors(
        "digits",
        (images[~held_out], labels[~held_out]),
        (images[held_out], labels[held_out]),
        tuple(map(str, range(10))),
        pad=1,
        preprocess=preprocess,
    )


def _folder(
    path: Path,
    size: tuple[int, int],
    workers: int | None,
    preprocess: Preprocess,
    transform: Transforms | None,
    val_split: float,
) -> DataSet:
    normalise: Normalise | None = None
    if transform is None:
        plain, augmented = preprocess.transforms(size)
        normalise = Normalise(*preprocess.statistics(IMAGENET))
        described = preprocess.describe(size) | _described(normalise)
    else:
        plain, augmented = transform if isinstance(transform, tuple) else (transform, transform)
        described = {"transform": f"the user's own: {plain}"}
    least = size if transform is None else None
    if least and preprocess.resize:
        least = max(size[0], *preprocess.resize), max(size[1], *preprocess.resize)
    opened = open_folders(path, val_split, least, (plain, augmented))
    parts = {
        part: FolderSplit(for_val, for_train, normalise, workers_for(len(for_val), workers))
        for part, (for_val, for_train) in opened.items()
    }
    train, val = parts["train"], parts["val"]
    if train.plain.classes != val.plain.classes:
        odd = sorted(set(train.plain.classes) ^ set(val.plain.classes))
        raise DataError(
            f"{path}/train and {path}/val do not have the same classes",
            why=f"only in one of them: {', '.join(odd)}",
            do="put a folder of the same name for each class into both",
        )
    classes = tuple(train.plain.classes)
    return DataSet(f"{FOLDER}{path}", train, val, classes, (3, *size), described)


def _described(normalise: Normalise) -> dict[str, str]:
    return {
        name: ",".join(f"{value:.6g}" for value in values)
        for name, values in (("mean", normalise.mean), ("std", normalise.std))
    }
