"""How images become the input of a network: what a trained network was trained with.

A network that was trained with other means, or on images that were resized otherwise, is wrong on
what it gets, and no training loop says so. So each step has an option, and the options are kept
with a run and in the ONNX file.
"""

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from torchvision.transforms import v2

from fxprune.errors import DataError, OptionError

IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Mean and standard deviation of ImageNet's channels, of pixels in [0, 1]."""

Crop = Literal["resized", "shift", "center"]


@dataclass(frozen=True)
class Preprocess:
    """What happens to an image before the network sees it.

    Attributes:
        mean: of each channel, for pixels in [0, 1], subtracted; empty for the data set's own:
            ImageNet's for `folder:`, that of the training split for others.
        std: of each channel, divided by; empty likewise.
        resize: images of `folder:` are brought to this before the central crop, pixels: one
            number for the shorter side, two for height and width; empty for 8/7 of the network's
            input each way, whatever the image's shape.
        crop: what training sees of an image of `folder:`: "resized" is a random part of random
            shape, resized; "shift" a random crop of the resized image; "center" the central crop,
            as in evaluation.
        flip: training mirrors images at random; None for the data set's own way.

    Raises:
        OptionError: a field is out of its range.
    """

    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    resize: tuple[int, ...] = ()
    crop: Crop = "resized"
    flip: bool | None = None

    def __post_init__(self) -> None:
        """Check the fields."""
        if not all(math.isfinite(value) for value in (*self.mean, *self.std)):
            raise OptionError(
                f"mean and std cannot be {self.mean or 'the usual'} and {self.std or 'the usual'}",
                do="give finite numbers, one or one per channel, such as 0.485,0.456,0.406",
            )
        if any(value <= 0 for value in self.std):
            raise OptionError(
                f"std cannot be {self.std}",
                why="images are divided by it",
                do="give numbers above 0, one or one per channel, such as 0.229,0.224,0.225",
            )
        if len(self.resize) > 2 or any(side < 1 for side in self.resize):
            raise OptionError(
                f"cannot resize to {self.resize}", do="give one side or two, such as 256 or 256x256"
            )
        if self.crop not in Crop.__args__:  # type: ignore[attr-defined]
            raise OptionError(f"crop cannot be {self.crop!r}", do="give resized, shift or center")

    @staticmethod
    def parse(
        mean: str | None = None,
        std: str | None = None,
        resize: str | None = None,
        crop: str | None = None,
        flip: bool | None = None,
        base: "Preprocess | None" = None,
    ) -> "Preprocess":
        """Read the options of the command line; None keeps what `base` has.

        Raises:
            OptionError: an option cannot be read.

        >>> Preprocess.parse(mean="0.5", resize="256x256").resize
        (256, 256)
        """
        given: dict[str, Any] = {"crop": crop, "flip": flip}
        given["mean"] = None if mean is None else _floats("--mean", mean)
        given["std"] = None if std is None else _floats("--std", std)
        given["resize"] = None if resize is None else _sides(resize)
        changes = {name: value for name, value in given.items() if value is not None}
        return dataclasses.replace(base or Preprocess(), **changes)

    def statistics(
        self, default: tuple[tuple[float, ...], tuple[float, ...]]
    ) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Return mean and std of as many channels as the default has.

        Raises:
            DataError: there are as many neither as channels, nor one.
        """
        channels = len(default[0])
        found = []
        for name, own, usual in zip(("mean", "std"), (self.mean, self.std), default):
            values = own * channels if len(own) == 1 else own or usual
            if len(values) != channels:
                raise DataError(
                    f"--{name} has {len(values)} numbers for images of {channels} channels",
                    do=f"give {channels}, or one for all",
                )
            found.append(values)
        return found[0], found[1]

    def transforms(self, size: tuple[int, int]) -> tuple[Callable[..., Any], Callable[..., Any]]:
        """Make the transforms of evaluation and of training: an image to uint8 [C, height, width].

        Args:
            size: height and width of the network's input, pixels.
        """
        resize = v2.Resize(list(self.resize or larger(size)))
        plain = v2.Compose([resize, v2.CenterCrop(size), v2.PILToTensor()])
        steps = {
            "resized": [v2.RandomResizedCrop(size)],
            "shift": [resize, v2.RandomCrop(size, pad_if_needed=True)],
            "center": [resize, v2.CenterCrop(size)],
        }[self.crop]
        mirror = [] if self.flip is False else [v2.RandomHorizontalFlip()]
        return plain, v2.Compose([*steps, *mirror, v2.PILToTensor()])

    def describe(self, size: tuple[int, int]) -> dict[str, str]:
        """Say in words what happens to an image of `folder:`, for a user and for a file."""
        resize = self.resize or larger(size)
        to = "x".join(map(str, resize)) if len(resize) == 2 else f"{resize[0]} (shorter side)"
        crops = {
            "resized": "random resized crops",
            "shift": "random crops of the resized image",
            "center": "the central crop",
        }
        flips = "" if self.flip is False else " and flips"
        return {
            "resize": to,
            "crop": f"central {size[0]}x{size[1]}",
            "training": f"{crops[self.crop]}{flips}",
        }


def larger(size: tuple[int, int]) -> tuple[int, int]:
    """Compute the size before the central crop: an eighth more each way, as for ImageNet."""
    return size[0] * 8 // 7, size[1] * 8 // 7


def _floats(option: str, text: str) -> tuple[float, ...]:
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError as error:
        raise OptionError(
            f"cannot read {option} {text}", do="give numbers with commas, such as 0.5,0.5,0.5"
        ) from error


def _sides(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.lower().replace("×", "x").split("x"))
    except ValueError as error:
        raise OptionError(
            f"cannot read --resize {text}", do="give pixels, such as 256 or 256x256"
        ) from error
