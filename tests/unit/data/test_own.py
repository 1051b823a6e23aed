"""Data of the user's own, and folders as users give them."""

import os
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, TensorDataset, default_collate

from fxprune.data import DataSet, load, own_data
from fxprune.data.folder import FEW, Opener, usable_cores, workers_for
from fxprune.data.own import steps_of
from fxprune.errors import DataError


def pairs(count: int, size: int = 8) -> TensorDataset:
    draw = torch.Generator().manual_seed(count)
    images = torch.randn(count, 3, size, size, generator=draw)
    return TensorDataset(images, torch.arange(count) % 4)


class Several(Dataset[Any]):
    """Examples of two inputs and a target."""

    def __len__(self) -> int:
        return 6

    def __getitem__(self, at: int) -> Any:
        return torch.full((3,), float(at)), torch.full((2,), float(at)), at


@pytest.mark.parametrize("made", [(pairs(10), pairs(5)), {"train": pairs(10), "val": pairs(5)}])
def test_datasets_become_splits(made: Any) -> None:
    data = own_data(made, "data.py:factory")
    assert (len(data.train), len(data.val), data.shape) == (10, 5, (3, 8, 8))
    assert [len(labels) for _, labels in data.val.batches(2)] == [2, 2, 1]
    shuffled = [labels for _, labels in data.train.batches(4, shuffle=torch.Generator())]
    assert [len(labels) for labels in shuffled] == [4, 4]
    assert steps_of(data.train, 4) == 2


def test_a_pass_is_drawn_by_its_generator() -> None:
    loader = DataLoader(pairs(16), 4, shuffle=True, generator=torch.Generator())
    for made in ((pairs(16), pairs(4)), (loader, pairs(4))):
        data = own_data(made, "name")
        before = torch.get_rng_state()
        passes = [
            torch.cat(
                [y for _, y in data.train.batches(4, shuffle=torch.Generator().manual_seed(s))]
            )
            for s in (1, 1, 2)
        ]
        assert torch.equal(passes[0], passes[1])
        assert not torch.equal(passes[0], passes[2])
        assert torch.equal(before, torch.get_rng_state())


class Noisy(Dataset[Any]):
    """Examples of what three libraries draw; `collate_fn` draws too."""

    def __len__(self) -> int:
        return 12

    def __getitem__(self, at: int) -> Any:
        drawn = [torch.rand(()), np.random.rand(), random.random()]
        return torch.tensor([float(value) for value in drawn]), at

    @staticmethod
    def collate_fn(examples: list[Any]) -> Any:
        batch, labels = default_collate(examples)
        return batch + torch.rand(()), labels


@pytest.mark.slow
@pytest.mark.parametrize("seed", [None, 3])
def test_any_number_of_processes_draws_the_same(seed: int | None) -> None:
    def one_pass(workers: int) -> Any:
        np.random.seed(workers)
        random.seed(workers)
        torch.manual_seed(workers)
        before = np.random.get_state()[1].tolist(), random.getstate(), torch.get_rng_state()
        data = own_data((Noisy(), Noisy()), "name", workers=workers)
        shuffle = None if seed is None else torch.Generator().manual_seed(seed)
        found = torch.cat([x for x, _ in data.train.batches(4, shuffle=shuffle)])
        assert (np.random.get_state()[1].tolist(), random.getstate()) == before[:2]
        assert torch.equal(torch.get_rng_state(), before[2])
        return found

    alone = one_pass(0)
    assert len(alone.unique()) == alone.numel(), "each example has its own"
    assert torch.equal(alone, one_pass(1))
    assert torch.equal(alone, one_pass(2))


def test_a_loader_repeats_what_any_library_draws() -> None:
    loader = DataLoader(Noisy(), 4, collate_fn=Noisy.collate_fn)
    data = own_data((loader, loader), "name")
    passes = [
        torch.cat([x for x, _ in data.train.batches(4, shuffle=torch.Generator().manual_seed(s))])
        for s in (1, 1, 2)
    ]
    assert torch.equal(passes[0], passes[1])
    assert not (passes[0] == passes[2]).any()


def test_a_loader_keeps_its_batches() -> None:
    data = own_data((DataLoader(pairs(10), 3), DataLoader(pairs(4), 4)), "name")
    assert [len(labels) for _, labels in data.train.batches(128)] == [3, 3, 3, 1]
    assert steps_of(data.train, 128) == 4


def test_several_inputs_come_as_a_tuple() -> None:
    data = own_data((Several(), Several()), "name")
    (first, second), targets = next(data.val.batches(2))
    assert first.shape == (2, 3)
    assert second.shape == (2, 2)
    assert targets.tolist() == [0, 1]


def test_a_data_set_is_taken_as_it_is() -> None:
    data = own_data((pairs(4), pairs(4)), "name")
    assert own_data(data, "other") is data
    assert isinstance(data, DataSet)


def sparse(count: int) -> TensorDataset:
    return TensorDataset(torch.ones(count, 3).to_sparse(), torch.zeros(count))


@pytest.mark.parametrize(
    ("made", "message"),
    [
        (None, "the data factory f returned None"),
        ({"train": 1, "test": 2}, "returned a dict with the keys 'train', 'test'"),
        ([1, 2, 3], r"returned a list of 3 \(int, int, int\)"),
        ((pairs(4), 5), "val of the data factory f is an int"),
        (([], pairs(4)), "train of the data factory f is a list of 0"),
        ((pairs(4), TensorDataset(torch.zeros(0, 3))), "val of the data factory f is empty"),
        ((TensorDataset(torch.zeros(4, 3)), pairs(4)), "a batch is a list of 1"),
        (
            (DataLoader(pairs(4), 8, drop_last=True), pairs(4)),
            "train of the data factory f cannot be read\n  why  StopIteration",
        ),
        (
            (sparse(4), pairs(4)),
            "train of the data factory f cannot be read\n.*\n  why  RuntimeError",
        ),
    ],
)
def test_what_a_factory_must_not_return(made: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        own_data(made, "f")


class Broken(Dataset[Any]):
    """The example at 40 raises, or has another shape."""

    def __init__(self, fault: str) -> None:
        self.fault = fault

    def __len__(self) -> int:
        return 64

    def __getitem__(self, at: int) -> Any:
        if at == 40 and self.fault == "raises":
            raise KeyError("no such file")
        return torch.zeros(3, 8, 8 - (at == 40)), 0


@pytest.mark.parametrize(
    ("fault", "workers", "said"),
    [
        ("raises", 0, "at .*test_own.py:.*\n  why  KeyError: 'no such file'"),
        pytest.param(
            *("raises", 1, "at .*test_own.py:.*\n  why  KeyError: 'no such file'"),
            marks=pytest.mark.slow,  # torch waits for the process that raised
        ),
        ("shape", 0, "why  RuntimeError: stack expects each tensor to be equal size"),
    ],
)
def test_an_example_that_cannot_be_read_later_is_named(fault: str, workers: int, said: str) -> None:
    data = own_data((Broken(fault), pairs(4)), "f", workers=workers)
    with pytest.raises(DataError, match=f"(?s)an example of the data cannot be read.*{said}"):
        list(data.train.batches(16))
    loaded = own_data((DataLoader(Broken(fault), 16, num_workers=workers), pairs(4)), "f")
    with pytest.raises(DataError, match=f"(?s)an example of the data cannot be read.*{said}"):
        list(loaded.train.batches(16))


def images_in(folder: Path, count: int, size: int = 12) -> None:
    folder.mkdir(parents=True)
    for at in range(count):
        Image.new("RGB", (size, size), (at, 0, 0)).save(folder / f"{at}.png")


def test_a_single_tree_is_divided_class_by_class(tmp_path: Path) -> None:
    for name, count in (("cat", 5), ("dog", 10)):
        images_in(tmp_path / name, count)
    data = load(f"folder:{tmp_path}", image_size=(8, 8), val_split=0.2)
    labels: list[Tensor] = [y for _, y in data.val.batches(8)]
    assert torch.cat(labels).bincount().tolist() == [1, 2]
    assert len(data.train) == 12
    again = load(f"folder:{tmp_path}", image_size=(8, 8), val_split=0.2)
    assert torch.equal(next(again.val.batches(8))[0], next(data.val.batches(8))[0])


def test_the_folder_that_was_meant_is_named(tmp_path: Path) -> None:
    for part in ("train", "val"):
        images_in(tmp_path / "set" / part / "cat", 2)
    for given, split in ((tmp_path, 0.0), (tmp_path / "set" / "train", 0.0)):
        with pytest.raises(DataError, match=rf"did you mean folder:{tmp_path / 'set'}\?"):
            load(f"folder:{given}", val_split=split)
    with pytest.raises(DataError, match=rf"did you mean folder:{tmp_path / 'set' / 'train'}\?"):
        load(f"folder:{tmp_path / 'set' / 'train' / 'cat'}", val_split=0.2)
    with pytest.raises(DataError, match="is split already"):
        load(f"folder:{tmp_path / 'set'}", val_split=0.2)


def test_a_tree_without_a_split_says_how_to_split_it(tmp_path: Path) -> None:
    images_in(tmp_path / "cat", 2)
    with pytest.raises(DataError, match=r"give --val-split 0.2"):
        load(f"folder:{tmp_path}")


def test_large_photos_are_not_decoded_whole(tmp_path: Path) -> None:
    path = tmp_path / "photo.jpg"
    Image.effect_noise((1600, 1200), 60).convert("RGB").save(path)
    assert Opener((64, 64))(str(path)).size == (200, 150)
    assert Opener((600, 800))(str(path)).size == (1600, 1200)


def test_few_images_need_no_processes() -> None:
    assert workers_for(FEW, None) == 0
    assert workers_for(FEW + 1, None) >= 1
    assert workers_for(10, 3) == 3


def test_cores_are_counted_where_the_system_does_not_tell_which_are_usable(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)  # as on macOS
    assert usable_cores() == os.cpu_count()
