"""The channel groups of every small net, member by member."""

import pytest

from fxprune import ChannelGraph, analyze
from fxprune.channels.graph import FIXED
from tests.support.nets import NETS, Net

every_net = pytest.mark.parametrize("net", NETS, ids=lambda net: net.name)


def members(graph: ChannelGraph) -> list[tuple[int, list[str]]]:
    return [(group.size, sorted(map(str, group.members))) for group in graph.groups]


def pins(graph: ChannelGraph, like: tuple[tuple[str, int], ...]) -> list[tuple[str, int]]:
    """The pins, each reason cut to the length of the one that is expected."""
    lengths = [len(reason) for reason, _ in like] + [1000] * len(graph.pinned)
    return [(p.reason[:length], p.channels) for p, length in zip(graph.pinned, lengths)]


@every_net
def test_groups(net: Net) -> None:
    graph = analyze(net.model(), net.inputs())
    assert members(graph) == [(group.size, sorted(group.members)) for group in net.groups]
    assert pins(graph, net.pinned) == list(net.pinned)
    assert bool(graph.mixing) == net.mixes


@pytest.mark.sampled(9)
@every_net
def test_nothing_is_pinned_without_a_word(net: Net) -> None:
    """Rows and columns of every parameter belong to a channel, or a pin names the parameter."""
    model = net.model()
    graph = analyze(model, net.inputs())
    told = {name for pin in graph.pinned for name in pin.parameters}
    silent = []
    for name, parameter in model.named_parameters():
        if name not in graph.shapes:  # nothing reads it
            continue
        for dim in range(min(parameter.dim(), 2)):
            axis = graph.axes.get(name, {}).get(dim)
            whole = axis is not None and bool((axis.channel != FIXED).all())
            if parameter.shape[dim] > 1 and not whole and name not in told:
                silent.append(f"{name}[{dim}]")
    assert silent == list(net.structural)
