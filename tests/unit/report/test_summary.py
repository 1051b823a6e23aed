"""What a report says of a network is what its cost model and its graph say."""

import dataclasses
import json

import pytest
import torch
from torch import nn

from fxprune import GatedModule, attach, instrument
from fxprune.report import page
from fxprune.report.summary import Subject, summarize
from tests.support.nets import BY_NAME

EPOCH = {"epoch": 1, "lr": 0.1, "train_loss": 1.23456789, "val_accuracy": 0.5, "widths": [4, 8]}


@pytest.fixture
def gated() -> GatedModule:
    net = BY_NAME["resnet_projection"]
    return net.gated(policy="cucb", budget="keep=0.5")


def summary(gated: GatedModule, **more):
    return summarize(Subject("a.fxprune", "cucb", "keep=0.5", **more), gated)


def test_the_layers_add_up_to_the_whole(gated: GatedModule) -> None:
    record = summary(gated)
    assert sum(layer["macs"][0] for layer in record["layers"]) == gated.cost.dense_macs
    widths = gated.best().widths
    assert sum(layer["macs"][1] for layer in record["layers"]) == gated.cost.macs(widths)
    assert record["macs"] == {"dense": gated.cost.dense_macs, "compact": gated.cost.macs(widths)}


def test_a_layer_has_the_widths_of_its_weight(gated: GatedModule) -> None:
    modules = dict(gated.eval().named_modules())
    for layer in summary(gated)["layers"]:
        if layer["width"][1] is not None:
            assert layer["width"][1] == modules[layer["name"]].weight.shape[0]


def test_a_transposed_convolution_counts_its_second_dimension() -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.ReLU(), nn.ConvTranspose2d(8, 12, 2), nn.ReLU(), nn.Conv2d(12, 4, 1)
    )
    gated = instrument(model, (torch.zeros(2, 3, 8, 8),), budget="keep=0.5", round_to=1)
    layers = {layer["name"]: layer["width"] for layer in summary(gated)["layers"]}
    assert layers == {"0": [8, 4], "2": [12, 6], "4": [4, 4]}


def test_scores_are_told_apart_by_what_is_kept() -> None:
    net = BY_NAME["resnet_projection"]
    gated = net.gated(policy="magnitude", budget="keep=0.5").train()
    attach(gated, torch.optim.SGD(gated.parameters(), lr=0.0))
    for group in summary(gated)["groups"]:
        kept, removed = group["saliency"]["kept"], group["saliency"]["removed"]
        assert removed is None or kept[2] >= removed[2]


def test_numbers_are_short_and_the_rest_is_as_it_was(gated: GatedModule) -> None:
    (epoch,) = summary(gated, history=[EPOCH])["epochs"]
    assert epoch["train_loss"] == 1.23457
    assert epoch["widths"] == [4, 8]
    assert epoch["churn"] is None


def test_a_budget_is_named_without_what_follows_from_it(gated: GatedModule) -> None:
    budget = "latency=0.5,widths=8/16,limits=4-16/8-8"
    assert summarize(Subject("a", "cucb", budget), gated)["budget"] == "latency=0.5"


def test_lines_of_libraries_are_shown_without_their_folders(gated: GatedModule) -> None:
    where = "add_1   /home/me/lib/site-packages/net/block.py:7   x + y"
    gated.channels = dataclasses.replace(gated.channels, mixing=(where,))
    assert summary(gated)["mixing"] == ["add_1   net/block.py:7   x + y"]


def test_a_title_may_look_like_a_place_of_the_page(gated: GatedModule) -> None:
    html = page.render([summarize(Subject("/*data*/", "cucb", "keep=0.5"), gated)])
    assert "<title>fxprune report · /*data*/</title>" in html


def test_summarizing_changes_nothing(gated: GatedModule) -> None:
    before = {name: tensor.clone() for name, tensor in gated.dense_state_dict().items()}
    executing, training = gated.executing.clone(), gated.training
    summary(gated)
    after = gated.dense_state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert torch.equal(executing, gated.executing)
    assert gated.training is training


def test_what_is_in_the_page_is_canonical_json(gated: GatedModule) -> None:
    record = summary(gated, history=[EPOCH])
    html = page.render([record])
    text = html.split('id="data">')[1].split("</script>")[0]
    assert json.loads(text) == json.loads(json.dumps([record]))
    assert text == json.dumps(json.loads(text), sort_keys=True, separators=(",", ":"))


def test_a_name_cannot_leave_its_element(gated: GatedModule) -> None:
    evil = "</script><script>alert(1)</script>"
    html = page.render([summarize(Subject(evil, "cucb", "keep=0.5"), gated)])
    assert "<script>alert" not in html
    assert "&lt;script&gt;alert" in html  # in the title of the page


def test_a_run_of_a_hundred_epochs_is_small(gated: GatedModule) -> None:
    html = page.render([summary(gated, history=[{**EPOCH, "epoch": n} for n in range(1, 101)])])
    assert len(html.encode()) < 300_000
