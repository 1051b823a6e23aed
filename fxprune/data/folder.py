"""Image folders: which files train and which only evaluate, and how they are opened."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torchvision import datasets

from fxprune.errors import DataError

EXTENSIONS = datasets.folder.IMG_EXTENSIONS
FEW = 256
"""Images up to which no process is worth its start."""

MOST_WORKERS = 8


def open_folders(
    path: Path,
    val_split: float,
    size: tuple[int, int] | None,
    transforms: tuple[Callable[..., Any], Callable[..., Any]],
) -> dict[str, list[datasets.ImageFolder]]:
    """Open a folder of images: for "train" and "val" an ImageFolder with each transform.

    Args:
        path: holds `train` and `val` with a folder per class in each; or a folder per class, of
            which `val_split` says how much is only evaluated.
        val_split: the share of each class, at least one image; 0 where `path` holds both parts.
        size: height and width that images are brought to, pixels; None to decode them whole.
        transforms: of evaluation and of training.

    Raises:
        DataError: there are no such folders, or a folder above or below them was given.
    """
    load = datasets.folder.default_loader if size is None else Opener(size)
    if val_split:
        if (path / "train").is_dir() and (path / "val").is_dir():
            raise DataError(
                f"{path} is split already, into train and val", do="leave out --val-split"
            )
        _check_tree(path)
        return _divided([_opened(path, how, load) for how in transforms], val_split)
    _check_parts(path)
    return {part: [_opened(path / part, how, load) for how in transforms] for part in PARTS}


PARTS = ("train", "val")


def workers_for(images: int, wanted: int | None) -> int:
    """Tell how many processes decode: those that are wanted, or one for each core, at most 8."""
    if wanted is not None:
        return wanted
    return 0 if images <= FEW else min(usable_cores(), MOST_WORKERS)


def usable_cores() -> int:
    """Count the cores that this process may use; macOS and Windows tell only how many there are."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


class Opener:
    """Opens an image file as RGB; a large JPEG no larger than twice the network's input needs.

    JPEG decodes to 1/2, 1/4 or 1/8 of its size at a fraction of the cost (Pillow's `draft`), never
    to less than is asked for.
    """

    def __init__(self, size: tuple[int, int]) -> None:
        self.least = 2 * size[1], 2 * size[0]

    def __call__(self, path: str) -> Image.Image:
        """Read and transform the image of a file."""
        with Path(path).open("rb") as file:
            image = Image.open(file)
            image.draft("RGB", self.least)
            return image.convert("RGB")


def _opened(
    path: Path, how: Callable[..., Any], load: Callable[[str], Any]
) -> datasets.ImageFolder:
    try:
        return datasets.ImageFolder(path, how, loader=load)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise DataError(
            f"cannot read images from {path}",
            why=str(error).splitlines()[0],
            do="put a folder per class, with images in it, under "
            + (f"{path.parent}/train and {path.parent}/val" if path.name in PARTS else str(path)),
        ) from error


def _check_parts(path: Path) -> None:
    """Refuse a folder without train and val, and say which one was meant.

    Raises:
        DataError: train, val or both are missing.
    """
    if all((path / part).is_dir() for part in PARTS) or not path.is_dir():
        return
    inner = [one for one in sorted(path.iterdir()) if all((one / p).is_dir() for p in PARTS)]
    outer = [one for one in (path.parent, path.parent.parent) if _holds_parts(one)]
    if inner or outer:
        raise DataError(
            f"{path} holds no train and val",
            why=f"{(inner or outer)[0]} does",
            do=f"did you mean folder:{(inner or outer)[0]}?",
        )
    missing = [part for part in PARTS if not (path / part).is_dir()]
    if len(missing) == 1:
        others = ", ".join(sorted(one.name for one in path.iterdir() if one.is_dir()))
        raise DataError(
            f"cannot read images from {path / missing[0]}",
            why=f"there is no such folder; there are {others}",
            do=f"put a folder per class, with images in it, under {path}/train and {path}/val",
        )
    _check_tree(path)
    if not any(one.is_dir() for one in path.iterdir()):
        return  # what is missing is said as it is opened
    raise DataError(
        f"{path} is not split into train and val",
        why="it holds a folder per class",
        do="give --val-split 0.2 to evaluate on a fifth of each class, or put the folders under "
        f"{path}/train and {path}/val",
    )


def _holds_parts(path: Path) -> bool:
    return all((path / part).is_dir() for part in PARTS)


def _check_tree(path: Path) -> None:
    """Refuse a folder that is no folder of classes, and say which one was meant.

    Raises:
        DataError: there are images and no folders, or folders without images.
    """
    if not path.is_dir():
        return
    folders = [one for one in sorted(path.iterdir()) if one.is_dir()]
    if any(_is_image(one) for one in path.iterdir()) and not folders:
        raise DataError(
            f"{path} holds images, and no folder per class",
            why="it is the folder of one class",
            do=f"did you mean folder:{path.parent}?",
        )
    if folders and not any(_is_image(image) for one in folders for image in one.iterdir()):
        below = [one for one in folders if any(inner.is_dir() for inner in one.iterdir())]
        raise DataError(
            f"{path} holds no folders with images in them",
            do=f"did you mean folder:{below[0]}?" if below else "put a folder per class there",
        )


def _is_image(path: Path) -> bool:
    return path.suffix.lower() in EXTENSIONS


def _divided(
    both: list[datasets.ImageFolder], share: float
) -> dict[str, list[datasets.ImageFolder]]:
    """Divide the images of each class at random, in the same way at each call."""
    targets = torch.tensor(both[0].targets)
    held_out = torch.zeros(len(targets), dtype=torch.bool)
    draw = torch.Generator().manual_seed(0)
    for label in range(len(both[0].classes)):
        own = (targets == label).nonzero().flatten()
        if len(own) < 2:
            raise DataError(
                f"the class {both[0].classes[label]} cannot be split",
                why=f"it has {len(own)} image",
                do="give it two or more, or take its folder away",
            )
        count = min(max(round(share * len(own)), 1), len(own) - 1)
        held_out[own[torch.randperm(len(own), generator=draw)[:count]]] = True
    rows = {"train": (~held_out).nonzero().flatten(), "val": held_out.nonzero().flatten()}
    return {
        part: [_rows(images, index.tolist()) for images in both] for part, index in rows.items()
    }


def _rows(images: datasets.ImageFolder, index: list[int]) -> datasets.ImageFolder:
    """Return the images of an index, with the classes of all."""
    some = datasets.ImageFolder.__new__(datasets.ImageFolder)
    some.__dict__.update(images.__dict__)
    some.samples = some.imgs = [images.samples[at] for at in index]
    some.targets = [target for _, target in some.samples]
    return some
