"""Random numbers of examples: a function of the pass and the batch, whoever loads it, and when."""

import random
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

GRACE = 20
"""Seconds that a process which loads may go on after SIGTERM."""


@contextmanager
def drawing(seed: int) -> Iterator[None]:
    """Set the seed of torch, numpy and Python; their random states are put back. No GPU's."""
    python, numpys = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        np.random.seed(seed % 2**32)
        random.seed(seed)
        try:
            yield
        finally:
            np.random.set_state(numpys)
            random.setstate(python)


@dataclass(frozen=True, eq=False)
class Drawn(Dataset[Any]):
    """The batches of a pass over a Dataset.

    What a transform or the making of a batch draws depends on the seed and on the batch, so that
    a pass has the same bits in any number of processes that load, and after a pause in it.

    Attributes:
        source: the Dataset.
        collate: makes a batch of a list of its examples.
        seed: of the pass.
    """

    source: Any
    collate: Callable[[list[Any]], Any]
    seed: int

    def __getitems__(self, index: list[int]) -> Any:
        """Load a batch, its examples at once if the Dataset can."""
        at_once = getattr(self.source, "__getitems__", None)
        with drawing(self.seed + index[0]):
            return self.collate(at_once(index) if at_once else [self.source[i] for i in index])

    def batches(
        self, index: list[list[int]], generator: torch.Generator | None, workers: int
    ) -> DataLoader[Any]:
        """Return what yields batches.

        Args:
            index: the examples of each.
            generator: of the seeds of the processes, None for any.
            workers: processes that load.
        """
        return DataLoader(
            self,
            batch_sampler=index,
            collate_fn=_as_it_is,
            generator=generator or torch.Generator(),
            num_workers=workers,
            worker_init_fn=outlive_signals,
        )


def outlive_signals(_worker: int) -> None:
    """Leave it to the main process when this one ends: signals often go to all of a group at once.

    The main one may still be in a step, which needs the next batch. SIGTERM, which PyTorch also
    sends to processes that do not end, does so after `GRACE` seconds.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(signal, "alarm"):  # POSIX
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.signal(signal.SIGTERM, lambda *_: signal.alarm(GRACE))


def _as_it_is(batch: Any) -> Any:
    return batch
