"""A channel graph is shown in a few lines, and in the languages of other tools."""

import networkx as nx
import pydot
import pytest
import torch
from matplotlib.figure import Figure
from torch import Tensor, nn
from torchvision import models

from fxprune import ChannelGraph, analyze

IMAGE = (torch.zeros(1, 3, 8, 8),)


@pytest.fixture(scope="module")
def graph() -> ChannelGraph:
    return analyze(models.mobilenet_v3_large(), (torch.zeros(1, 3, 64, 64),))


def test_the_table_has_at_most_thirty_lines_and_the_totals(graph: ChannelGraph) -> None:
    lines = repr(graph).splitlines()
    assert len(lines) <= 30
    assert lines[0].startswith(f"{len(graph.groups)} channel groups, {graph.layout.total:,} ")
    assert any(line.startswith(f"… and {len(graph.groups) - 20} smaller groups") for line in lines)


def test_long_names_are_listed_singly() -> None:
    part = "a_part_with_a_name_of_some_length"
    layers = {f"{part}_{i}": nn.Conv2d(4 if i else 3, 4, 1) for i in range(5)}

    class Added(nn.ModuleDict):
        def forward(self, x: Tensor) -> Tensor:
            first, *rest = self.values()
            y: Tensor = first(x)
            for layer in rest:
                y = y + layer(y)
            return y

    row = repr(analyze(nn.Sequential(Added(layers), nn.Conv2d(4, 2, 1)), IMAGE)).splitlines()[2]
    assert f"0.{part}_0 and 4 more" in row
    assert f"0.{part}_1 and 4 more" in row


def test_the_largest_groups_come_first(graph: ChannelGraph) -> None:
    largest = max(graph.groups, key=lambda group: group.macs)
    assert repr(graph).splitlines()[2].startswith(largest.name)


def test_a_notebook_gets_the_same_table(graph: ChannelGraph) -> None:
    page = graph._repr_html_()
    assert page.count("<tr>") == 1 + 20
    assert repr(graph).splitlines()[0] in page


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of pydot, about pyparsing
def test_graphviz_reads_it(graph: ChannelGraph) -> None:
    (dot,) = pydot.graph_from_dot_data(graph.to_dot())
    names = {node.get_name().strip('"') for node in dot.get_nodes()}
    assert {f"group {group.index}" for group in graph.groups} <= names
    made = sum(len({m.parameter.rpartition(".")[0] for m in g.producers}) for g in graph.groups)
    used = sum(len({m.parameter.rpartition(".")[0] for m in g.consumers}) for g in graph.groups)
    assert len(dot.get_edges()) == made + used


def test_networkx_hands_it_to_pydot(graph: ChannelGraph) -> None:
    dot = nx.nx_pydot.to_pydot(graph.to_networkx())
    assert len(dot.get_edges()) == sum(len(group.members) for group in graph.groups)


def test_matplotlib_draws_it(graph: ChannelGraph) -> None:
    figure = graph.plot()
    assert isinstance(figure, Figure)
    labels = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert "features.0.0" in labels
