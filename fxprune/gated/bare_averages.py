"""Averages kept as bare tensors, which cannot follow the channels: found, and warned of.

`[p.detach().clone() for p in gated.parameters()]` and `{name: p.clone() for name, p in …}` leave no
trace in the network: nothing tells that a step later `average[i].lerp_(parameter, 0.1)` mixes the
channels of two selections. Such tensors are found among the objects of the garbage collector,
whatever holds them: a list, a dict, an attribute, the buffers or parameters of a module that is no
traced network (also of a copy of most of one), or one flat vector; as numpy's arrays in a list; and
as the parameters of a compact network of `fxprune.shrink` that was written to since. They have the
shapes of the network's narrow weights and values near them, and share no memory with them.
Parameters with a gradient or an optimiser are trained, and no averages. Kept across an exchange,
the others are of other channels.

A full search reads all objects of the process, some tenths of a second; so it takes at most one
part in a hundred of the process's time. The young objects, a few thousand, are searched more often,
and with them the compact networks that were written to.
"""

import gc
import itertools
import time
import warnings
import weakref
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
from numpy import ndarray
from torch import Tensor, fx, nn
from torch.optim import Optimizer

from fxprune.errors import FxpruneWarning, message
from fxprune.gated.links import sums_of

_SHARE = 0.01  # of the process's time, for full searches
_OFTEN = 64  # exchanges between two searches of the young objects, after the first few

_LEAST = 16  # elements of a weight that others are not near by chance


MADE = "fxprune_made"
"""In the `meta` of a compact network: the sums of its parameters when it was made."""


GRAPHS: "weakref.WeakSet[fx.GraphModule]" = weakref.WeakSet()
"""Graph modules of the process, compact networks and copies of them among them."""


class Search:
    """When to search, for all networks of a process."""

    def __init__(self) -> None:
        self._last = float("-inf")
        self._cost = 0.0

    def objects(self, exchanges: int) -> Sequence[object]:
        """Return the objects to look at after so many exchanges of a network; often none."""
        now = time.process_time()
        if now - self._last >= self._cost / _SHARE:
            found = gc.get_objects()
            self._last = time.process_time()
            self._cost = 2.5 * (self._last - now)  # looking at them included
            return found
        if exchanges & (exchanges - 1) and exchanges % _OFTEN:
            return ()
        written = [each for each in [*GRAPHS] if not _is_as_made(each)]
        averages = [parameter for each in written for parameter in each.parameters()]
        return gc.get_objects(generation=0) + gc.get_objects(generation=1) + averages

    def spent(self, seconds: float) -> None:
        """Count the time that a second look took."""
        self._cost += seconds


SEARCH = Search()


class BareAverages:
    """What is known of one network's bare averages."""

    def __init__(self) -> None:
        self._exchanges = 0
        self._warned = False

    def look(
        self,
        parameters: Iterable[Tensor],
        narrow: Callable[[], Sequence[Tensor]],
        followed: Callable[[], Iterable[Tensor]],
    ) -> None:
        """Find bare averages before an exchange, which most exchanges do without; warn once.

        Args:
            parameters: of the network, before the exchange; read in a search alone.
            narrow: returns those of them that are smaller than the dense network's.
            followed: returns all tensors that follow the channels, such as optimisers' state.

        Warns:
            FxpruneWarning: tensors were found that will be of other channels.
        """
        if self._warned or torch.compiler.is_compiling():
            return
        self._exchanges += 1
        objects = SEARCH.objects(self._exchanges)
        if not objects:
            return
        parameters = [*parameters]
        weights = [p for p in narrow() if p.dim() > 1 and p.numel() >= _LEAST and not p.is_meta]
        own = {t.data_ptr() for t in (*parameters, *followed())}
        if not weights or not any(_averages(objects, parameters, weights, own)):
            return
        del objects
        began = time.process_time()
        gc.collect()  # averages of a training before this one
        others = _in_state_dicts() | _in_networks() | _in_optimizers()
        found = [*_averages(gc.get_objects(), parameters, weights, own, others)]
        SEARCH.spent(time.process_time() - began)
        if found:
            self._warned = True
            _warn(found[0])


def _averages(
    objects: Sequence[object],
    parameters: Sequence[Tensor],
    weights: Sequence[Tensor],
    own: set[int],
    others: frozenset[int] = frozenset(),
) -> Iterator[str]:
    """Describe what may be averages of the parameters.

    Args:
        objects: where to look.
        parameters: of the network.
        weights: those of them to look for.
        own: addresses of tensors that follow.
        others: ids of tensors that need not.
    """
    flat = {
        sum(p.numel() for p in each): each
        for each in (parameters, [p for p in parameters if p.requires_grad])
        if each
    }
    alike: dict[torch.Size, list[Tensor]] = {weight.shape: [] for weight in weights}
    for tensor in itertools.chain(objects, _arrays(objects)):
        if type(tensor) is not Tensor and type(tensor) is not nn.Parameter:
            continue
        shape = tensor.shape
        whole = flat.get(shape[0]) if len(shape) == 1 else None
        if (shape not in alike and whole is None) or not _is_kept(tensor, own, others):
            continue
        if whole is not None and is_close(tensor, torch.cat([p.flatten() for p in whole])):
            yield f"a vector of {len(tensor):,} numbers is made of the gated network's parameters"
        elif whole is None:
            alike[shape].append(tensor)
    found = [w for w in weights if any(is_close(tensor, w) for tensor in alike[w.shape])]
    if 2 * len(found) >= len(weights):
        yield f"{len(found)} tensors have the shapes of the gated network's parameters"


def _arrays(objects: Sequence[object]) -> Iterator[Tensor]:
    """Yield, as tensors, the arrays in lists, which the garbage collector does not have."""
    for item in objects:
        if type(item) is list and item and type(item[0]) is ndarray:
            for array in [*item]:
                if type(array) is ndarray and array.dtype in ("f4", "f8") and array.flags.writeable:
                    yield torch.from_numpy(array)


def _is_kept(tensor: Tensor, own: set[int], others: frozenset[int]) -> bool:
    """Tell whether it holds values of its own."""
    try:
        return not (
            id(tensor) in others
            or (tensor.requires_grad and not (tensor.is_leaf and tensor.grad is None))
            or not tensor.is_floating_point()
            or tensor.layout is not torch.strided
            or tensor.is_meta
            or tensor.data_ptr() in own
        )
    except RuntimeError:  # a view of what was written in place, a tensor of a transformation
        return False


def _in_state_dicts() -> frozenset[int]:
    """Return the ids of the tensors in state dicts: of other modules, or with their selection."""
    found: set[int] = set()
    for container in gc.get_objects():
        kind = type(container)
        if kind is OrderedDict or kind is dict:
            items: Any = container
            if not isinstance(next(iter(items.values()), None), Tensor):
                continue
            if hasattr(items, "_metadata") or any(
                type(key) is str and key.endswith("_extra_state") for key in items
            ):
                found.update(id(value) for value in items.values())
    return frozenset(found)


def _in_networks() -> frozenset[int]:
    """Return the ids of the parameters of traced networks, which say of which channels they are.

    A compact network that was written to since it was made says so no longer.
    """
    networks = [item for item in gc.get_objects() if issubclass(type(item), fx.GraphModule)]
    return frozenset(id(p) for each in networks if _is_as_made(each) for p in each.parameters())


def _is_as_made(network: fx.GraphModule) -> bool:
    made = getattr(network, "meta", {}).get(MADE)  # none while it is being made
    return made is None or made == sums_of(dict(network.named_parameters()))


def _in_optimizers() -> frozenset[int]:
    """Return the ids of the parameters that some optimiser trains."""
    every = [item for item in gc.get_objects() if issubclass(type(item), Optimizer)]
    groups = (group for one in every for group in getattr(one, "param_groups", ()))
    return frozenset(id(p) for group in groups for p in group["params"])


@torch.no_grad()
def is_close(tensor: Tensor, parameter: Tensor) -> bool:
    """Tell whether it may be an average of the parameter; its gradient is far from it."""
    wanted = parameter.detach().double()
    gap = torch.linalg.vector_norm(tensor.detach().to(wanted.device, torch.float64) - wanted)
    return bool(gap <= 0.5 * torch.linalg.vector_norm(wanted))


def _warn(what: str) -> None:
    text = message(
        what,
        why="the network is about to execute other channels, which they cannot follow: averaged "
        "or compared with the parameters by position, they mix different channels",
        do="keep a deep copy and average that: average = copy.deepcopy(gated), then "
        "zip(average.parameters(), gated.parameters()); or AveragedModel of "
        "torch.optim.swa_utils; to compare weights, gated.dense_state_dict()",
    )
    warnings.warn(text, FxpruneWarning, stacklevel=2)
