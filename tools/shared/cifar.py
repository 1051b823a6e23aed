"""CIFAR-10 for the tables: from torchvision's files, or from one file of JPEG images.

The one file, NAME.npz, holds `train_labels` uint8 [N], `train_offsets` int64 [N + 1],
`train_jpeg` uint8, and the same for `test`: image i is `jpeg[offsets[i]:offsets[i + 1]]`.
"""

from io import BytesIO
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from fxprune import data

CLASSES = (
    *("airplane", "automobile", "bird", "cat", "deer"),
    *("dog", "frog", "horse", "ship", "truck"),
)
Part = tuple[Tensor, Tensor]


def load(where: Path, images: int | None, device: torch.device) -> data.DataSet:
    """CIFAR-10 as uint8 in the device's memory, where it is also augmented.

    Args:
        where: NAME.npz, or the folder of torchvision's CIFAR10.
        images: how many images to train on, the first ones; None for all. Testing is on all.
        device: where they are wanted.
    """
    if where.suffix == ".npz":
        train, test = load_npz(where, images)
    else:
        whole = data.load("cifar10", root=where)
        train = whole.train.images[:images], whole.train.labels[:images]
        test = whole.val.images, whole.val.labels
    train, test = [(part[0].to(device), part[1].to(device)) for part in (train, test)]
    return data.from_tensors("cifar10", train, test, CLASSES, pad=4, flip=True)


def load_npz(path: Path, images: int | None = None) -> tuple[Part, Part]:
    """Decodes the images to train on and to test on: uint8 [N, 3, 32, 32] and int64 [N] each."""
    arrays = np.load(path)
    parts = []
    for name, count in (("train", images), ("test", None)):
        content = arrays[f"{name}_jpeg"].tobytes()
        spans = list(pairwise(arrays[f"{name}_offsets"].tolist()))[:count]
        pixels = np.stack([np.asarray(Image.open(BytesIO(content[a:b]))) for a, b in spans])
        labels = torch.from_numpy(arrays[f"{name}_labels"][:count]).to(torch.int64)
        parts.append((torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous(), labels))
    return parts[0], parts[1]
