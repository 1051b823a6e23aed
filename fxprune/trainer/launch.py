"""The processes of torchrun: how they begin, wait for each other, and end together."""

import contextlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

import torch
from torch import distributed

from fxprune.errors import FxpruneError, RunError, Unsaid

PATIENCE = 1800.0
"""Seconds that a process waits for the others."""

_SIGNS = ("gloo", "NCCL", "Connection closed by peer", "Connection reset", "Timed out waiting")


@contextmanager
def launched(patience: float = PATIENCE) -> Iterator[int]:
    """Join the other processes if torchrun started this one; yields the rank, 0 for a lone one.

    When a process fails, the others end as well; one of all processes says why.

    Args:
        patience: seconds after which a process that does not answer counts as lost.

    Raises:
        RunError: another process ended or does not answer.
        Unsaid: the same, where another process has printed the error.
    """
    if not (distributed.is_available() and distributed.is_torchelastic_launched()):
        yield 0
        return
    backend = "gloo"
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
        backend = "cpu:gloo,cuda:nccl"
    distributed.init_process_group(backend, timeout=timedelta(seconds=patience))
    try:
        yield distributed.get_rank()
    except FxpruneError as error:
        if not _speaks():
            raise Unsaid(error.exit_code) from None
        raise
    except RuntimeError as error:
        if not any(sign in str(error) for sign in _SIGNS):
            raise
        if not _speaks():
            raise Unsaid(RunError.exit_code) from None
        raise RunError(
            "another process of this training ended, or does not answer",
            why=str(error).splitlines()[0],
            do="see what it said, and give the same command again: it goes on from the last "
            f"checkpoint; --patience sets how long to wait ({patience:g} seconds now)",
        ) from error
    finally:
        with contextlib.suppress(RuntimeError):
            distributed.destroy_process_group()


def _speaks() -> bool:
    """Tell whether this process is the first to fail; torchrun's store outlives each of them."""
    with contextlib.suppress(Exception):
        store = distributed.distributed_c10d._get_default_store()
        return bool(store.add("fxprune/failed", 1) == 1)
    return True


@contextmanager
def first_alone(rank: int, wanted: bool) -> Iterator[None]:
    """Let the first rank go first, if that is wanted; the others find what it has fetched."""
    wanted = wanted and distributed.is_available() and distributed.is_initialized()
    if wanted and rank > 0:
        distributed.barrier()
    yield
    if wanted and rank == 0:
        distributed.barrier()
