"""A gated network prints as what it is, in a few lines."""

import torch
import torchinfo
import torchview
from torch import nn
from torchvision import models

from fxprune import GatedModule, instrument
from fxprune.report.summary import Subject, summarize


def gated() -> GatedModule:
    example = (torch.zeros(2, 3, 32, 32),)
    return instrument(models.resnet18(), example, policy="cucb", budget="macs=0.5")


def test_it_says_how_it_chooses_and_what_that_costs() -> None:
    network = gated()
    lines = str(network).splitlines()
    assert lines[0] == "gated network, training, 0 steps"
    assert lines[1].split() == ["policy", "cucb"]
    assert lines[2].split()[:2] == ["budget", "macs=0.5"]
    macs = network.cost.macs(network.widths)
    assert lines[3].split()[:4] == ["macs", f"{macs:,}", "of", f"{network.cost.dense_macs:,}"]
    assert len(lines) <= 30
    network.eval().settle()
    assert str(network).startswith("gated network, evaluation, settled, 0 steps")


def test_limits_of_layers_stand_in_the_widths_alone() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 1), nn.ReLU(), nn.Conv2d(8, 2, 1))
    network = instrument(model, (torch.zeros(2, 3, 8, 8),), budget="keep=0.5", floor={"0": 0.5})
    assert "limits=" in str(network.settings.budget)
    assert "limits=" not in str(network)
    budget = str(network.settings.budget)
    assert summarize(Subject("a", "balance", budget), network)["budget"] == "keep=0.5"


def test_a_notebook_gets_a_table() -> None:
    network = gated()
    assert network._repr_html_().count("<tr>") == 1 + min(20, len(network.widths))


def test_torchinfo_counts_what_executes() -> None:
    network = gated().eval()
    found = torchinfo.summary(network, input_size=(1, 3, 32, 32), verbose=0)
    assert found.total_params == sum(parameter.numel() for parameter in network.parameters())


def test_torchview_draws_it_at_its_widths() -> None:
    network = instrument(
        nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3)),
        (torch.zeros(2, 3, 8, 8),),
        budget="keep=0.5",
    )
    for mode in (True, False):
        drawn = torchview.draw_graph(network.train(mode), input_size=(2, 3, 8, 8), device="cpu")
        source = drawn.visual_graph.source
        assert source.count("Conv2d") == 2
        assert "(2, 4, 6, 6)" in source  # four of the first layer's eight channels execute
