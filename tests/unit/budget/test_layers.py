"""Patterns of layers become limits on the widths of groups."""

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fxprune
from fxprune.budget.budget import Budget
from fxprune.budget.layers import Layers, limit
from fxprune.budget.widths import uniform_widths
from fxprune.channels.cost import CostModel
from fxprune.errors import BudgetError


class Residual(nn.Module):
    """Two groups of 32 channels, one of which spans `stem` and `block.conv2`, and one of 64."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 32, 3, padding=1)
        self.block = nn.Sequential()
        self.block.conv1 = nn.Conv2d(32, 32, 3, padding=1)
        self.block.conv2 = nn.Conv2d(32, 32, 3, padding=1)
        self.top = nn.Conv2d(32, 64, 1)
        self.act = nn.ReLU()
        self.head = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.stem(x))
        x = x + self.block.conv2(self.act(self.block.conv1(x)))
        out: Tensor = self.head(self.act(self.top(x)).mean((2, 3)))
        return out


INPUTS = (torch.zeros(2, 3, 8, 8),)
STEM, INNER, TOP = range(3)


@pytest.fixture(scope="module")
def graph() -> fxprune.ChannelGraph:
    return fxprune.analyze(Residual(), INPUTS)


def limited(graph: fxprune.ChannelGraph, budget: str | None = None, **words: Any) -> Any:
    names = [name for name, _ in Residual().named_modules()]
    given = None if budget is None else Budget.parse(budget)
    return limit(Layers.of(**words), given, Budget.parse("keep=0.5"), graph, names)


def widths(graph: fxprune.ChannelGraph, budget: str | None = None, **words: Any) -> Any:
    found = limited(graph, budget, **words).budget
    cost = CostModel(graph.macs_terms, graph.params_terms, graph.layout.sizes)
    return uniform_widths(found, graph.layout, cost)


def test_the_groups_are_those_that_the_tests_mean(graph: fxprune.ChannelGraph) -> None:
    assert [group.name for group in graph.groups] == ["stem", "block.conv1", "top"]
    assert graph.layout.sizes == (32, 32, 64)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ({}, (16, 16, 32)),
        ({"exclude": "stem"}, (32, 16, 32)),
        ({"exclude": ["block.conv1", "top.weight"]}, (16, 32, 64)),
        ({"exclude": "block"}, (32, 32, 32)),
        ({"exclude": "head"}, (16, 16, 32)),
        ({"exclude_inputs": "head"}, (16, 16, 64)),
        ({"exclude_inputs": "top"}, (32, 16, 32)),
        ({"keep": {"top": 0.25}}, (32, 32, 16)),
        ({"keep": {"block.*": 0.25, "*": 0.75}}, (24, 8, 48)),
        ({"keep": {"*": 0.75, "block.conv1": 0.25}}, (24, 24, 48)),
        ({"keep": {"top": 0.01}}, (32, 32, 8)),
        ({"keep": {"*": 0.25}, "exclude": "top"}, (8, 8, 64)),
        ({"floor": {"top": 0.8}}, (16, 16, 56)),
        ({"ceiling": {"top": 0.3, "*": 0.25}}, (8, 8, 16)),
        ({"budget": "keep=0.25", "keep": {"top": 0.5}}, (8, 8, 32)),
    ],
    ids=str,
)
def test_what_patterns_come_to(
    words: dict[str, Any], expected: tuple[int, ...], graph: fxprune.ChannelGraph
) -> None:
    assert widths(graph, **words) == expected


@pytest.mark.parametrize("budget", ["macs=0.5", "params=0.5", "macs=0.6,params=0.4"])
@pytest.mark.parametrize("policy", ["fixed", "utility{reallocate=2,warmup=0}", "magnitude"])
def test_the_budget_is_kept_beside_the_limits(budget: str, policy: str) -> None:
    gated = fxprune.instrument(
        Residual(), INPUTS, policy, budget, exclude="top", ceiling={"block.conv1": 0.5}
    )
    stem, inner, top = gated.best().widths
    assert top == 64
    assert inner <= 16
    assert gated.settings.budget.fits((stem, inner, top), gated.cost)


def test_limits_hold_in_training_and_after_loading(tmp_path: Any) -> None:
    torch.manual_seed(0)
    model = Residual()
    gated = fxprune.instrument(
        model,
        INPUTS,
        "utility{reallocate=1,warmup=0}",
        keep={"top": 0.5},
        floor={"block.*": 0.5, "stem": 0.5},
    )
    optimizer = torch.optim.SGD(gated.parameters(), lr=0.1)
    fxprune.attach(gated, optimizer)
    for _ in range(4):
        gated(torch.randn(4, 3, 8, 8)).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        assert gated.widths[TOP] == 32
        assert gated.widths[STEM] >= 16
    fxprune.save(gated, tmp_path / "gated.safetensors")
    again = fxprune.load(tmp_path / "gated.safetensors", model)
    assert again.settings.budget == gated.settings.budget
    assert again.widths == gated.widths


def test_a_schedule_starts_from_all_channels(graph: fxprune.ChannelGraph) -> None:
    budget = limited(graph, keep={"top": 0.25}).budget
    cost = CostModel(graph.macs_terms, graph.params_terms, graph.layout.sizes)
    whole = budget.at(1.0, graph.layout.sizes)
    assert uniform_widths(whole, graph.layout, cost) == graph.layout.sizes
    half = budget.at((1 + budget.value) / 2, graph.layout.sizes)
    assert 16 < uniform_widths(half, graph.layout, cost)[TOP] < 64


@pytest.mark.parametrize(
    ("words", "note"),
    [
        ({"exclude": "stem"}, "exclude 'stem' keeps the channels of block.conv2 too: they are"),
        (
            {"keep": {"stem": 0.25, "block.conv2": 0.5}},
            "keep of the group stem is 0.5, the largest of its layers': "
            "stem 0.25 ('stem'), block.conv2 0.5 ('block.conv2')",
        ),
        ({"keep": {"*": 0.5, "top": 0.25}}, "keep 'top' decides nothing: other patterns decide"),
        (
            {"exclude_inputs": "top"},
            "exclude_inputs 'top' keeps the channels of stem, block.conv2: "
            "they are those of one group, stem",
        ),
        ({"floor": {"stem": 0.25}}, "floor 'stem' decides on the channels of block.conv2 too"),
    ],
    ids=str,
)
def test_where_a_pattern_reaches_is_said(
    words: dict[str, Any], note: str, graph: fxprune.ChannelGraph
) -> None:
    assert any(note in found for found in limited(graph, **words).notes)
    with pytest.warns(UserWarning, match=re.escape(note)):
        fxprune.instrument(Residual(), INPUTS, **words)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"exclude": "blck.conv1"}, "exclude 'blck.conv1' matches no layer*did you mean block.con"),
        ({"exclude_inputs": ["nothing.*"]}, "exclude_inputs 'nothing.*' matches no layer"),
        (
            {"keep": {"head": 0.5}},
            "keep 'head' matches no channels*the model returns these channels",
        ),
        ({"floor": {"act": 0.5}}, "floor 'act' matches no channels*make none of their own"),
        ({"keep": {"top": 0.0}}, "keep of 'top' cannot be 0.0"),
        ({"ceiling": {"top": 1.5}}, "ceiling of 'top' cannot be 1.5"),
        ({"floor": {"top": 0.5}, "ceiling": {"*": 0.25}}, "top cannot keep at least 0.5 and at mo"),
    ],
    ids=str,
)
def test_what_is_refused(words: dict[str, Any], message: str) -> None:
    pattern = ".*".join(map(re.escape, message.split("*")))
    if "'nothing." in message:
        pattern = re.escape(message)
    with pytest.raises(BudgetError, match=f"(?s){pattern}"):
        fxprune.instrument(Residual(), INPUTS, **words)


def test_a_budget_that_the_limits_exceed() -> None:
    with pytest.raises(BudgetError, match=r"the least possible is macs=1: .* limits given for lay"):
        fxprune.instrument(Residual(), INPUTS, budget="macs=0.5", exclude="*")


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: Layers.parse([], [], ["top"], [], []), "cannot read keep 'top'"),
        (lambda: Layers.parse([], [], [], ["=0.5"], []), "cannot read floor '=0.5'"),
        (lambda: Layers.parse(["top", ""], [], [], [], []), "the pattern '' is empty"),
        (lambda: Layers.parse([], [], ["a=.5,a=.3"], [], []), "keep 'a' is given twice"),
        (lambda: Budget.parse("macs=0.5,macs=0.3"), "cannot hold together"),
        (lambda: Budget.parse("macs=0.5,latency=0.3"), "latency stands alone"),
        (lambda: Budget.parse("macs=0.5,limits=4"), "cannot read the budget"),
        (lambda: Budget.parse("floor=0.5"), "cannot read the budget"),
    ],
)
def test_texts_that_cannot_be_read(call: Callable[[], Any], message: str) -> None:
    with pytest.raises(BudgetError, match=message):
        call()


@pytest.mark.parametrize("text", ["macs=0.5,params=0.3", "keep=0.5,floor=0.1,limits=4-16/8-8"])
def test_budgets_read_what_they_write(text: str) -> None:
    assert str(Budget.parse(text)) == text


def test_limits_of_another_network() -> None:
    with pytest.raises(BudgetError, match="does not fit the channel groups"):
        fxprune.instrument(Residual(), INPUTS, budget="keep=0.5,limits=4-16")


def test_a_compact_network_is_pruned_again() -> None:
    torch.manual_seed(0)
    first = fxprune.instrument(Residual(), INPUTS, "magnitude", "keep=0.5").eval()
    second = fxprune.instrument(fxprune.shrink(first), INPUTS, "magnitude", "keep=0.5").eval()
    assert second.best().widths == (8, 8, 16)
    x = torch.randn(3, 3, 8, 8)
    with torch.no_grad():
        wanted = fxprune.zeroed(second, fxprune.shrink(first))(x)
        torch.testing.assert_close(fxprune.shrink(second)(x), wanted, rtol=1e-5, atol=1e-5)
