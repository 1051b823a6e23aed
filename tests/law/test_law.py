"""For any selection: gated.eval() = shrink(gated) = ONNX = dense with the consumers' columns zero.

Tolerances are relative to an output's largest value. In float64 the three networks differ by the
order of their sums only; ONNX is float32, with the export's own tolerance of 2e-5.
"""

from pathlib import Path

import pytest
import torch
import torchvision
from torch import Tensor, nn
from torch.utils import _pytree as pytree

import fxprune
from fxprune import GatedModule, fold, instrument, shrink
from fxprune.bank.exchange import Selection
from tests.support.law import at_random, choose, extremes, gap, zeroed
from tests.support.nets import BY_NAME, NETS, Net
from tests.support.topologies.base import randomised

TOLERANCE = 1e-12

every_net = pytest.mark.parametrize("net", NETS, ids=lambda net: net.name)


@torch.no_grad()
def check(
    model: nn.Module, gated: GatedModule, inputs: tuple[Tensor, ...], chosen: Selection
) -> None:
    """Checks the law for one selection, in the mode that the networks are in."""
    gated.settle(chosen)
    compact = shrink(gated)
    assert _params(compact) == gated.cost.params(chosen.widths)
    torch.manual_seed(0)
    wanted = gated(*inputs)
    torch.manual_seed(0)
    assert gap(wanted, compact(*inputs)) <= TOLERANCE, f"compact at {chosen.widths}"
    if not gated.channels.mixing and not _draws(model, inputs):
        dense = zeroed(model, gated, chosen)
        assert gap(dense(*inputs), wanted) <= TOLERANCE, f"dense at {chosen.widths}"


def _params(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def _draws(model: nn.Module, inputs: tuple[Tensor, ...]) -> bool:
    """Whether the network's outputs are random in its mode."""
    outputs = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        outputs.append(model(*inputs))
    return gap(*outputs) > 0


@every_net
def test_random_selections(net: Net) -> None:
    model = net.model()
    gated = instrument(model, net.inputs())
    for seed in range(4):
        check(model, gated, net.inputs(3, seed=seed), at_random(gated.channels, seed))


@pytest.mark.sampled(9)
@every_net
def test_extremes(net: Net) -> None:
    model = net.model()
    gated = net.gated()
    for chosen in extremes(gated.channels):
        check(model, gated, net.inputs(3), chosen)


@pytest.mark.sampled(9)
@every_net
def test_in_training_mode(net: Net) -> None:
    """Batch statistics are each channel's own, so the law holds in training as well."""
    model = net.model()
    gated = net.gated()
    model.train()
    gated.train()
    assert (len(gated.graphs) == 2) == net.differs
    check(model, gated, net.inputs(3), at_random(gated.channels, 5))


@pytest.mark.sampled(9)
@pytest.mark.parametrize("net", [net for net in NETS if not net.mixes], ids=lambda net: net.name)
def test_gradients_are_the_dense_networks(net: Net) -> None:
    """What a compact parameter learns is what its slices learn with the removed columns zero."""
    model = net.model()
    gated = net.gated()
    chosen = at_random(gated.channels, 9)
    gated.settle(chosen)
    wanted, found = zeroed(model, gated, chosen), shrink(gated)
    for network in (wanted, found):
        leaves = pytree.tree_leaves(network(*net.inputs(3)))
        sum(leaf.cos().sum() for leaf in leaves).backward()
    dense = {name: parameter.grad for name, parameter in wanted.named_parameters()}
    for name, parameter in found.named_parameters():
        kept = dense[name]
        if kept is None:  # the auxiliary head
            assert parameter.grad is None
            continue
        for dim, positions in gated.selection().get(name, {}).items():
            kept = kept.index_select(dim, positions)
        assert gap(kept, parameter.grad) <= 1e-10, name


@pytest.mark.sampled(9)
@every_net
def test_folded(net: Net) -> None:
    gated = net.gated()
    gated.settle(at_random(gated.channels, 6))
    compact = shrink(gated.eval())
    folded = fold(compact)
    with torch.no_grad():
        assert gap(compact(*net.inputs(3)), folded(*net.inputs(3))) <= TOLERANCE


@pytest.mark.sampled(4)
@every_net
def test_onnx(net: Net, tmp_path: Path) -> None:
    """The folded compact network as ONNX against the dense network with its columns zero."""
    model = net.model(torch.float32)
    gated = instrument(model, net.inputs(dtype=torch.float32))
    check_onnx(model, gated, net, at_random(gated.channels, 7), tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mobilenet", "resnet_option_a", "shuffle_split", "unet"])
def test_onnx_at_width_one(name: str, tmp_path: Path) -> None:
    net = BY_NAME[name]
    model = net.model(torch.float32)
    gated = instrument(model, net.inputs(dtype=torch.float32))
    ones = (1,) * len(gated.widths)
    check_onnx(model, gated, net, choose(gated.channels, ones), tmp_path)


def check_onnx(
    model: nn.Module, gated: GatedModule, net: Net, chosen: Selection, folder: Path
) -> None:
    gated.settle(chosen)
    reference = gated if gated.channels.mixing else zeroed(model, gated, chosen)
    compact = fold(shrink(gated.eval()))
    report = fxprune.export_onnx(
        compact, net.inputs(dtype=torch.float32), folder / "compact.onnx", reference=reference
    )
    assert report.tolerance <= 2e-5
    assert report.max_rel_error <= report.tolerance


def _vgg(name: str) -> nn.Module:
    model = getattr(torchvision.models, name)(num_classes=10)
    # the original's is 95 % of the parameters and of the time
    model.classifier = nn.Sequential(nn.Linear(512 * 49, 64), nn.ReLU(True), nn.Linear(64, 10))
    return model


@pytest.mark.sampled(1)
@pytest.mark.parametrize(
    ("name", "groups"),
    [
        pytest.param("vgg11", 9, marks=pytest.mark.slow),
        ("vgg11_bn", 9),
        ("resnet18", 12),
        pytest.param("resnet50", 37, marks=pytest.mark.slow),
        pytest.param("densenet121", 120, marks=pytest.mark.slow),
        ("mobilenet_v2", 25),
    ],
)
def test_torchvision(name: str, groups: int) -> None:
    torch.manual_seed(0)
    build = getattr(torchvision.models, name)
    model = randomised(_vgg(name) if name.startswith("vgg") else build(num_classes=10))
    model = model.double().eval()
    inputs = (torch.randn(2, 3, 40, 40, dtype=torch.float64),)
    gated = instrument(model, inputs)
    sizes = gated.channels.layout.sizes
    assert len(sizes) == groups
    check(model, gated, inputs, at_random(gated.channels, 8))
    check(model, gated, inputs, choose(gated.channels, (1,) * len(sizes)))
