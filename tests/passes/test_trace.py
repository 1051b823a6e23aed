"""Trace: one graph for each mode where they differ, the user's lines, leaves for what it can't."""

import inspect

import torch
from torch import Tensor, nn

from fxprune.passes import Program, apply
from fxprune.traced import TracedModule, where
from tests.nets import BY_NAME, Net
from tests.passes import tiny
from tests.passes.tiny import printed, start


def trace(net: Net) -> TracedModule:
    module = apply("trace", Program(net.model(), net.inputs())).module
    assert isinstance(module, TracedModule)
    return module


def test_the_graphs_of_both_modes() -> None:
    module = apply("trace", start()).graph_module
    evaluation = """\
def forward(self, x : torch.Tensor) -> torch.Tensor:
conv = self.conv(x)
bn = self.bn(conv)
chunk = bn.chunk(2, dim = 1)
getitem = chunk[0]
getitem_1 = chunk[1]
sigmoid = getitem_1.sigmoid()
mul = getitem * sigmoid
pad = torch.nn.functional.pad(mul, (0, 0, 0, 0, 1, 1), mode = 'constant', value = None)
body = self.body(pad)
norm = self.norm(body)
view = norm.view(-1, 32)
dropout = torch.nn.functional.dropout(view, p = 0.5, training = False, inplace = False)
fc = self.fc(dropout)
return fc"""
    assert printed(module) == evaluation
    assert printed(module.train()) == evaluation.replace("training = False", "training = True")
    assert printed(module.eval()) == evaluation


def test_one_graph_where_the_modes_agree() -> None:
    module = trace(BY_NAME["vgg_bn"])
    train, evaluation = module.both_graphs
    assert train is evaluation
    assert len(trace(BY_NAME["auxiliary_head"]).graphs) == 2


def test_parameters_and_modules_are_the_models() -> None:
    program = start()
    module = apply("trace", program).module
    own = dict(program.module.named_parameters())
    assert dict(module.named_parameters()).keys() == own.keys()
    assert all(value is own[name] for name, value in module.named_parameters())
    assert module.conv is program.module.conv


def test_each_node_knows_the_users_line() -> None:
    module = apply("trace", start()).graph_module
    lines, first = inspect.getsourcelines(tiny.Tiny.forward)
    places = {node.name: where(node) for node in module.graph.nodes}
    for name, code in (
        ("conv", "a, b = self.bn(self.conv(x)).chunk(2, dim=1)"),
        ("pad", "x = F.pad(a * b.sigmoid(), (0, 0, 0, 0, 1, 1))"),
        ("view", "x = self.norm(self.body(x)).view(-1, 32)"),
    ):
        line = first + next(i for i, text in enumerate(lines) if text.strip() == code)
        assert places[name] == f"{tiny.__file__}:{line}   {code}"
    assert places["x"] == places["output"] == ""


def test_a_sequential_has_no_line_of_the_users() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU())
    module = apply("trace", Program(model, (torch.zeros(1, 3, 2, 2),))).graph_module
    assert {where(node) for node in module.graph.nodes} == {""}


def test_the_smallest_module_that_cannot_be_traced_is_a_leaf() -> None:
    module = trace(BY_NAME["opaque"])
    calls = [node.target for node in module.graph.nodes if node.op == "call_module"]
    assert calls == ["stem", "block", "head", "fc"]


class Options(nn.Module):
    """A keyword with a default that decides, and a check that fx adds for it."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 1)

    def forward(self, x: Tensor, twice: bool = False, mask: Tensor | None = None) -> Tensor:
        x = self.conv(x)
        if twice:
            x = self.conv(x)
        return x if mask is None else x * mask


def test_options_that_no_example_fills_have_their_defaults() -> None:
    module = apply("trace", Program(Options().eval(), (torch.zeros(1, 3, 2, 2),))).graph_module
    assert [(node.op, node.name) for node in module.graph.nodes] == [
        ("placeholder", "x"),
        ("call_module", "conv"),
        ("output", "output"),
    ]


def test_shared_and_tied_names_are_found_in_the_state() -> None:
    net = BY_NAME["tied"]
    model = net.model()
    module = apply("trace", Program(model, net.inputs())).module
    state = module.origin.state_dict(dict(module.named_parameters()) | dict(module.named_buffers()))
    assert list(state) == list(model.state_dict())
    assert torch.equal(state["b.weight"], state["a.weight"])
