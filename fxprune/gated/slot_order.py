"""Saved optimiser states say of which channels their slots are.

`optimizer.state_dict()` holds momentum in slot order. Which channel a slot was of is known only at
that moment: the network may execute others when the state is loaded, or be a deep copy that has
followed its source since. So the selection is saved with it, as one more entry of the first
parameter group, where every saver and loader keeps it, even if it loads before `fxprune.attach`.
"""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from fxprune.bank.exchange import Selection

PREFIX = "fxprune_slots/"


def key_of(optimizer: Optimizer, residents: Iterable[Tensor]) -> str:
    """Name the entry of one network; an optimiser may hold the parameters of several."""
    own = {id(tensor) for tensor in residents}
    held = (p for group in optimizer.param_groups for p in group["params"])
    first = next((number for number, p in enumerate(held) if id(p) in own), -1)
    return f"{PREFIX}{first}"


def with_order(state: dict[str, Any], key: str, at: Selection) -> dict[str, Any]:
    """Add the selection in whose order a saved state lies.

    Args:
        state: what `optimizer.state_dict()` returns; it is not changed.
        key: of the network, see `key_of`.
        at: the selection.
    """
    first, *others = state["param_groups"]
    numbers = [len(at.widths), *at.widths, *at.channels.tolist()]
    return {**state, "param_groups": [{**first, key: torch.tensor(numbers)}, *others]}


def without_order(state: dict[str, Any]) -> dict[str, Any]:
    """Return a saved state as torch's own optimisers have it; it is not changed."""
    groups = [
        {key: value for key, value in group.items() if not key.startswith(PREFIX)}
        for group in state["param_groups"]
    ]
    return {**state, "param_groups": groups}


def take_order(optimizer: Optimizer, key: str, device: torch.device) -> Selection | None:
    """Take the saved selection out of an optimiser into which a state was loaded, if it has one.

    Args:
        optimizer: the optimiser.
        key: of the network, see `key_of`.
        device: where the selection goes.
    """
    found: Tensor | None = None
    for group in optimizer.param_groups:
        found = group.pop(key, found)
    if found is None:
        return None
    count, *numbers = found.tolist()
    return Selection(torch.tensor(numbers[count:], device=device), tuple(numbers[:count]))
