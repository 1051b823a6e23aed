"""Data of the user's own: what a factory returned becomes a `DataSet`.

A factory returns a `DataSet`, or two of these: for training and for validation::

    return train, val                       # torch Datasets, or DataLoaders
    return {"train": train, "val": val}

An example of a Dataset, and a batch of a DataLoader, is `(inputs, target)`; or `(x, y, …, target)`
where the network takes several inputs. `inputs` may be a tensor, a tuple (the network is called
with its items) or a dict (called with its items as keywords). The loss and the metric get what the
network returns, and the target.
"""

import contextlib
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree
from torch.utils.data import DataLoader, Dataset, IterableDataset, default_collate

from fxprune.data.drawn import Drawn, drawing
from fxprune.data.load import DataSet
from fxprune.data.splits import WHOLE, Batch, Share, Split, rows, seed_of
from fxprune.errors import DataError, FxpruneError, described
from fxprune.user_lines import user_line

PARTS = ("train", "val")
FORMS = (
    "return (train, val) or {'train': …, 'val': …} of torch Datasets or DataLoaders,\n"
    "or a fxprune.data.DataSet"
)


def own_data(made: Any, name: str, *, workers: int = 0) -> DataSet:
    """Make a data set of what a factory returned.

    Args:
        made: a `DataSet`, or torch Datasets or DataLoaders for training and validation.
        name: the factory's, for messages and reports.
        workers: processes that load the examples of Datasets; a DataLoader has its own.

    Raises:
        DataError: it returned something else, or a part of it is empty or yields something else
            than inputs with targets.
    """
    if isinstance(made, DataSet):
        return made
    if isinstance(made, Mapping) and set(made) == set(PARTS):
        made = made["train"], made["val"]
    if not (isinstance(made, tuple | list) and len(made) == 2):
        raise DataError(f"the data factory {name} returned {_described(made)}", do=FORMS)
    train, val = (_split(part, which, name, workers) for part, which in zip(made, PARTS))
    classes = getattr(getattr(train, "source", None), "classes", None) or ()
    named = tuple(map(str, classes)) if isinstance(classes, Sequence) else ()
    inputs, _ = next(val.batches(1))
    first = next(leaf for leaf in pytree.tree_leaves(inputs) if isinstance(leaf, Tensor))
    return DataSet(name, train, val, named, tuple(first.shape[1:]))


def own_transforms(found: Any, name: str) -> Any:
    """Check what a factory of the user's own transform returned.

    Args:
        found: what it returned: a function of an image, or one for evaluation and one for training.
        name: the factory's, for the message.

    Returns:
        `found`, a function or a tuple of two.

    Raises:
        DataError: `found` is something else.
    """
    if callable(found):
        return found
    if isinstance(found, tuple | list) and len(found) == 2 and all(map(callable, found)):
        return tuple(found)
    raise DataError(
        f"the factory of --transform {name} returned {described(found)}",
        do="return a function of an image, or two of them, for evaluation and for training",
    )


def _split(part: Any, which: str, name: str, workers: int) -> "DatasetSplit | LoaderSplit":
    split: DatasetSplit | LoaderSplit
    try:
        if isinstance(part, DataLoader) and not isinstance(part.dataset, IterableDataset):
            split = LoaderSplit(part)
        elif isinstance(part, Dataset) and not isinstance(part, IterableDataset):
            split = DatasetSplit(part, workers)
        else:
            raise DataError(
                f"{which} of the data factory {name} is {_described(part)}",
                why="a torch Dataset or a DataLoader of one is needed, with a length",
                do=FORMS,
            )
        with _reading():
            count = len(split)
        if count == 0:
            raise DataError(
                f"{which} of the data factory {name} is empty", do="return at least one example"
            )
        with _reading():  # a DataLoader may have no batch
            inputs, _ = next(split.batches(1))
    except UnreadableError as error:
        what = f"{which} of the data factory {name} cannot be read"
        do = "give it __len__ and __getitem__, and examples that make a batch"
        raise DataError(what, at=error.at, why=error.why, do=do) from error.__cause__
    if not any(isinstance(leaf, Tensor) for leaf in pytree.tree_leaves(inputs)):
        raise DataError(
            f"{which} of the data factory {name} yields {_described(inputs)} for inputs",
            why="there is no tensor in it",
            do="yield (inputs, target) with tensors, images as float32 [C, H, W]",
        )
    return split


class UnreadableError(DataError):
    """Data whose code raises."""


_IN_WORKER = re.compile(r'File "(.+)", line (\d+), in .*\n +(.*)')


@contextlib.contextmanager
def _reading() -> Iterator[None]:
    """Turn what the user's data raise into a DataError; so also what makes batches of them.

    Raises:
        UnreadableError: they raised; a process that loads hands over its traceback as a text.
    """
    try:
        yield
    except FxpruneError:
        raise
    except Exception as error:
        at, why = user_line(error), f"{type(error).__name__}: {error}"
        if found := _IN_WORKER.findall(str(error)):
            file, line, code = found[-1]
            at, why = f"{file}:{line}   {code}", str(error).strip().splitlines()[-1]
        raise UnreadableError(
            "an example of the data cannot be read, or makes no batch with others",
            at=at,
            why=why,
            do="look at the examples; each has to have the shape and the type of the others",
        ) from error


def _read(batches: Iterable[Any]) -> Iterator[Any]:
    """Yield batches of the user's data.

    Raises:
        UnreadableError: their code raises.
    """
    end = object()
    with _reading():
        found = iter(batches)
    while True:
        with _reading():
            batch = next(found, end)
        if batch is end:
            return
        yield batch


def inputs_and_targets(batch: Any) -> Batch:
    """Take a batch apart: `(inputs, target)`, or `(x, y, …, target)`.

    Raises:
        DataError: the batch is something else.
    """
    if isinstance(batch, tuple | list) and len(batch) == 2:
        return batch[0], batch[1]
    if isinstance(batch, tuple | list) and len(batch) > 2:
        return tuple(batch[:-1]), batch[-1]
    raise DataError(
        f"a batch is {_described(batch)}",
        why="inputs and a target are needed",
        do="yield (inputs, target), or (x, y, …, target) for several inputs",
    )


@dataclass(frozen=True, eq=False)
class DatasetSplit:
    """A split of a torch Dataset; `augment` does not concern it: the user's transforms do that.

    Attributes:
        source: the Dataset; its attribute `collate_fn`, if it has one, makes batches.
        workers: processes that load.
    """

    source: Dataset[Any]
    workers: int = 0

    def __len__(self) -> int:
        """Count the examples."""
        return len(self.source)  # type: ignore[arg-type]

    def batches(
        self,
        size: int,
        *,
        device: torch.device | str = "cpu",
        shuffle: torch.Generator | None = None,
        augment: bool = False,  # noqa: ARG002 - the transforms of the Dataset say
        share: Share = WHOLE,
    ) -> Iterator[Batch]:
        """Yield the split once; see `Split.batches`."""
        collate = getattr(self.source, "collate_fn", default_collate)
        index = rows(len(self), size, shuffle, share)
        drawn = Drawn(self.source, collate, seed_of(shuffle))
        for batch in _read(drawn.batches(index, shuffle, self.workers)):
            yield inputs_and_targets(moved(batch, device))


@dataclass(frozen=True, eq=False)
class LoaderSplit:
    """A split that a user's DataLoader reads: its batch size, order and workers are its own.

    Attributes:
        loader: the DataLoader; its generator, if it has one, is seeded for each pass.
    """

    loader: DataLoader[Any]

    @property
    def source(self) -> Any:
        """The Dataset."""
        return self.loader.dataset

    def __len__(self) -> int:
        """Count the examples."""
        return len(self.source)

    def batches(
        self,
        size: int,  # noqa: ARG002
        *,
        device: torch.device | str = "cpu",
        shuffle: torch.Generator | None = None,
        augment: bool = False,  # noqa: ARG002
        share: Share = WHOLE,
    ) -> Iterator[Batch]:
        """Yield the split once; see `Split.batches`.

        Raises:
            DataError: several processes share the work, which a DataLoader does by its sampler.
        """
        if share.of > 1:
            raise DataError(
                "several processes cannot share the batches of a DataLoader",
                why="its order is its own",
                do="return the Datasets instead",
            )
        seed = seed_of(shuffle)
        if shuffle is not None and self.loader.generator is not None:
            self.loader.generator.manual_seed(seed)
        with drawing(seed):
            for batch in _read(self.loader):
                yield inputs_and_targets(moved(batch, device))


def moved(batch: Any, device: torch.device | str) -> Any:
    """Move all tensors of a batch to a device."""
    return pytree.tree_map_only(Tensor, lambda tensor: tensor.to(device), batch)


def steps_of(split: Split, size: int) -> int:
    """Count the batches of a shuffled pass of a split."""
    return len(split.loader) if isinstance(split, LoaderSplit) else max(len(split) // size, 1)


def _described(value: Any) -> str:
    kind = f"{'an' if type(value).__name__[:1] in 'aeiouAEIOU' else 'a'} {type(value).__name__}"
    if isinstance(value, tuple | list):
        return f"{kind} of {len(value)}" + (
            f" ({', '.join(type(item).__name__ for item in value[:4])})" if value else ""
        )
    if isinstance(value, Mapping):
        return (
            f"{kind} with the keys {', '.join(map(repr, value))}"
            if value
            else f"{kind} without keys"
        )
    return "None" if value is None else kind
