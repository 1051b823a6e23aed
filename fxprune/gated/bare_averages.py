"""Averages kept as bare tensors, which cannot follow the channels: found, and warned of.

`[p.detach().clone() for p in gated.parameters()]` and `{name: p.clone() for name, p in …}` leave no
trace in the network: nothing tells that a step later `average[i].lerp_(parameter, 0.1)` mixes the
channels of two selections. Such a list is found where Python keeps it, among the objects of the
garbage collector: a list, tuple or dict of tensors with the shapes of the network's parameters, in
their order, that shares no memory with them. Kept across an exchange, it is of other channels.

A full search reads all objects of the process, some tenths of a second; so it takes at most one
part in a hundred of the process's time. The young objects, a few thousand, are searched more often.
"""

import gc
import time
import warnings
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from fxprune.errors import FxpruneWarning, message

_SHARE = 0.01  # of the process's time, for full searches
_OFTEN = 64  # exchanges between two searches of the young objects, after the first few


class Search:
    """When to search, for all networks of a process."""

    def __init__(self) -> None:
        self._last = float("-inf")
        self._cost = 0.0

    def objects(self, exchanges: int) -> Sequence[object]:
        """Return the containers to look at after so many exchanges of a network; often none."""
        now = time.process_time()
        if now - self._last >= self._cost / _SHARE:
            found = gc.get_objects()
            self._last = time.process_time()
            self._cost = 2.5 * (self._last - now)  # looking at them included
            return found
        if exchanges & (exchanges - 1) and exchanges % _OFTEN:
            return ()
        return gc.get_objects(generation=0) + gc.get_objects(generation=1)


SEARCH = Search()


class BareAverages:
    """What is known of one network's bare averages."""

    def __init__(self) -> None:
        self._exchanges = 0
        self._warned = False

    def look(self, parameters: Iterable[Tensor], followed: Iterable[Tensor]) -> None:
        """Search before an exchange, which most exchanges do without; warn once.

        Args:
            parameters: of the network, before the exchange; read in a search alone.
            followed: those of its averages that follow; likewise.

        Warns:
            FxpruneWarning: a list of tensors was found that will be of other channels.
        """
        if self._warned or torch.compiler.is_compiling():
            return
        self._exchanges += 1
        objects = SEARCH.objects(self._exchanges)
        if not objects:
            return
        parameters = [*parameters]
        own = {tensor.data_ptr() for tensor in parameters}
        own |= {tensor.data_ptr() for tensor in followed}
        trained = [tensor for tensor in parameters if tensor.requires_grad]
        candidates = {len(each): each for each in (parameters, trained) if len(each) > 1}
        for container in objects:
            kind = type(container)
            if kind is list or kind is dict or kind is tuple:
                parts: Any = container
                like = candidates.get(len(parts))
                if like is not None and _is_average(parts, like, own):
                    self._warned = True
                    _warn(kind.__name__, len(parts))
                    return


def _is_average(parts: Any, parameters: Sequence[Tensor], own: set[int]) -> bool:
    """Whether a container holds other tensors of the parameters' shapes, most of them close."""
    tensors = [*(parts.values() if type(parts) is dict else parts)]
    if not all(type(tensor) is Tensor for tensor in tensors):  # parameters are another network's
        return False
    pairs = [*zip(tensors, parameters, strict=True)]
    if any(
        t.shape != p.shape or t.device != p.device or not t.is_floating_point() for t, p in pairs
    ):
        return False
    if any(t.data_ptr() in own for t in tensors):
        return False
    return 2 * sum(_is_close(tensor, parameter) for tensor, parameter in pairs) > len(pairs)


@torch.no_grad()
def _is_close(tensor: Tensor, parameter: Tensor) -> bool:
    """Whether it may be an average of the parameter; its gradient is far from it."""
    gap = torch.linalg.vector_norm((tensor - parameter).double())
    return bool(gap <= 0.5 * torch.linalg.vector_norm(parameter.double()))


def _warn(kind: str, length: int) -> None:
    text = message(
        f"a {kind} of {length} tensors has the shapes of the gated network's parameters",
        why="the network is about to execute other channels, which that cannot follow: averaged "
        "or compared with the parameters by position, it mixes different channels",
        do="keep a deep copy and average that: average = copy.deepcopy(gated), then "
        "zip(average.parameters(), gated.parameters()); or AveragedModel of "
        "torch.optim.swa_utils; to compare weights, gated.dense_state_dict()",
    )
    warnings.warn(text, FxpruneWarning, stacklevel=2)
