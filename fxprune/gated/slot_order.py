"""Saved optimiser states say of which channels their slots are.

`optimizer.state_dict()` holds momentum in slot order. Which channel a slot was of is known only at
that moment: the network may execute others when the state is loaded, or be a deep copy that has
followed its source since. So the selection is saved with it, as one more entry of the state of the
network's first parameter that has one. Every saver and loader keeps it there, with whatever
groups the state is loaded, and even before `fxprune.attach`. A copy of an optimiser, or a pickle of
it, has the entry too. It stays until the state is put in order.
"""

import copy
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from fxprune.bank.exchange import Selection

KEY = "fxprune_slots"


def with_order(state: dict[str, Any], keys: Iterable[Any], entry: Tensor) -> dict[str, Any]:
    """Add the selection in whose order a saved or copied state lies.

    Args:
        state: what `optimizer.state_dict()` or `__getstate__()` returns; it is not changed.
        keys: under which its "state" may have a network's parameters: their numbers, or they.
        entry: the selection, as `entry_of` returns it.
    """
    slots = copy.copy(state["state"])  # it may be a defaultdict, and stay one
    slots.update({key: copy.copy(each) for key, each in slots.items()})  # the tensors of now
    first = next((key for key in keys if slots.get(key)), None)
    if first is None:
        return state
    slots[first] = {**slots[first], KEY: entry}
    return {**state, "state": slots}


def entry_of(at: Selection) -> Tensor:
    """Return a selection as bytes, uint8 [1, 1, 1, 1, 1, bytes].

    They are exact also in the parameter's dtype, to which loading casts; no state has 6 dims.
    """
    numbers = torch.tensor(
        [len(at.widths), *at.widths, *at.channels.tolist()], dtype=torch.int32, device="cpu"
    )
    return numbers.view(torch.uint8)[(None,) * 5]


def without_order(state: dict[str, Any]) -> dict[str, Any]:
    """Return a saved state as torch's own optimisers have it; it is not changed."""
    slots = {
        number: {key: value for key, value in each.items() if key != KEY}
        for number, each in state["state"].items()
    }
    return {**state, "state": slots}


def order_of(states: Iterable[Mapping[str, Any]]) -> Selection | None:
    """Return the selection in whose order a network's loaded states lie, if it was saved."""
    found = next((state[KEY] for state in states if KEY in state), None)
    if found is None:
        return None
    count, *numbers = found.flatten().cpu().to(torch.uint8).view(torch.int32).tolist()
    return Selection(torch.tensor(numbers[count:], device="cpu"), tuple(numbers[:count]))
