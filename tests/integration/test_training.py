"""Training steps: what executes learns as it would in the dense network, what rests stands still.

Tolerances are those of sums in another order, in float64, over the steps of a test.
"""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from fxprune import GatedModule, attach, instrument
from fxprune.bank.exchange import Selection
from tests.support.law import at_random
from tests.support.nets import BY_NAME, Net
from tests.support.oracle import Make, Oracle, loss_of

OPTIMIZERS: dict[str, Make] = {
    "sgd": lambda p: torch.optim.SGD(p, 0.05),
    "momentum": lambda p: torch.optim.SGD(p, 0.05, momentum=0.9, weight_decay=0.01),
    "nesterov-foreach": lambda p: torch.optim.SGD(
        p, 0.05, momentum=0.9, nesterov=True, foreach=True
    ),
    "adam-amsgrad": lambda p: torch.optim.Adam(p, 0.01, amsgrad=True),
    "adamw-foreach": lambda p: torch.optim.AdamW(p, 0.01, weight_decay=0.1, foreach=True),
    "adamw-fused": lambda p: torch.optim.AdamW(p, 0.01, weight_decay=0.1, fused=True),
    "rmsprop": lambda p: torch.optim.RMSprop(p, 0.01, momentum=0.5, centered=True),
    "adagrad": lambda p: torch.optim.Adagrad(p, 0.01),
}

every_optimizer = pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS)


def nets(*names: str) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("net", [BY_NAME[name] for name in names], ids=names)


def without_dropout(model: nn.Module) -> nn.Module:
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    return model


def follow(
    net: Net,
    make: Make,
    steps: int,
    between: Callable[[GatedModule, int], None] = lambda *_: None,
    **settings: Any,
) -> list[Selection]:
    """Trains a gated network and the oracle side by side; returns what executed."""
    model = without_dropout(net.model()).train()
    gated = instrument(model, net.inputs(), **settings)
    optimizer = make(gated.parameters())
    attach(gated, optimizer)
    oracle = Oracle(model, gated.channels, make)
    executed = []
    for step in range(steps):
        between(gated, step)
        chosen = Selection(gated.executing.clone(), gated.widths)
        executed.append(chosen)
        optimizer.zero_grad()
        loss_of(gated, net, step).backward()
        optimizer.step()
        oracle.step(net, step, chosen)
        wanted, found = oracle.model.state_dict(), gated.dense_state_dict()
        for name, tensor in wanted.items():
            torch.testing.assert_close(
                found[name], tensor, rtol=1e-8, atol=1e-10, msg=lambda m, n=name: f"{n}: {m}"
            )
    return executed


@pytest.mark.sampled(3)
@every_optimizer
def test_optimizers(make: Make) -> None:
    net = BY_NAME["resnet_projection"]
    executed = follow(net, make, 6, policy="random")
    assert len({tuple(chosen.channels.tolist()) for chosen in executed}) == 6


@pytest.mark.sampled(5)
@nets(
    "vgg_bn",
    "resnet_option_a",
    "densenet",
    "mobilenet",
    "unet",
    "raw",
    "shared",
    "tied",
    "prelu",
    "grouped_few",
    "grouped_many",
    "shuffle_unit",
    "shuffle_split",
    "transposed_depthwise",
    "chunk_gate",
    "split",
    "padded",
    "squeeze_excite",
    "stacked",
    "auxiliary_head",
    "opaque",
    "one_and_three",
)
def test_topologies(net: Net) -> None:
    # not Adam: it would blow up the rounding of gradients that are zero (a bias before a norm)
    follow(net, OPTIMIZERS["momentum"], 4, policy="random")


@pytest.mark.sampled(2)
@nets("resnet_option_a", "densenet", "mobilenet")
@pytest.mark.parametrize("name", ["momentum", "adam-amsgrad"])
def test_widths_that_change_in_every_step(net: Net, name: str) -> None:
    def between(gated: GatedModule, step: int) -> None:
        gated.select(at_random(gated.channels, step))

    executed = follow(net, OPTIMIZERS[name], 6, between, policy="fixed")
    assert len({chosen.widths for chosen in executed}) >= 5


@pytest.mark.sampled(1)
@nets("resnet_projection", "densenet")
def test_global_allocation(net: Net) -> None:
    sizes = net.gated().channels.layout.sizes
    executed = follow(
        net,
        OPTIMIZERS["momentum"],
        9,
        policy="utility{warmup=2,reallocate=3}",
        budget="params=0.4",
    )
    widths = [chosen.widths for chosen in executed]
    assert widths[0] == widths[1] == sizes
    assert widths[2] == widths[3] == widths[4] != sizes
    assert widths[5] == widths[6] == widths[7]


def test_evaluation_in_between() -> None:
    net = BY_NAME["resnet_projection"]

    def between(gated: GatedModule, step: int) -> None:
        del step
        gated.eval()
        with torch.no_grad():
            gated(*net.inputs())
        gated.train()

    follow(net, OPTIMIZERS["momentum"], 6, between, policy="cucb{c=1}")
