"""Saved optimiser states say of which channels their slots are.

`optimizer.state_dict()` holds momentum in slot order. Which channel a slot was of is known only at
that moment: the network may execute others when the state is loaded, or be a deep copy that has
followed its source since. So the selection is saved with it, as one more entry of the state of the
network's first parameter that has one. Every saver and loader keeps it there, with whatever
groups the state is loaded, and even before `fxprune.attach`. It stays until the state is put in
order, so a copy of the optimiser has it too.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from fxprune.bank.exchange import Selection

KEY = "fxprune_slots"


def with_order(
    state: dict[str, Any], optimizer: Optimizer, residents: Iterable[Tensor], at: Selection
) -> dict[str, Any]:
    """Add the selection in whose order a saved state lies.

    Args:
        state: what `optimizer.state_dict()` returns; it is not changed.
        optimizer: the optimiser, which may hold the parameters of several networks.
        residents: the gated tensors of one.
        at: the selection.
    """
    own = {id(tensor) for tensor in residents}
    held = (p for group in optimizer.param_groups for p in group["params"])
    slots = state["state"]
    first = next((n for n, p in enumerate(held) if id(p) in own and slots.get(n)), None)
    if first is None:
        return state
    numbers = torch.tensor([len(at.widths), *at.widths, *at.channels.tolist()], dtype=torch.int32)
    # bytes are exact also in the parameter's dtype, to which loading casts; no state has 6 dims
    order = numbers.view(torch.uint8)[(None,) * 5]
    return {**state, "state": {**slots, first: {**slots[first], KEY: order}}}


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
    return Selection(torch.tensor(numbers[count:]), tuple(numbers[:count]))
