"""Averages kept as bare tensors cannot follow; what looks like one is warned of, once."""

import copy
import gc
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from fxprune import GatedModule, shrink
from fxprune.errors import FxpruneWarning
from fxprune.gated import bare_averages
from tests.support.nets import BY_NAME
from tests.support.training import build, train_step

NET = BY_NAME["resnet_projection"]
FOUND = "of the gated network's parameters"

pytestmark = pytest.mark.filterwarnings("error")  # other tests may keep copies of parameters


@pytest.fixture(autouse=True)
def fresh_search(monkeypatch: pytest.MonkeyPatch) -> None:
    """The rate of full searches is the process's, and so depends on the tests before."""
    monkeypatch.setattr(bare_averages, "SEARCH", bare_averages.Search())


class Kept:
    """The average of many recipes: by name, in an attribute."""

    def __init__(self, network: nn.Module) -> None:
        self.shadow = {n: p.detach().clone() for n, p in network.named_parameters()}


class Buffers(nn.Module):
    """The average of diffusion recipes."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        for name, parameter in network.named_parameters():
            self.register_buffer(name.replace(".", ""), parameter.detach().clone())


def attributes(network: nn.Module) -> None:
    for parameter in network.parameters():
        slow: Any = parameter
        slow.slow = parameter.detach().clone()


def averaged(average: nn.Module, network: nn.Module) -> nn.Module:
    with torch.no_grad():
        for mean, value in zip(average.parameters(), network.parameters(), strict=True):
            mean.lerp_(1.01 * value, 0.8)  # as after some steps
    return average


def trained(compact: nn.Module) -> list[Any]:
    optimizer = torch.optim.SGD(compact.parameters(), lr=1e-3)
    compact(*NET.inputs()).square().mean().backward()
    optimizer.step()
    optimizer.zero_grad()
    return [compact, optimizer]


AVERAGES: dict[str, Callable[[GatedModule], Any]] = {
    "list": lambda net: [p.detach().clone() for p in net.parameters()],
    "tuple": lambda net: tuple(p.data.clone() for p in net.parameters()),
    "arrays": lambda net: [p.detach().numpy().copy() for p in net.parameters()],
    "by name": Kept,
    "by parameter": lambda net: {p: p.detach().clone() for p in net.parameters()},
    "buffers": Buffers,
    "attributes": attributes,
    "a part of a longer list": lambda net: [
        torch.zeros(3),
        *(p.detach().clone() for p in net.parameters()),
    ],
    "weights alone": lambda net: [p.detach().clone() for p in net.parameters() if p.dim() > 1],
    "floats of a state dict": lambda net: {
        k: v.clone() for k, v in net.state_dict().items() if v.is_floating_point()
    },
    "frozen parameters": lambda net: nn.ParameterList(
        nn.Parameter(p.detach().clone(), requires_grad=False) for p in net.parameters()
    ),
    "parameters": lambda net: [nn.Parameter(p.detach().clone()) for p in net.parameters()],
    "a compact network": lambda net: averaged(shrink(net), net),
    "a copy of a compact network": lambda net: averaged(copy.deepcopy(shrink(net)), net),
    "a copy of the modules alone": lambda net: [
        copy.deepcopy(child).requires_grad_(False) for child in net.children()
    ],
    "in float32": lambda net: [p.detach().float() for p in net.parameters()],
    "flat": lambda net: nn.utils.parameters_to_vector(net.parameters()).detach(),
}


@pytest.mark.sampled(3)
@pytest.mark.parametrize(
    ("kind", "late"),
    [(kind, 0) for kind in AVERAGES]
    + [pytest.param(kind, 3, marks=pytest.mark.slow) for kind in AVERAGES],
)
def test_a_bare_average_is_warned_of_once(kind: str, late: int) -> None:
    gated, optimizer = build(NET, policy="random")
    for step in range(late):
        train_step(gated, optimizer, NET, step)
    average = AVERAGES[kind](gated)
    with pytest.warns(FxpruneWarning, match=FOUND):
        train_step(gated, optimizer, NET, late)
    train_step(gated, optimizer, NET, late + 1)  # a second warning would be an error
    del average


def test_what_is_none_is_not_warned_of() -> None:
    gated, optimizer = build(NET, policy="random")
    kept: list[Any] = [
        copy.deepcopy(gated),
        copy.deepcopy(gated.state_dict()),
        [*gated.parameters()],
        dict(gated.named_parameters()),
        [p.detach() for p in gated.parameters()],
        [p.detach().numpy() for p in gated.parameters()],
        [torch.randn_like(p) for p in gated.parameters()],
        gated.dense_state_dict(),
        copy.deepcopy(shrink(gated).state_dict()),
        copy.deepcopy(copy.deepcopy(gated)).requires_grad_(False),
        shrink(gated).requires_grad_(False),
        shrink(gated),
        trained(shrink(gated)),
        [*copy.deepcopy(gated).double().float().parameters()],
    ]
    for step in range(3):
        train_step(gated, optimizer, NET, step)
        kept.append([p.grad for p in gated.parameters()])
    assert len(kept) == 17


def test_full_searches_take_a_part_of_the_time() -> None:
    search = bare_averages.Search()
    many = len([*search.objects(1)])
    assert len([*search.objects(2)]) < many / 4, "of the young ones"
    assert [*search.objects(3)] == []


def test_compact_networks_that_were_written_to_are_searched_with_the_young() -> None:
    gated, _ = build(NET, policy="random")
    search = bare_averages.Search()
    search.objects(1)
    search.spent(1e6)  # no other full search for long
    average, as_made = averaged(shrink(gated), gated), shrink(gated)
    copied = averaged(copy.deepcopy(as_made), gated)
    gc.collect()  # all of them are old
    found = {id(item) for item in search.objects(2)}
    assert found >= {id(p) for network in (average, copied) for p in network.parameters()}
    assert not found & {id(p) for p in as_made.parameters()}


def test_what_an_evaluation_keeps_is_not_warned_of() -> None:
    gated, optimizer = build(NET, policy="random")
    average = copy.deepcopy(gated)
    for step in range(3):
        for network in (gated, average):
            with torch.no_grad():
                network.eval()(*NET.inputs())
        gated.train()
        train_step(gated, optimizer, NET, step)


def test_what_an_evaluation_of_another_network_keeps_is_not_warned_of() -> None:
    gated, optimizer = build(NET, policy="random")
    other, others = build(NET, policy="random")
    other.load_state_dict(gated.state_dict())
    with torch.no_grad():
        other.eval()(*NET.inputs())
    train_step(gated, optimizer, NET, 0)
    del others
