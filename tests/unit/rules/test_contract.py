"""What holds of every rule: its examples have the expected groups, and the law holds on them."""

from collections.abc import Mapping
from typing import Any

import pytest
import torch

from fxprune import analyze, instrument, shrink
from fxprune.analysis import label_mode
from fxprune.registry import collect
from fxprune.rules.base import Rule
from tests.support.law import at_random, choose, gap, zeroed
from tests.support.rule_examples import EXAMPLES, Example, inputs
from tests.support.topologies.base import INPUT, OUTPUT

RULES: Mapping[Any, type[Rule]] = collect("fxprune.rules", Rule)
TOLERANCE = 1e-12

every_example = pytest.mark.parametrize(
    "example", EXAMPLES, ids=lambda example: f"{example.rule.__name__}: {example.name}"
)


@pytest.mark.parametrize("rule", dict.fromkeys(RULES.values()), ids=lambda rule: rule.__name__)
def test_has_an_example(rule: type[Rule]) -> None:
    assert [example.name for example in EXAMPLES if example.rule is rule], (
        f"{rule.__module__}.{rule.__name__} has no example in tests/support/rule_examples"
    )


@every_example
def test_groups(example: Example, monkeypatch: pytest.MonkeyPatch) -> None:
    """The rule is asked, and the groups and pins are the expected ones."""
    met, known = set(), label_mode.rule_of

    def noted(func: Any) -> Rule | None:
        rule = known(func)
        met.add(type(rule))
        return rule

    monkeypatch.setattr(label_mode, "rule_of", noted)
    graph = analyze(example.model(), inputs())
    assert example.rule in met
    assert tuple(group.size for group in graph.groups) == example.groups
    reasons = [pin.reason for pin in graph.pinned if pin.reason not in (INPUT, OUTPUT)]
    assert len(reasons) == len(example.pinned), reasons
    assert [r[: len(p)] for r, p in zip(reasons, example.pinned)] == list(example.pinned)
    assert bool(graph.mixing) == example.mixes
    assert all("rule_examples" in pin.where for pin in graph.pinned if pin.reason != OUTPUT)


@pytest.mark.sampled(95)
@every_example
@torch.no_grad()
def test_law(example: Example) -> None:
    model = example.model()
    gated = instrument(model, inputs())
    ones = choose(gated.channels, (1,) * len(example.groups))
    for chosen in (ones, at_random(gated.channels, 0), at_random(gated.channels, 1)):
        gated.settle(chosen)
        wanted = gated(*inputs(3))
        assert gap(wanted, shrink(gated)(*inputs(3))) <= TOLERANCE
        if not example.mixes:
            assert gap(zeroed(model, gated, chosen)(*inputs(3)), wanted) <= TOLERANCE
