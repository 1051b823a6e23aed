import gzip
import importlib
import struct

import pytest
import torch

from fxprune.data import FolderSplit, Share, TensorSplit, from_tensors, load
from fxprune.data.splits import Normalise, crop_and_flip
from fxprune.errors import DataError
from tests.support.images import make_folder, pictures


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def test_normalise_measures_exactly():
    images, _ = pictures()
    images[:, 1] = images[:, 1] // 3
    found = Normalise.of(images)
    pixels = images.double().div(255).permute(1, 0, 2, 3).flatten(1)
    assert found.mean == pytest.approx(pixels.mean(1).tolist(), rel=1e-12)
    assert found.std == pytest.approx(pixels.std(1, correction=0).tolist(), rel=1e-9)
    normal = found(images).double().permute(1, 0, 2, 3).flatten(1)
    torch.testing.assert_close(normal.mean(1), torch.zeros(3).double(), atol=1e-5, rtol=0)
    torch.testing.assert_close(
        normal.std(1, correction=0), torch.ones(3).double(), rtol=1e-5, atol=0
    )


def test_normalise_of_a_blank_channel_divides_by_one():
    found = Normalise.of(torch.full((2, 1, 3, 3), 51, dtype=torch.uint8))
    assert found.std == (1.0,)
    assert found(torch.full((1, 1, 1, 1), 51, dtype=torch.uint8)).item() == pytest.approx(0)


@pytest.mark.parametrize("flip", [False, True])
def test_crops_are_windows_of_the_padded_image(flip):
    pad = 2
    images, _ = pictures(count=400, height=7)
    out = crop_and_flip(images, pad, flip, generator())
    padded = torch.nn.functional.pad(images, (pad,) * 4)
    seen = set()
    for image, frame in zip(out, padded):
        matches = [
            (top, left, mirrored)
            for top in range(2 * pad + 1)
            for left in range(2 * pad + 1)
            for mirrored in (False, True)
            if torch.equal(
                image.flip(2) if mirrored else image, frame[:, top : top + 7, left : left + 5]
            )
        ]
        assert len(matches) == 1
        seen.add(matches[0])
    assert len(seen) == 25 * (1 + flip), "every place, and both ways round only if asked"


def test_no_pad_and_no_flip_change_nothing():
    images, _ = pictures()
    assert torch.equal(crop_and_flip(images, 0, False, generator()), images)


def test_ordered_batches_hold_every_example_once():
    images, labels = pictures()
    split = TensorSplit(images, labels, Normalise((0.0,) * 3, (1 / 255,) * 3))
    batches = list(split.batches(16))
    assert [len(y) for _, y in batches] == [16, 16, 8]
    torch.testing.assert_close(torch.cat([x for x, _ in batches]), images.float())
    assert torch.equal(torch.cat([y for _, y in batches]), labels)


def test_shuffled_batches_repeat_with_the_generator():
    images, labels = pictures(count=39)
    labels = torch.arange(39)
    split = TensorSplit(images, labels, Normalise.of(images), pad=1, flip=True)
    first, again, other = (
        list(split.batches(16, shuffle=generator(seed), augment=True)) for seed in (1, 1, 2)
    )
    assert all(torch.equal(a, c) and torch.equal(b, d) for (a, b), (c, d) in zip(first, again))
    order = torch.cat([y for _, y in first])
    assert len(order) == 32, "the last, short batch is left out"
    assert len(order.unique()) == 32
    assert not torch.equal(order, torch.cat([y for _, y in other]))


def test_a_split_smaller_than_a_batch_is_one_batch():
    images, labels = pictures(count=5)
    split = TensorSplit(images, labels, Normalise.of(images))
    assert [len(y) for _, y in split.batches(16, shuffle=generator())] == [5]


def test_digits():
    digits = load("digits")
    assert (len(digits.train), len(digits.val)) == (1438, 359)
    assert digits.shape == (1, 8, 8)
    assert len(digits.classes) == 10
    for split in (digits.train, digits.val):
        assert split.labels.unique().tolist() == list(range(10))
    images, labels = next(digits.train.batches(1438))
    assert images.shape == (1438, 1, 8, 8)
    assert images.dtype == torch.float32
    assert labels.dtype == torch.int64
    assert abs(float(images.mean())) < 1e-4
    assert float(images.std()) == pytest.approx(1, abs=1e-3)


def test_digits_without_scikit_learn(monkeypatch):
    def missing(name):
        raise ModuleNotFoundError(name)

    monkeypatch.setattr(importlib, "import_module", missing)
    with pytest.raises(DataError, match=r"needs scikit-learn\n.*fxprune\[demo\]"):
        load("digits")


def test_unknown_name():
    with pytest.raises(DataError, match=r"unknown data set 'svhn'\n  do   known: cifar10, "):
        load("svhn")


@pytest.mark.parametrize("name", ["cifar10", "cifar100", "mnist", "fashion-mnist"])
def test_absent_files(name, tmp_path):
    with pytest.raises(
        DataError, match=f"cannot read the data set {name} from .*\n.*\n.*--download"
    ):
        load(name, root=tmp_path)


def test_a_download_that_failed_is_not_answered_with_a_download(tmp_path, monkeypatch):
    def fails(*_, **__):
        raise RuntimeError("no route to host")

    monkeypatch.setattr("torchvision.datasets.mnist.download_and_extract_archive", fails)
    with pytest.raises(DataError, match="give --download"):
        load("mnist", root=tmp_path)
    with pytest.raises(DataError) as caught:
        load("mnist", root=tmp_path, download=True)
    assert "no route to host" in str(caught.value)
    assert "--download" not in str(caught.value)


def test_mnist_from_its_files(tmp_path):
    """The real reader of torchvision on a small data set in MNIST's own format."""
    folder = tmp_path / "MNIST" / "raw"
    folder.mkdir(parents=True)
    content = {}
    for prefix, count in (("train", 30), ("t10k", 10)):
        images = torch.randint(256, (count, 28, 28), dtype=torch.uint8)
        labels = (torch.arange(count) % 10).to(torch.uint8)
        content[prefix] = images, labels
        for kind, tensor in (("images-idx3", images), ("labels-idx1", labels)):
            head = struct.pack(f">BBBB{tensor.dim()}I", 0, 0, 8, tensor.dim(), *tensor.shape)
            raw = head + tensor.numpy().tobytes()
            (folder / f"{prefix}-{kind}-ubyte").write_bytes(raw)
            (folder / f"{prefix}-{kind}-ubyte.gz").write_bytes(gzip.compress(raw))
    mnist = load("mnist", root=tmp_path)
    assert mnist.shape == (1, 28, 28)
    assert len(mnist.classes) == 10
    for split, prefix in ((mnist.train, "train"), (mnist.val, "t10k")):
        assert torch.equal(split.images[:, 0], content[prefix][0])
        assert torch.equal(split.labels, content[prefix][1].long())
        assert not split.flip, "a mirrored digit is another sign"


@pytest.mark.parametrize(
    ("images", "labels", "text"),
    [
        (torch.zeros(2, 1, 3, 3), torch.zeros(2).long(), "cannot take images of torch.float32"),
        (torch.zeros(2, 3, 3).byte(), torch.zeros(2).long(), "give a uint8 tensor"),
        (torch.zeros(2, 1, 3, 3).byte(), torch.zeros(3).long(), "one label per image"),
        (torch.zeros(2, 1, 3, 3).byte(), torch.zeros(2), "cannot take labels of torch.float32"),
    ],
)
def test_wrong_tensors(images, labels, text):
    with pytest.raises(DataError, match=text):
        TensorSplit(images, labels, Normalise((0.0,), (1.0,)))
    with pytest.raises(DataError, match=text):
        from_tensors("own", (images, labels), (images, labels), ("a",))


def test_labels_outside_the_classes():
    part = pictures()
    with pytest.raises(DataError, match=r"labels outside 0\.\.2"):
        from_tensors("own", part, part, ("a", "b", "c"))


def test_folder(tmp_path):
    make_folder(tmp_path)
    found = load(f"folder:{tmp_path}", image_size=(16, 12))
    assert found.classes == ("cat", "dog")
    assert found.shape == (3, 16, 12)
    assert isinstance(found.train, FolderSplit)
    assert len(found.val) == 12
    images, labels = next(found.val.batches(12))
    assert images.shape == (12, 3, 16, 12)
    assert labels.tolist() == [0] * 6 + [1] * 6
    blue = images[:, 2, 0, 0] * 0.225 + 0.406
    expected = torch.tensor([40 * (i // 6) + i % 6 for i in range(12)]) / 255
    torch.testing.assert_close(blue, expected, rtol=1e-5, atol=1e-6)


def test_folder_repeats_with_the_generator(tmp_path):
    make_folder(tmp_path)
    found = [load(f"folder:{tmp_path}", image_size=(8, 8), workers=count) for count in (0, 2)]
    before = torch.random.get_rng_state()
    runs = [
        list(data.train.batches(4, shuffle=generator(seed), augment=True))
        for data, seed in zip((found[0], found[1], found[0]), (3, 3, 4))
    ]
    assert torch.equal(torch.random.get_rng_state(), before)
    images = [torch.cat([x for x, _ in run]) for run in runs]
    assert torch.equal(images[0], images[1])
    assert not torch.equal(images[0], images[2])


def test_folder_that_is_not_there(tmp_path):
    with pytest.raises(
        DataError, match=r"cannot read images from .*train\n(.*\n)+.*a folder per class"
    ):
        load(f"folder:{tmp_path}")


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("damage", [lambda whole: whole[: len(whole) // 2], lambda _: b"no image"])
def test_an_image_that_cannot_be_read(tmp_path, workers, damage):
    make_folder(tmp_path)
    broken = sorted((tmp_path / "train" / "dog").iterdir())[2]
    broken.write_bytes(damage(broken.read_bytes()))
    found = load(f"folder:{tmp_path}", image_size=(8, 8), workers=workers)
    with pytest.raises(
        DataError, match=f"cannot read the image {broken}\n  why  .*\n  do   write the image"
    ):
        list(found.train.batches(4))


def test_folder_with_different_classes(tmp_path):
    make_folder(tmp_path)
    (tmp_path / "val" / "dog").rename(tmp_path / "val" / "wolf")
    with pytest.raises(DataError, match=r"do not have the same classes\n.*dog, wolf"):
        load(f"folder:{tmp_path}")


@pytest.mark.parametrize("shuffled", [True, False])
def test_shares_make_up_the_batches(shuffled):
    digits = load("digits")

    def batches(share):
        options = {"shuffle": generator(5), "augment": True} if shuffled else {}
        return list(digits.train.batches(100, share=share, **options))

    whole, shares = batches(Share()), [batches(Share(rank, 3)) for rank in range(3)]
    for number, (images, labels) in enumerate(whole):
        size = len(labels) // 3 * 3 if shuffled else len(labels)
        for rank, share in enumerate(shares):
            assert torch.equal(share[number][0], images[rank:size:3])
            assert torch.equal(share[number][1], labels[rank:size:3])
