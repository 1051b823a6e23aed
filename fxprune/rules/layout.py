"""Labels as data: an op is run on a tensor of labels, and its result is read back."""

from collections import Counter
from collections.abc import Hashable, Sequence

import torch
from torch import Tensor

from fxprune.rules.base import PINNED, Context, Family


def spread(labels: Tensor, dim: int, shape: tuple[int, ...]) -> Tensor:
    """Lay labels [size of dim] out over `shape`, with stride 0 along the other dimensions."""
    lone = [1] * len(shape)
    lone[dim] = -1
    return labels.view(lone).expand(shape)


def distinct(context: Context, labels: Tensor) -> Tensor:
    """Return labels of which none repeats: each repetition is a new one, coupled to the first.

    Behind a shuffle a channel stands at several positions, with other values at each: [1, 1, 2, 2].
    Where these wrap around, as in roll(1) -> [2, 1, 1, 2], the second channel has its halves the
    other way round, and may not be exchanged for the first.

    Args:
        context: takes the new labels, and that they are equal to those they stand for.
        labels: int64 [n], of one dimension.
    """
    count, occurrence = Counter[int](), []
    for label in labels.tolist():
        occurrence.append(count[label])
        count[label] += 1
    apart, which = labels, torch.tensor(occurrence, dtype=torch.int64, device="cpu")
    for number in range(1, max(occurrence, default=0) + 1):
        where = which == number
        fresh = context.fresh(int(where.sum()))
        context.repeats(fresh)
        context.meet(labels[where], fresh)
        apart = apart.masked_scatter(where, fresh)
    return apart


def read_back(context: Context, moved: Tensor, which: Sequence[Hashable]) -> Family | None:
    """Return the family of a tensor of labels; couple it to one dimension if it varies along more.

    Args:
        context: takes the coupling.
        moved: labels in the place of the tensor's elements.
        which: what tells it from the others that the call moves.
    """
    varying, thin = [], moved
    for dim, size in enumerate(moved.shape):
        if _varies(thin, dim):
            varying.append(dim)
        elif size > 1:
            thin = thin.narrow(dim, 0, 1)  # so that there is less to compare from now on
    if len(varying) > 1 or context.has_chosen(*which):
        return _coupled(context, moved, varying, which)
    if not varying:
        lone = moved.flatten()[:1]
        if lone.numel() and int(lone) != PINNED:
            context.pin(lone, "a single channel fills the whole dimension")
        return None
    return Family(varying[0], thin.reshape(-1))


def _coupled(
    context: Context, moved: Tensor, varying: list[int], which: Sequence[Hashable]
) -> Family | None:
    """Keep the dimension along which most labels differ; indices that share it are one channel."""
    lines = {dim: _first_line(moved, dim) for dim in varying}
    most = max(varying, key=lambda dim: (len(torch.unique(lines[dim])), dim), default=0)
    kept = context.choose(most, *which)
    for dim in range(moved.dim()):
        if dim != kept and dim not in varying:
            moved = moved.narrow(dim, 0, 1)
    rows = moved.movedim(kept, -1).reshape(-1, moved.shape[kept])
    context.meet(rows[1:].reshape(-1), rows[:1].expand(len(rows) - 1, -1).reshape(-1))
    return Family(kept, rows[0]) if moved.shape[kept] > 1 else None


def _first_line(moved: Tensor, dim: int) -> Tensor:
    for other in range(moved.dim()):
        if other != dim:
            moved = moved.narrow(other, 0, 1)
    return moved.reshape(-1)


def _varies(moved: Tensor, dim: int) -> bool:
    size = moved.shape[dim]
    if size <= 1 or moved.stride(dim) == 0:
        return False
    if not torch.equal(moved.select(dim, 0), moved.select(dim, 1)):  # as a rule it is seen here
        return True
    return not torch.equal(moved.narrow(dim, 1, size - 1), moved.narrow(dim, 0, size - 1))
