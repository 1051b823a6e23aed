"""The one law: for any selection the gated, the compact and the dense network agree.

The dense network's side of it is built here from the channel graph's members alone: every removed
channel's column is zero in each weight that consumes it.
"""

import copy
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from fxprune import ChannelGraph, GatedModule
from fxprune.bank.exchange import Selection


def choose(graph: ChannelGraph, widths: tuple[int, ...], seed: int = 0) -> Selection:
    """A random selection of these widths, in random order inside each group."""
    generator = torch.Generator().manual_seed(seed)
    layout = graph.layout
    lines = [
        offset + torch.randperm(size, generator=generator)[:width]
        for offset, size, width in zip(layout.offsets, layout.sizes, widths, strict=True)
    ]
    return Selection(torch.cat(lines), widths)


def at_random(graph: ChannelGraph, seed: int) -> Selection:
    """A random selection of random widths."""
    generator = torch.Generator().manual_seed(seed)
    widths = tuple(
        int(torch.randint(1, size + 1, (), generator=generator)) for size in graph.layout.sizes
    )
    return choose(graph, widths, seed)


def extremes(graph: ChannelGraph) -> Iterator[Selection]:
    """All channels, in another order; one of each group; one of a single group, all of the rest."""
    sizes = graph.layout.sizes
    yield choose(graph, sizes, seed=1)
    yield choose(graph, (1,) * len(sizes), seed=2)
    for group in range(len(sizes)):
        yield choose(graph, (*sizes[:group], 1, *sizes[group + 1 :]), seed=3 + group)


def zeroed(model: nn.Module, gated: GatedModule, chosen: Selection) -> nn.Module:
    """A copy of the dense network, with the gated one's tensors and the removed columns zero."""
    clone = copy.deepcopy(model)
    clone.load_state_dict(gated.dense_state_dict(), strict=True)
    zero_columns(clone, gated.channels, chosen)
    return clone


def zero_columns(dense: nn.Module, graph: ChannelGraph, chosen: Selection) -> None:
    """Zeroes, in place, what consumes the channels that are not chosen."""
    parameters = dict([*dense.named_parameters(), *dense.named_buffers()])
    kept = torch.zeros(graph.layout.total, dtype=torch.bool)
    kept[chosen.channels] = True
    for group, offset in zip(graph.groups, graph.layout.offsets, strict=True):
        gone = ~kept[offset : offset + group.size]
        for member in group.members:
            if member.role.consumes:
                columns = member.positions[gone].flatten()
                parameters[member.parameter].data.index_fill_(member.dim, columns, 0.0)


def gap(wanted: Any, found: Any) -> float:
    """The largest difference of any output tensor, as a share of that tensor's largest value."""
    ours, ours_spec = pytree.tree_flatten(wanted)
    theirs, theirs_spec = pytree.tree_flatten(found)
    assert ours_spec == theirs_spec
    return max(_gap(a, b) for a, b in zip(ours, theirs, strict=True))


def _gap(wanted: Tensor, found: Tensor) -> float:
    assert wanted.shape == found.shape
    assert torch.isfinite(wanted).all()
    return float((wanted - found).abs().max() / wanted.abs().max().clamp_min(1e-30))
