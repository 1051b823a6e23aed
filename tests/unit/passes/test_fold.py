"""Fold: which norms become part of the layer before them, and which cannot."""

from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, spectral_norm

import fxprune
from tests.support.law import at_random, gap
from tests.support.nets import BY_NAME
from tests.support.tiny import printed

LEFT = {
    "vgg_bn": [],
    "resnet_option_a": [],
    "resnet_bottleneck": [],
    "mobilenet": [],
    "unet": [],
    "one_and_three": [],
    "transposed_depthwise": [],
    # the norm is not alone behind its convolution: a concatenation or a shortcut needs it raw
    "densenet": ["a.norm", "b.norm", "transition.0", "c.norm", "norm"],
    "shared": ["bn"],  # it runs twice
    "tied": [],
    "opaque": ["block.bn"],  # inside a leaf
}


def norms(module: nn.Module) -> list[str]:
    kinds = nn.modules.batchnorm._BatchNorm
    return [name for name, child in module.named_modules() if isinstance(child, kinds)]


@pytest.mark.parametrize("name", LEFT)
def test_what_is_left(name: str) -> None:
    net = BY_NAME[name]
    gated = net.gated()
    gated.settle(at_random(gated.channels, 3))
    compact = fxprune.shrink(gated)
    before = norms(compact)
    folded = fxprune.fold(compact)
    assert sorted(norms(folded)) == sorted(LEFT[name])
    assert norms(compact) == before  # the given one stays
    assert {*folded.meta["folded"], *folded.meta["unfolded"]} == set(before)
    assert sorted(folded.meta["unfolded"]) == sorted(LEFT[name])
    with torch.no_grad():
        assert gap(compact(*net.inputs(3)), folded(*net.inputs(3))) <= 1e-12


def test_the_folded_graph() -> None:
    net = BY_NAME["resnet_option_a"]
    folded = fxprune.fold(fxprune.shrink(net.gated()))
    assert printed(folded).splitlines()[1:6] == [
        "conv = self.conv(x)",
        "relu = torch.nn.functional.relu(conv, inplace = False)",
        'blocks_0_conv1 = getattr(self.blocks, "0").conv1(relu)',
        "relu_1 = torch.nn.functional.relu(blocks_0_conv1, inplace = False)",
        'blocks_0_conv2 = getattr(self.blocks, "0").conv2(relu_1)',
    ]


@pytest.mark.parametrize("name", ["auxiliary_head", "vgg_bn"])
def test_a_folded_network_has_one_graph(name: str) -> None:
    """Without its norms there is nothing to train; the mode changes nothing but dropout."""
    net = BY_NAME[name]
    gated = net.gated()
    folded = fxprune.fold(fxprune.shrink(gated))
    code = printed(folded)
    folded.train()
    assert printed(folded) == code
    folded.eval()
    with torch.no_grad():
        assert gap(gated(*net.inputs()), folded(*net.inputs())) <= 1e-12


@pytest.mark.parametrize(
    ("shape", "normed", "left"), [((6,), 4, []), ((2, 6), 2, ["1"]), ((5, 6), 5, ["1"])]
)
def test_a_linear_layer_takes_its_norm(
    shape: tuple[int, ...], normed: int, left: list[str]
) -> None:
    """In [N, L, C] a batch norm takes L for the channels."""
    torch.manual_seed(0)
    layers = nn.Linear(6, 4), nn.BatchNorm1d(normed), nn.ReLU(), nn.Linear(4, 2)
    model = nn.Sequential(*layers).eval()
    nn.init.uniform_(model[1].running_mean)
    compact = fxprune.shrink(fxprune.instrument(model, (torch.zeros(3, *shape),)))
    folded = fxprune.fold(compact)
    assert norms(folded) == left
    x = torch.randn(5, *shape)
    with torch.no_grad():
        assert gap(compact(x), folded(x)) <= 1e-6


@pytest.mark.parametrize("computed", [parametrizations.weight_norm, spectral_norm])
def test_a_computed_weight_keeps_its_norm(computed: Callable[[nn.Module], nn.Module]) -> None:
    torch.manual_seed(0)
    conv, norm = computed(nn.Conv2d(3, 6, 3)), nn.BatchNorm2d(6)
    nn.init.uniform_(norm.running_mean)
    model = nn.Sequential(conv, norm, nn.ReLU(), nn.Conv2d(6, 2, 1)).eval()
    x = torch.randn(2, 3, 8, 8)
    compact = fxprune.shrink(fxprune.instrument(model, (x,)))
    folded = fxprune.fold(compact)
    assert norms(folded) == ["1"]
    with torch.no_grad():
        assert gap(compact(x), folded(x)) <= 1e-6
