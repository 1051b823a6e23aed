"""Ops without a rule: what they touch stays whole, and the reason names the user's line."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from fxprune import analyze, instrument, shrink
from tests.support.law import at_random, gap, zeroed
from tests.support.rule_examples import Around, inputs

OPS: dict[str, tuple[Callable[[Tensor], Tensor], str]] = {
    "logcumsumexp": (lambda x: x.logcumsumexp(3), "x.logcumsumexp(3)"),
    "linalg_qr": (lambda x: torch.linalg.qr(x).Q, "torch.linalg.qr(x).Q"),
}


@pytest.mark.parametrize(("name", "op", "code"), [(n, *op) for n, op in OPS.items()], ids=OPS)
def test_pins_and_says_so(name: str, op: Callable[[Tensor], Tensor], code: str) -> None:
    torch.manual_seed(0)
    model = Around(op, 8, tuple).double().eval()
    graph = analyze(model, inputs())
    pin = next(pin for pin in graph.pinned if "rule" in pin.reason)
    assert pin.reason == f"there is no rule for aten.{name}"
    assert pin.channels == 8
    assert set(pin.parameters) == {"stem.weight", "stem.bias"}
    assert pin.macs == 8 * 3 * 9 * 36
    assert pin.where.startswith(f"{__file__}:")
    assert code in pin.where
    assert f"pinned  8 channels  {pin.reason}  ({pin.node})\n    at {pin.where}" in str(graph)

    assert [group.name for group in graph.groups] == ["tail"]
    hold_to_the_law(model)


def hold_to_the_law(model: nn.Module) -> None:
    gated = instrument(model, inputs())
    chosen = at_random(gated.channels, 3)
    gated.settle(chosen)
    with torch.no_grad():
        wanted = gated(*inputs())
        assert gap(wanted, shrink(gated)(*inputs())) <= 1e-12
        assert gap(zeroed(model, gated, chosen)(*inputs()), wanted) <= 1e-12


def test_what_reshapes_in_place_does_so_each_time() -> None:
    def squeezed(x: Tensor) -> Tensor:
        return x.mean(3, keepdim=True).squeeze_(3)

    model = Around(lambda x: (squeezed(x) + squeezed(x)).unsqueeze(3), 8, tuple).double().eval()
    assert [group.name for group in analyze(model, inputs()).groups] == ["stem", "tail"]
    hold_to_the_law(model)
