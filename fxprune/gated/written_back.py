"""Averages that are written back into the trained network, by position: found, and warned of.

Lightning's WeightAveraging exchanges the values of network and average for a validation, and copies
the average into the network at the end, as StochasticWeightAveraging does. Values by position reach
the channels that execute. An evaluation shows others beside them, with what they learnt last.

After each step the sums of some parameters are kept. If they are others at a later use, and a copy
has the network's sums of now (it was copied) or of then (they were exchanged), that was done.
"""

import warnings
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from fxprune.errors import FxpruneWarning, message

_PROBES = 4


@torch.no_grad()
def probed(parameters: Sequence[Tensor]) -> Tensor:
    """Return the sums of some parameters, from the first to the last: float64 [up to 4]."""
    chosen = parameters[:: max(1, len(parameters) // _PROBES)][:_PROBES]
    return torch.stack([p.sum(dtype=torch.float64) for p in chosen])


def is_written(then: Tensor, now: Tensor, copies: Iterable[Tensor]) -> bool:
    """Tell whether the values of a copy were copied into a network, or exchanged with its own.

    Args:
        then: the network's sums after its last step, as `probed` returns them.
        now: its sums of now.
        copies: the sums of each of its copies.
    """
    if torch.equal(then, now):
        return False
    return any(torch.equal(sums, now) or torch.equal(sums, then) for sums in copies)


def warn_of_written() -> None:
    """Warn of it."""
    text = message(
        "an average was written into the gated network, and reached a part of the channels alone",
        why="values by position are of the channels that train now; evaluation and export show "
        "others too, with what they learnt last",
        do="evaluate and export the average itself (Lightning: callback._average_model.module), or "
        "call gated.settle() before the part of the training that is averaged",
    )
    warnings.warn(text, FxpruneWarning, stacklevel=2)
