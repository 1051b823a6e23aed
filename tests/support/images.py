"""Images for tests of the data: tensors, and folders of files."""

import torch
from PIL import Image


def pictures(count=40, channels=3, height=6, width=5, seed=0):
    generator = torch.Generator().manual_seed(seed)
    shape = (count, channels, height, width)
    images = torch.randint(256, shape, dtype=torch.uint8, generator=generator)
    return images, torch.arange(count) % 4


def make_folder(path, classes=("cat", "dog"), count=6):
    for part in ("train", "val"):
        for shade, name in enumerate(classes):
            (path / part / name).mkdir(parents=True)
            for index in range(count):
                image = torch.full((3, 20, 24), 40 * shade + index, dtype=torch.uint8)
                image[0, :, :12] = 200
                Image.fromarray(image.permute(1, 2, 0).numpy()).save(
                    path / part / name / f"{index}.png"
                )
