"""Where a removed channel's zeros do not arrive at the layer that consumes it.

Removing a channel equals zeroing its slices in the parameters that consume it, as long as a weight
computed from these parameters is zero there as well. `w.tanh()` keeps zeros; `w.exp()`, `w + 0.1`
and a filter that is expanded over its inputs do not, and a norm of nothing but zeros is no number.

No list of ops says so: the calls that compute weights are run once more, on random numbers, with
one channel of each group zeroed. `exp` turns its zeros into ones, and its layer is found.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from fxprune.analysis.context import Computed, Notebook, Use
from fxprune.channels.graph import ChannelGroup

Gone = Tensor
"""Which channels are zeroed, with a last entry for `FIXED`: bool [N + 1]."""


def without_zeros(
    notebook: Notebook,
    groups: tuple[ChannelGroup, ...],
    channels: Callable[[Tensor], Tensor],
    tensors: Mapping[str, Tensor],
    settable: frozenset[str],
) -> Iterator[Any]:
    """Yield the nodes whose weight is not zero where its channel is removed.

    Args:
        notebook: what the rules said of the dense network.
        groups: the channel groups, with the roles of their members.
        channels: gives the channel of each label of a vector: int64 [labels].
        tensors: the network's parameters and buffers by name.
        settable: the names of those that a state dict of the user's model holds.
    """
    uses = [step for step in notebook.tape if isinstance(step, Use)]
    uses = [use for use in uses if notebook.names.get(id(use.weight)) not in settable]
    if not uses:
        return
    size = sum(group.size for group in groups)
    gone = torch.zeros(size + 1, dtype=torch.bool, device="cpu")
    ends = torch.tensor([group.size for group in groups], device="cpu").cumsum(0)
    gone[[int(end) - 1 for end, group in zip(ends, groups) if group.size > 1]] = True
    doubtful = {id(use) for use in uses}
    values = _drawn(notebook, groups, gone, tensors, settable)
    for step in notebook.tape:
        if isinstance(step, Computed):
            _compute(step, values)
        elif id(step) in doubtful and not _is_zero(step, values, channels, gone):
            yield step.node


@torch.no_grad()
def _drawn(
    notebook: Notebook,
    groups: tuple[ChannelGroup, ...],
    gone: Gone,
    tensors: Mapping[str, Tensor],
    settable: frozenset[str],
) -> dict[int, Tensor]:
    """Draw a value for each parameter and buffer, with the removed channels' slices at zero."""
    generator = torch.Generator().manual_seed(0)
    drawn = {}
    for name, tensor in tensors.items():
        if tensor.is_floating_point():
            drawn[name] = (
                torch.rand(tensor.shape, generator=generator, dtype=tensor.dtype, device="cpu")
                + 0.5
            )
        else:
            drawn[name] = tensor.detach().cpu().clone()  # a step may write there: `steps.add_(1)`
    begin = 0
    for group in groups:
        removed = gone[begin : begin + group.size]
        begin += group.size
        for member in group.consumers:
            if member.parameter in settable:
                at = member.positions[removed].flatten()
                drawn[member.parameter] = drawn[member.parameter].index_fill(member.dim, at, 0)
    return {key: drawn[name] for key, name in notebook.names.items() if name in drawn}


@torch.no_grad()
def _compute(step: Computed, values: dict[int, Tensor]) -> None:
    """Run a call on the drawn values; what it returns is left out where it does not run."""

    def value(given: Any) -> Any:
        return values[id(given)] if isinstance(given, Tensor) else given

    kwargs = {name: v for name, v in step.kwargs.items() if name not in ("device", "layout")}
    try:
        args, kwargs = pytree.tree_map(value, (step.args, kwargs))
        with torch.random.fork_rng(devices=[]):  # dropout of a weight draws
            found = step.op(*args, **kwargs)
    except (KeyError, RuntimeError, TypeError, ValueError, IndexError):
        return
    pairs = zip(pytree.tree_leaves(step.out), pytree.tree_leaves(found), strict=True)
    values.update((id(out), new) for out, new in pairs if isinstance(out, Tensor))


def _is_zero(
    use: Use, values: dict[int, Tensor], channels: Callable[[Tensor], Tensor], gone: Gone
) -> bool:
    """Tell whether a consumed weight is finite and zero in the removed channels' slices."""
    removed = gone[channels(use.labels)]
    if not removed.any():
        return True
    weight = values.get(id(use.weight))
    if weight is None or not weight.isfinite().all():
        return False
    return not weight.index_select(use.dim, removed.nonzero().flatten()).any()
