"""Equalities between labels, solved: the connected components of the graph that they make."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from torch import Tensor

from fxprune.analysis.context import Notebook

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Components:
    """The components among the labels of a run, numbered in the order of their first labels.

    Attributes:
        count: how many there are.
        of: the component of each label: int64 [next_label].
        lead: for each vector of labels that were made together (`Notebook.made`), the first one
            that it is connected with as a whole: int64 [vectors].
    """

    count: int
    of: Ints
    lead: Ints


def components(context: Notebook, edges: Sequence[tuple[Tensor, Tensor, Any]]) -> Components:
    """Solve equalities; most of them are between vectors of labels that were made together."""
    made = {id(labels): number for number, labels in enumerate(context.made)}
    met: dict[int, int] = {}  # for other vectors: the first one that met it
    whole, rest = [], []
    for a, b, _ in edges:
        ends = [made[id(side)] for side in (a, b) if id(side) in made]
        if len(ends) == 1:
            other = id(b) if id(a) in made else id(a)
            ends += [met[other]] if other in met else []
            met.setdefault(other, ends[0])
        if len(ends) == 2:
            whole.append(ends)
        elif not same_memory(a, b):
            rest.append((a, b))
    lead = lowest(len(made), *np.array(whole, dtype=np.int64).reshape(-1, 2).T)
    own = own_labels(context, lead)
    of = np.empty(context.next_label, dtype=np.int64)
    of[own] = number = np.arange(len(own))
    if rest:
        copy_to_others(context, lead, of)
        number = lowest(
            len(own), *(of[torch.cat(side).numpy()] for side in zip(*rest, strict=True))
        )
    new = number == np.arange(len(own))
    of[own] = (np.cumsum(new) - 1)[number]
    copy_to_others(context, lead, of)
    return Components(int(np.count_nonzero(new)), of, lead)


def own_labels(context: Notebook, lead: Ints) -> Ints:
    """Return the labels that are not in a vector with another lead, rising: int64 [labels].

    There are far fewer of them than labels: what follows is worked out for them alone.
    """
    before = context.starts[0] if context.starts else context.next_label
    leads = [context.made[number].numpy() for number in np.unique(lead)]
    return np.concatenate([np.arange(before), *leads])


def copy_to_others(context: Notebook, lead: Ints, values: Ints) -> None:
    """Give the labels of each vector what those of its lead have, in place: int64 [next_label]."""
    for number in np.flatnonzero(lead != np.arange(len(lead))).tolist():
        start, source = context.starts[number], context.starts[lead[number]]
        size = len(context.made[number])
        values[start : start + size] = values[source : source + size]


def same_memory(a: Tensor, b: Tensor) -> bool:
    """Tell whether two vectors are one."""
    return a.data_ptr() == b.data_ptr() and a.shape == b.shape and a.stride() == b.stride()


def lowest(size: int, a: Ints, b: Ints) -> Ints:
    """Return the lowest vertex connected with each one, by edges a-b: int64 [size]."""
    linked = np.zeros(size, dtype=bool)
    differ = a != b
    a, b = a[differ], b[differ]
    if not len(a):
        return np.arange(size)
    linked[a] = linked[b] = True
    vertices = np.flatnonzero(linked)
    number = np.cumsum(linked) - 1  # scipy would look at all of them
    count = len(vertices)
    links = coo_array((np.ones(len(a), dtype=np.int8), (number[a], number[b])), (count, count))
    _, component = connected_components(links, directed=False)
    lowest = np.empty(count, dtype=np.int64)
    lowest[component[::-1]] = vertices[::-1]  # the last one to be put stays
    found = np.arange(size)
    found[vertices] = lowest[component]
    return found
