"""A network gets its images as it was trained on them, and what is done to them is said."""

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from torchvision.transforms import v2

import fxprune
from fxprune.data import Preprocess, from_tensors, load
from fxprune.errors import DataError, OptionError, RunError
from fxprune.formats import write_record
from fxprune.runs.run import Run
from fxprune.trainer.job import FILE, Job
from tests.support.images import make_folder, pictures


def first(folder: Path, preprocess: Preprocess) -> Tensor:
    """The first image of the validation split, [3, 16, 12]."""
    found = load(f"folder:{folder}", image_size=(16, 12), preprocess=preprocess)
    images, _ = next(found.val.batches(1))
    return images[0]


def test_mean_and_std_are_those_of_the_network(tmp_path: Path) -> None:
    make_folder(tmp_path)
    plain = first(tmp_path, Preprocess(mean=(0.0,), std=(1.0,)))
    assert 0 <= plain.min() <= plain.max() <= 1
    halves = first(tmp_path, Preprocess(mean=(0.5,), std=(0.5,)))
    torch.testing.assert_close(halves, (plain - 0.5) / 0.5)
    own = first(tmp_path, Preprocess(mean=(0.1, 0.2, 0.3), std=(0.5, 0.6, 0.7)))
    expected = (plain - torch.tensor([0.1, 0.2, 0.3]).view(3, 1, 1)) / torch.tensor(
        [0.5, 0.6, 0.7]
    ).view(3, 1, 1)
    torch.testing.assert_close(own, expected)
    with pytest.raises(DataError, match="--mean has 2 numbers for images of 3 channels"):
        first(tmp_path, Preprocess(mean=(0.1, 0.2)))


def test_resize_is_of_the_shorter_side_or_of_both(tmp_path: Path) -> None:
    """Images are 20 x 24, their left half is red: 200, the right half nearly black."""
    make_folder(tmp_path)
    raw = dataclasses.replace(Preprocess(), mean=(0.0,), std=(1.0,))
    whole = first(tmp_path, dataclasses.replace(raw, resize=(16, 12)))
    assert (whole[0, :, :5] > 0.7).all()
    assert (whole[0, :, 7:] < 0.1).all(), "squashed: both halves are in the picture"
    parts = first(tmp_path, dataclasses.replace(raw, resize=(40,)))  # 40 x 48, of which 16 x 12
    assert (parts[0, :, :5] > 0.7).all()
    assert (parts[0, :, 7:] < 0.1).all()
    # The edge between the halves is blurred over fewer pixels where the picture is not enlarged.
    assert float(parts[0, 0].std()) <= float(whole[0, 0].std()) + 0.02


@pytest.mark.parametrize(
    ("crop", "flip", "varies"),
    [("center", False, False), ("center", None, True), ("shift", False, True)],
)
def test_what_training_sees(crop: str, flip: bool | None, varies: bool, tmp_path: Path) -> None:
    make_folder(tmp_path, count=1)
    look = Preprocess(resize=(24, 24), crop=crop, flip=flip)  # type: ignore[arg-type]
    found = load(f"folder:{tmp_path}", image_size=(16, 12), preprocess=look)
    draws = []
    for seed in range(8):
        shuffle = torch.Generator().manual_seed(seed)
        batches = found.train.batches(2, shuffle=shuffle, augment=True)
        images, labels = next(batches)
        draws.append(images[labels.argmin()])
    plain, _ = next(found.train.batches(1))
    assert any(not torch.equal(draw, plain[0]) for draw in draws) == varies


def test_a_transform_of_ones_own(tmp_path: Path) -> None:
    make_folder(tmp_path)
    to_float = v2.Compose(
        [v2.Resize((16, 12)), v2.ToImage(), v2.ToDtype(torch.float32, scale=True)]
    )

    def dark(image: Image.Image) -> Tensor:
        return 0.0 * to_float(image)

    found = load(f"folder:{tmp_path}", image_size=(16, 12), transform=(to_float, dark))
    images, _ = next(found.val.batches(2))
    assert images.dtype == torch.float32
    assert images.max() > 0.7
    shuffle = torch.Generator().manual_seed(0)
    trained, _ = next(found.train.batches(2, shuffle=shuffle, augment=True))
    assert trained.abs().max() == 0
    with pytest.raises(DataError, match="the images of digits are not resized"):
        load("digits", transform=to_float)
    with pytest.raises(DataError, match="the images of digits are not resized"):
        load("digits", preprocess=Preprocess(resize=(8,)))


def test_images_in_memory_take_mean_std_and_flip() -> None:
    images, _ = pictures()
    labels = torch.zeros(len(images), dtype=torch.int64)
    both = (images, labels), (images, labels)
    found = from_tensors("a", *both, ("x",), flip=True, preprocess=Preprocess((0.0,), (1.0,)))
    batch, _ = next(found.val.batches(4))
    torch.testing.assert_close(batch, images[:4].float() / 255)
    assert found.preprocessing == {"mean": "0,0,0", "std": "1,1,1"}
    still = from_tensors("a", *both, ("x",), flip=True, preprocess=Preprocess(flip=False))
    assert not still.train.flip


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"mean": "a"}, "cannot read --mean a"),
        ({"std": "0.5,0"}, r"std cannot be \(0.5, 0.0\)"),
        ({"resize": "big"}, "cannot read --resize big"),
        ({"resize": "1x2x3"}, r"cannot resize to \(1, 2, 3\)"),
        ({"resize": "0"}, "cannot resize to"),
        ({"crop": "wild"}, "crop cannot be 'wild'"),
    ],
)
def test_options_that_cannot_be_read(given: dict[str, str], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        Preprocess.parse(**given)  # type: ignore[arg-type]


def test_it_is_kept_with_the_run(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 2, 3))
    gated = fxprune.instrument(model, (torch.zeros(2, 3, 16, 12),))
    run = Run.create(tmp_path / "a.fxprune", gated, "model.py")
    make_folder(tmp_path / "images")
    data, looks = f"folder:{tmp_path / 'images'}", {"mean": "0.5", "resize": "20x20", "flip": False}
    first = Job.of(run, data, None, {}, looks)
    first.write(run)
    assert Job.read(run) == first
    second = Job.of(run, None, None, {}, {"crop": "shift"})
    assert second.preprocess == Preprocess((0.5,), (), (20, 20), "shift", flip=False)
    said = second.load(run.plan.inputs[0][0]).preprocessing
    assert said["resize"] == "20x20"
    assert said["crop"] == "central 16x12"
    assert said["training"] == "random crops of the resized image"
    assert said["mean"] == "0.5,0.5,0.5"
    value = json.loads((run.path / FILE).read_text())
    # A run of before there were such options:
    write_record(run.path / FILE, {key: value[key] for key in ("data", "root", "options")})
    old = Job.read(run)
    assert old is not None
    assert old.preprocess == Preprocess()


def test_a_transform_is_kept_and_trusted_where_the_user_gave_it(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 2, 3))
    gated = fxprune.instrument(model, (torch.zeros(2, 3, 16, 12),))
    run = Run.create(tmp_path / "a.fxprune", gated, "model.py")
    Job.of(run, "folder:x", None, {}, transform="mine:make").write(run)
    again = Job.of(run, None, None, {})
    assert again.transform == "mine:make"
    again.require(run)
    assert again.made(run, lambda name, kind: (name, kind)) == {
        "transform": ("mine:make", "transform")
    }
    with pytest.raises(DataError, match="factory of --transform mine:make returned an int"):
        again.load(run.plan.inputs[0][0], made={"transform": 3})
    run.path.rename(tmp_path / "b.fxprune")  # a mark is of a path: a stranger's run is another one
    with pytest.raises(RunError, match="its transform mine:make would be imported"):
        again.require(Run.open(tmp_path / "b.fxprune"))
