"""Gate: narrow modules with resident parameters, sizes rewritten, taps where they are asked for."""

import torch
from torch import nn

import fxprune
from fxprune.bank.exchange import Selection
from fxprune.budget.budget import Budget
from fxprune.gated.module import GatedModule, Settings
from fxprune.gated.nodes import Gated
from fxprune.passes import Program, apply
from fxprune.policies import parse
from tests.support.tiny import coupled, printed


def gate(policy: str = "fixed{choice=first}") -> GatedModule:
    settings = Settings(parse(policy), Budget.parse("keep=0.5"))
    module = apply("gate", coupled(), settings=settings).module
    assert isinstance(module, GatedModule)
    return module


FORWARD = """\
def forward(self, x : torch.Tensor) -> torch.Tensor:
conv = self.conv(x)
bn = self.bn(conv)
chunk = bn.split([{k}, {k}], 1)
getitem = chunk[0]
getitem_1 = chunk[1]
sigmoid = getitem_1.sigmoid()
mul = getitem * sigmoid
pad = torch.nn.functional.pad(mul, (0, 0, 0, 0, 1, {right}), mode = 'constant', value = None)
body = self.body(pad)
norm = self.norm(body)
view = norm.view(-1, {features})
dropout = torch.nn.functional.dropout(view, p = 0.5, training = False, inplace = False)
fc = self.fc(dropout)
return fc"""

MODULES = """\
  (conv): GatedConv2d(3, 4, kernel_size=(3, 3), stride=(1, 1), padding=(1, 1), \
dense_weight=(8, 3, 3, 3))
  (body): GatedConv2d(3, 1, kernel_size=(1, 1), stride=(1, 1), bias=False, \
dense_weight=(2, 6, 1, 1))"""


def test_the_narrow_graph() -> None:
    gated = gate()
    assert gated.widths == (2, 1, 1)
    assert printed(gated) == FORWARD.format(k=2, right=0, features=16)
    lines = [f"  ({name}): {child!r}" for name, child in gated.named_children()]
    assert [line for line in lines if "GatedConv2d" in line] == MODULES.splitlines()


def test_the_graph_follows_the_widths() -> None:
    gated = gate()
    gated.settle(Selection(torch.tensor([3, 0, 1, 4, 5, 7, 6]), (3, 2, 2)))
    assert printed(gated) == FORWARD.format(k=3, right=1, features=32)
    assert gated.conv.out_channels == 6
    assert gated.body.in_channels == 5
    gated.settle(Selection(torch.tensor([1, 5, 7]), (1, 1, 1)))
    assert printed(gated) == FORWARD.format(k=1, right=0, features=16)


def test_gated_modules_are_the_plain_ones() -> None:
    gated = gate()
    for name, plain in (("conv", nn.Conv2d), ("bn", nn.BatchNorm2d), ("fc", nn.Linear)):
        module = gated.get_submodule(name)
        assert isinstance(module, Gated)
        assert isinstance(module, plain)


def test_taps_stand_behind_the_gate_points() -> None:
    lines = printed(gate("cucb{saliency=sample}")).splitlines()
    taps = [line for line in lines if "fxprune_tap" in line]
    assert taps == [
        "fxprune_tap_0 = self.fxprune_tap_0(bn)",
        "chunk = fxprune_tap_0.split([2, 2], 1)",
        "fxprune_tap_1 = self.fxprune_tap_1(norm)",
        "view = fxprune_tap_1.view(-1, 16)",
    ]
    assert "fxprune_tap" not in printed(gate("cucb"))


def test_a_program_keeps_its_channels() -> None:
    program = coupled()
    settings = Settings(parse("fixed"), Budget.parse("keep=0.5"))
    result = apply("gate", program, settings=settings)
    assert result.channels is program.channels
    assert isinstance(result, Program)
    assert result.inputs is program.inputs


def test_gradient_hooks_of_the_parameters_stay() -> None:
    model = nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 4, 3))
    model[0].weight.register_hook(lambda grad: grad * 0)
    seen = []
    model[2].weight.register_post_accumulate_grad_hook(lambda p: seen.append(tuple(p.shape)))
    gated = fxprune.instrument(model, (torch.zeros(2, 3, 9, 9),))
    gated(torch.ones(2, 3, 9, 9)).square().mean().backward()
    parameters = dict(gated.named_parameters())
    assert not parameters["0.weight"].grad.any()
    assert parameters["0.bias"].grad.any()
    assert seen == [(4, 8, 3, 3)]
