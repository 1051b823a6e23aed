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
    for seed in range(3, 6):
        chosen = at_random(gated.channels, seed)
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


WRITES: dict[str, Callable[[Tensor, Tensor], object]] = {
    "pointwise": lambda x, into: torch.sin(x, out=into),
    "in order": lambda x, into: torch.cumsum(x, 3, out=into),
    "joined": lambda x, into: torch.cat([x[:, :4], x[:, 4:]], 1, out=into),
    "a part": lambda x, into: torch.mean(x, 3, keepdim=True, out=into[..., :1]),
    "two results": lambda x, into: torch.aminmax(x, dim=3, out=(into[..., 0], into[..., 1])),
    "every other channel": lambda x, into: torch.mul(x[:, ::2], 2, out=into[:, ::2]),
}


@pytest.mark.filterwarnings("ignore:An output with one or more elements was resized")
@pytest.mark.parametrize("write", WRITES.values(), ids=WRITES)
@pytest.mark.parametrize("fixed", [False, True], ids=["of a layer", "of fixed size"])
def test_what_is_written_shows_in_all_that_shares_the_memory(
    write: Callable[[Tensor, Tensor], object], fixed: bool
) -> None:
    def written(x: Tensor, layer: nn.Module) -> Tensor:
        into = torch.zeros(len(x), 8, 6, 6, dtype=x.dtype) if fixed else layer(x)
        view = into.flatten(2)
        write(x, into)
        return into if fixed else view

    hold_to_the_law(Around(written, 8, lambda: (nn.Conv2d(8, 8, 1),)).double().eval())


class InBlocks(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.block = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 4, 3))

    def forward(self, x: Tensor) -> Tensor:
        return self.block(x).relu()


def test_a_layer_in_a_container_is_of_the_line_that_calls_the_container() -> None:
    graph = analyze(InBlocks().double(), inputs())
    pin = next(pin for pin in graph.pinned if "fixed number" in pin.reason)
    assert pin.where.startswith(f"{__file__}:")
    assert pin.where.endswith("return self.block(x).relu()")
