"""Shrink: plain modules of compact sizes, and nothing of fxprune in them."""

import copy
import io
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn
from torch.nn import functional

import fxprune
from fxprune.bank.exchange import Selection
from fxprune.channels.records import KEY
from tests.support.law import at_random, gap
from tests.support.nets import NETS, Net
from tests.support.tiny import Tiny, printed

PLAIN = """\
  (conv): Conv2d(3, 4, kernel_size=(3, 3), stride=(1, 1), padding=(1, 1))
  (bn): BatchNorm2d(4, eps=1e-05, momentum=0.1, affine=True, bias=True, track_running_stats=True)
  (body): Conv2d(3, 1, kernel_size=(1, 1), stride=(1, 1), bias=False)
  (norm): BatchNorm2d(1, eps=1e-05, momentum=0.1, affine=True, bias=True, track_running_stats=True)
  (fc): Linear(in_features=16, out_features=5, bias=True)"""


def tiny() -> fxprune.GatedModule:
    torch.manual_seed(0)
    model = Tiny().eval()
    return fxprune.instrument(model, (torch.zeros(2, 3, 4, 4),), policy="cucb{saliency=sample}")


def test_the_compact_network_in_print() -> None:
    compact = fxprune.shrink(tiny())
    assert str(compact).splitlines()[1:6] == PLAIN.splitlines()
    assert printed(compact).splitlines()[3] == "chunk = bn.split([2, 2], 1)"
    assert "fxprune" not in printed(compact)


@pytest.mark.sampled(9)
@pytest.mark.parametrize("net", NETS, ids=lambda net: net.name)
def test_nothing_of_fxprune_is_left(net: Net) -> None:
    gated = net.gated(policy="cucb{saliency=sample}")
    compact = fxprune.shrink(gated)
    own = {type(module).__module__ for module in compact.modules() if module is not compact}
    assert not {name for name in own if name.startswith("fxprune")}
    assert all(KEY not in node.meta for node in compact.graph.nodes)
    assert len(compact.state_dict()) == len(
        dict(compact.named_parameters(remove_duplicate=False))
    ) + len(dict(compact.named_buffers()))
    if not net.differs:
        assert type(compact).__mro__[1] is fx.GraphModule


def test_the_tensors_are_its_own() -> None:
    gated = tiny()
    gated.settle(Selection(torch.arange(8), gated.channels.layout.sizes))  # nothing is removed
    before = {name: value.clone() for name, value in gated.dense_state_dict().items()}
    compact = fxprune.shrink(gated)
    for tensor in (*compact.parameters(), *compact.buffers()):
        tensor.data.fill_(7)
    after = gated.dense_state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items())


@pytest.mark.parametrize("training", [True, False])
def test_both_graphs_stay(training: bool) -> None:
    gated = tiny().train(training)
    compact = fxprune.shrink(gated)
    assert compact.training is training
    assert ("training = True" in printed(compact)) is training
    compact.train(not training)
    assert ("training = True" in printed(compact)) is not training


def test_it_trains_on_and_copies_like_any_module() -> None:
    gated = tiny()
    gated.settle(at_random(gated.channels, 1))
    compact = fxprune.shrink(gated).train()
    clone = copy.deepcopy(compact)
    x = torch.randn(4, 3, 4, 4)
    optimizer = torch.optim.SGD(compact.parameters(), 0.1)
    compact(x).sum().backward()
    optimizer.step()
    assert all(parameter.grad is not None for parameter in compact.parameters())
    with torch.no_grad():
        assert gap(gated.eval()(x), clone.eval()(x)) == 0
        assert gap(gated(x), compact.eval()(x)) > 1e-3


def test_it_loads_into_a_network_of_the_compact_sizes() -> None:
    gated = tiny()
    state = fxprune.shrink(gated).state_dict()
    model = Tiny()
    model.conv, model.bn = nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4)
    model.body, model.norm = nn.Conv2d(3, 1, 1, bias=False), nn.BatchNorm2d(1)
    model.fc = nn.Linear(16, 5)
    assert list(model.load_state_dict(state, strict=True)) == [[], []]


class Drops(nn.Module):
    """Two graphs: one drops, the other does not."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(1, 16, 3), nn.Conv2d(16, 4, 1)
        self.scale = nn.Parameter(torch.ones(16, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        hidden = functional.dropout(self.a(x).relu(), 0.5, self.training)
        return self.b(hidden * self.scale if self.training else hidden)


def sequence() -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, 16, 3), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 4, 1))


@pytest.mark.parametrize("make", [Drops, sequence])
@pytest.mark.parametrize("training", [True, False])
def test_a_compact_network_is_saved_as_any_module(make: Any, training: bool) -> None:
    gated = fxprune.instrument(make().train(training), (torch.zeros(2, 1, 8, 8),))
    compact, file = fxprune.shrink(gated), io.BytesIO()
    torch.save(compact, file)  # noqa: TID251 - as a user does
    file.seek(0)
    again = torch.load(file, weights_only=False)  # noqa: TID251
    assert again.training == training
    x = torch.randn(3, 1, 8, 8)
    for mode in (True, False):
        outs = []
        for network in (compact, again, copy.deepcopy(again)):
            torch.manual_seed(0)
            outs.append(network.train(mode)(x))
        assert torch.equal(outs[0], outs[1])
        assert torch.equal(outs[0], outs[2])


class OfOneSize(nn.Module):
    """Takes images of one size alone: a smaller one, which is quicker to compare on, raises."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 2, 1)
        self.positions = nn.Parameter(torch.randn(8, 128, 128))

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.b(self.a(x) + self.positions)
        return y


def test_sizes_that_the_network_does_not_take_are_tried_in_silence(
    capfd: pytest.CaptureFixture[str],
) -> None:
    gated = fxprune.instrument(OfOneSize(), (torch.zeros(2, 3, 128, 128),)).eval()
    fxprune.shrink(gated)
    assert capfd.readouterr().err == ""
