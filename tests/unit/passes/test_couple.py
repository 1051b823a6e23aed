"""Couple: the channels of a traced network, tried on a compact one before they are believed."""

import copy
from typing import Any

import networkx as nx
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fxprune import analyze, instrument, reference_of, shrink
from fxprune.analysis import label_mode
from fxprune.channels.graph import Factor
from fxprune.channels.records import KEY
from fxprune.passes import Program, apply
from tests.support.law import choose, gap, zero_columns, zeroed
from tests.support.tiny import coupled

GRAPH = """\
3 channel groups, 8 channels
group 0  conv  4 channels
    conv.weight[0] out x2
    conv.bias[0] along x2
    bn.weight[0] along x2
    bn.bias[0] along x2
    body.weight[1] in
    bn.running_mean[0] along x2
    bn.running_var[0] along x2
group 1  body  2 channels
    body.weight[0] out
    norm.weight[0] along
    norm.bias[0] along
    fc.weight[1] in x16
    norm.running_mean[0] along
    norm.running_var[0] along
group 2  body  2 channels
    body.weight[1] in
pinned  3 channels  the convolution reads a fixed number of channels  (conv)
    at {where}
pinned  5 channels  the model returns these channels  (output)"""


def test_the_channel_graph_in_print() -> None:
    program = coupled()
    assert program.channels is not None
    assert str(program.channels) == GRAPH.format(where=program.channels.pinned[0].where)


def test_positions() -> None:
    """Which rows of the chunked layer are one channel; where the constants of the pad are."""
    program = coupled()
    assert program.channels is not None
    halves, _, constants = program.channels.groups
    rows = next(m for m in halves.members if m.parameter == "conv.weight")
    assert rows.positions.tolist() == [[0, 4], [1, 5], [2, 6], [3, 7]]
    assert constants.members[0].positions.tolist() == [[0], [5]]
    assert [m.parameter for m in halves.producers] == ["conv.weight"]
    assert [m.parameter for m in halves.consumers] == ["body.weight"]


def test_macs_are_ascribed_to_the_layer_that_makes_the_channels() -> None:
    program = coupled()
    assert program.channels is not None
    assert [group.macs for group in program.channels.groups] == [8 * 3 * 9 * 16, 2 * 6 * 16, 0]
    assert [pin.macs for pin in program.channels.pinned] == [0, 5 * 32]


def test_every_node_has_its_record() -> None:
    program = coupled()
    shapes = {
        node.name: node.meta[KEY].result.at((1, 1, 1))
        for node in program.graph_module.graph.nodes
        if hasattr(node.meta[KEY].result, "at")
    }
    assert shapes["conv"] == (2, 2, 4, 4)
    assert shapes["mul"] == (2, 1, 4, 4)
    assert shapes["pad"] == (2, 2, 4, 4)
    assert shapes["view"] == (2, 16)
    assert shapes["fc"] == (2, 5)


def test_networkx() -> None:
    program = coupled()
    assert program.channels is not None
    graph = program.channels.to_networkx()
    assert isinstance(graph, nx.MultiDiGraph)
    assert graph.nodes["group 0"] == {"kind": "group", "size": 4, "label": "conv", "macs": 3456}
    assert graph.nodes["conv.weight"]["kind"] == "parameter"
    assert graph.get_edge_data("conv.weight", "group 0") == {0: {"dim": 0, "role": "out"}}
    assert graph.get_edge_data("group 0", "body.weight") == {0: {"dim": 1, "role": "in"}}
    assert nx.has_path(graph, "conv.weight", "fc.weight")
    assert not nx.has_path(graph, "fc.weight", "conv.weight")
    assert set(graph.predecessors("group 1")) == {"body.weight"}


def test_the_batch_of_the_example_does_not_matter() -> None:
    program = coupled()
    assert program.channels is not None
    conv = next(term for term in program.channels.macs_terms if term.name == "conv")
    assert conv.scale == 16 * 9
    assert conv.factors == (Factor(0, ((0, 2),)), Factor(3))


class KernelForEach(nn.Module):
    """A conv group for each example, so that their number is the batch's."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.weight = nn.Conv2d(3, 8, 1), nn.Parameter(torch.randn(4, 8, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        n, _, height, width = x.shape
        weights = self.weight.repeat(n, 1, 1, 1)
        x = F.conv2d(x.reshape(1, -1, height, width), weights, groups=n)
        return x.view(n, 4, height, width)


@torch.no_grad()
def test_conv_groups_that_are_the_batch_stay_so() -> None:
    model = KernelForEach().eval()
    gated = instrument(model, (torch.zeros(1, 3, 2, 2),))
    assert gated.widths == (4,)
    x = torch.randn(3, 3, 2, 2)
    chosen = choose(gated.channels, (5,))
    gated.settle(chosen)
    dense = zeroed(model, gated, chosen)
    assert gap(dense(x), gated(x)) <= 1e-6


class PooledNorm(nn.Module):
    """A norm of single values, which PyTorch refuses to train on one example."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.fc = nn.Conv2d(3, 8, 1), nn.Linear(8, 5)
        self.scale = nn.Parameter(torch.ones(8))

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).mean((2, 3))
        if self.training:
            x = F.batch_norm(x, None, None, self.scale, training=True)
        return self.fc(x)


def test_a_single_example_is_enough_for_a_norm_that_wants_two() -> None:
    gated = instrument(PooledNorm(), (torch.zeros(1, 3, 2, 2),))
    assert [group.size for group in gated.channels.groups] == [8]


class ScaledPooledNorm(PooledNorm):
    """Beside its images it takes a scale, which is no batch."""

    def forward(self, x: Tensor, scale: Tensor) -> Tensor:
        return super().forward(x * scale.view(-1, 1, 1))


def test_a_single_example_beside_an_input_without_a_batch() -> None:
    gated = instrument(ScaledPooledNorm(), (torch.zeros(1, 3, 2, 2), torch.ones(3)))
    assert [group.size for group in gated.channels.groups] == [8]


class TwoModes(nn.Module):
    """Training has a node more, in front of halves that meet."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 8, 1), nn.BatchNorm2d(6)
        self.body, self.fc = nn.Conv2d(4, 6, 1), nn.Conv2d(6, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        if self.training:
            x = x + 1
        a, b = x.chunk(2, 1)
        return self.fc(self.norm(self.body(a * b)))


def test_what_both_modes_have_in_common_is_run_once(monkeypatch: pytest.MonkeyPatch) -> None:
    calls, known = [], label_mode.rule_of

    def noted(func: Any) -> Any:
        calls.append(func)
        return known(func)

    monkeypatch.setattr(label_mode, "rule_of", noted)
    graph = analyze(TwoModes(), (torch.zeros(2, 3, 4, 4),))
    assert calls.count(torch.ops.aten.convolution.default) == 3 + 1  # the body's halves are views
    assert calls.count(torch.ops.aten.native_batch_norm.default) == 1
    assert [gate.nodes for gate in graph.gates] == [("stem",), ("norm",)]
    assert [term.name for term in graph.macs_terms] == ["stem", "body", "fc"]


class Stepped(nn.Module):
    """Every other channel, and a rectifier on all of them; the slice is a view."""

    def __init__(self, inplace: bool) -> None:
        super().__init__()
        self.conv, self.act = nn.Conv2d(3, 6, 3), nn.ReLU(inplace)
        self.odd, self.all = nn.Linear(3, 2), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        odd, x = x[:, 1::2], self.act(x)
        return self.odd(odd.mean((2, 3))) + self.all(x.mean((2, 3)))


def test_what_is_written_through_a_slice_in_steps_is_pinned() -> None:
    inputs = (torch.zeros(2, 3, 8, 8),)
    assert len(analyze(Stepped(inplace=False), inputs).groups) == 2
    graph = analyze(Stepped(inplace=True), inputs)
    assert graph.groups == ()
    assert "a slice of every n-th of them is written in place" in {p.reason for p in graph.pinned}


class Copied(nn.Module):
    """Turned round, and rectified in place: the copy between them is none at width 1."""

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x.transpose(1, 2).contiguous(), inplace=True).transpose(1, 2) + x


class GuardedCopied(Copied):
    """The same behind a question about the dtype, which tracing answers."""

    def forward(self, x: Tensor) -> Tensor:
        if x.dtype == torch.int8:
            raise ValueError(x.shape)
        return super().forward(x)


class OpaqueCopied(Copied):
    """The same in code that symbolic tracing does not follow."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.float() if len(x) > 1000 else x)


class NormCopied(nn.Module):
    """A copy inside of a function of torch, of what nobody else has."""

    def forward(self, x: Tensor) -> Tensor:
        y = F.rms_norm(x.permute(0, 2, 3, 1), (x.shape[1],))
        return F.relu(y.permute(0, 3, 1, 2), inplace=True) + x


@pytest.mark.parametrize("block", [Copied, GuardedCopied, OpaqueCopied, NormCopied])
@torch.no_grad()
def test_a_copy_that_a_narrow_network_would_not_make(block: type[nn.Module]) -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3), block(), nn.Conv2d(4, 2, 1))
    graph = analyze(net, (torch.zeros(2, 3, 8, 8),))
    reasons = {pinned.reason for pinned in graph.pinned}
    if block is OpaqueCopied:
        assert "a copy of them, written in place, may become none" in reasons
        assert graph.groups == ()
        return
    assert [group.size for group in graph.groups] == [4]
    if block is not NormCopied:  # it is given a copy that is always one, as the law shows
        assert_law(net.double(), [[3]])


class Found:
    """An object of a class that nobody else knows."""

    __slots__ = ("features",)

    def __init__(self, features: Tensor) -> None:
        self.features = features


class Finds(nn.Module):
    """Returns such an object, or one for each image."""

    def __init__(self, each: bool) -> None:
        super().__init__()
        self.wide, self.narrow, self.each = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 6, 1), each

    def forward(self, x: Tensor) -> Any:
        y = self.narrow(self.wide(x).relu())
        return {"all": [Found(part) for part in y]} if self.each else Found(y)


@pytest.mark.parametrize("each", [False, True])
def test_what_is_returned_in_objects_of_any_class_stays(each: bool) -> None:
    model = Finds(each).eval()
    gated = instrument(model, (x := torch.randn(2, 3, 8, 8),)).eval()
    assert [group.size for group in gated.channels.groups] == [8]
    ours, theirs = gated(x), reference_of(gated, model)(x)
    for one, other in zip(ours["all"], theirs["all"]) if each else [(ours, theirs)]:
        torch.testing.assert_close(one.features, other.features)


class Checked(nn.Module):
    """Says how many channels it wants of a layer, in code that goes through the batch."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 6, 3), nn.Conv2d(6, 2, 1)

    def forward(self, x: Tensor) -> list[Tensor]:
        y = self.b(self.a(x).relu())
        if y.shape[1] != 6:
            raise ValueError(f"it wants 6 channels and not {y.shape[1]}")
        return [self.c(part[None]) for part in y]


def test_of_the_channels_that_meet_only_those_stay_that_the_code_counts() -> None:
    graph = analyze(Checked(), (torch.zeros(2, 3, 8, 8),))
    assert [group.size for group in graph.groups] == [8]


class OnDevice(nn.Module):
    """Does one thing on the device of its tensors and another elsewhere."""

    def forward(self, x: Tensor) -> Tensor:
        if x.device.type != "cpu" or x.device != torch.device("cpu") or not x.is_cpu:
            return x.flip(1)
        kept = torch.zeros(x.shape, dtype=x.dtype, device=x.device)
        kept[:, :, 2:] = x[:, :, 2:]
        return kept * torch.linspace(1, 2, x.size(3)).type(x.type())


@torch.no_grad()
def test_questions_of_where_a_tensor_is() -> None:
    net = nn.Sequential(nn.Conv2d(3, 8, 3), OnDevice(), nn.Conv2d(8, 2, 1))
    graph = analyze(net, (torch.zeros(2, 3, 8, 8),))
    assert [group.size for group in graph.groups] == [8]
    assert_law(net.double(), [[3]])


def assert_law(net: nn.Module, widths: list[list[int]]) -> None:
    """The settled and the compact network compute what the user's does with zeroed channels."""
    x = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    for kept in widths:
        gated = instrument(net, (x,))
        chosen = choose(gated.channels, tuple(kept))
        gated.settle(chosen)
        assert gap(zeroed(net, gated, chosen).train()(x), gated(x)) < 1e-12
        assert torch.equal(shrink(gated)(x), gated(x))


@pytest.mark.parametrize("inplace", [False, True])
def test_a_norm_behind_a_rectifier_is_no_gate_point(inplace: bool) -> None:
    act = nn.ReLU(inplace)
    net = nn.Sequential(nn.Conv2d(3, 4, 3), act, nn.BatchNorm2d(4), nn.Conv2d(4, 2, 1))
    (gate,) = analyze(net, (torch.zeros(2, 3, 8, 8),)).gates
    assert gate.parameters == (("0.weight", 0), ("0.bias", 0))


class AsksForValues(nn.Module):
    """Branches on values before its convolution, or chooses channels by them, or counts by them."""

    def __init__(self, way: str) -> None:
        super().__init__()
        self.way, self.conv = way, nn.Conv2d(8, 6, 1)
        self.register_buffer("times", torch.tensor(2.0))

    def forward(self, x: Tensor) -> Tensor:
        if self.way == "branch" and x.mean() > 0:
            x = 2 * x
        if self.way == "choose":
            kept = x.mean((0, 2, 3)).relu().nonzero().flatten()
            x = torch.zeros_like(x).index_copy(1, kept, x.index_select(1, kept))
        if self.way == "number":
            x = x * self.times.item()
        return self.conv(x)


@pytest.mark.parametrize(
    ("way", "sizes"), [("branch", [5, 8, 6]), ("choose", [5, 6]), ("number", [5, 8, 6])]
)
@torch.no_grad()
def test_a_leaf_that_asks_for_values_loses_channels(way: str, sizes: list[int]) -> None:
    """Only channels that are chosen by what is in a tensor stay."""
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 5, 3), nn.Conv2d(5, 8, 3), AsksForValues(way), nn.Conv2d(6, 4, 1)
    ).double()
    x = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    gated = instrument(net, (x,))
    assert [group.size for group in gated.channels.groups] == sizes
    pins = [p for p in gated.channels.pinned if "asks for their values" in p.reason]
    assert [pin.channels for pin in pins] == ([8] if way == "choose" else [])
    assert gated.cost.dense_macs == (3 * 5 * 9 * 36) + (5 * 8 * 9 + 8 * 6 + 6 * 4) * 16
    assert bool(gated.channels.mixing) == (way == "branch")  # it branches on a mean of channels
    chosen = choose(gated.channels, tuple(2 for _ in sizes))
    gated.settle(chosen)
    if way != "branch":
        assert gap(zeroed(net, gated, chosen).train()(x), gated(x)) < 1e-12
    assert torch.equal(shrink(gated)(x), gated(x))


class Root(nn.Module):
    """Code of its own that tracing does not follow, around layers."""

    def __init__(self, values: bool) -> None:
        super().__init__()
        self.values = values
        self.body = nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Conv2d(6, 4, 3))

    def forward(self, x: Tensor) -> Tensor:
        if self.values:
            return self.body(x) * x.mean().item()
        return self.body(x.float() if len(x) > 1000 else x)


@torch.no_grad()
def test_a_root_that_asks_for_values_keeps_its_python_code() -> None:
    """It computes what it did, from the values of each input; its channels can go."""
    net = Root(values=True).double()
    x = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    gated = instrument(net, (x,))
    assert [group.size for group in gated.channels.groups] == [6]
    gated.settle(choose(gated.channels, (2,)))
    module = apply("trace", Program(net, (x,))).module
    for other in (x, 3 * x + 1):
        assert torch.equal(module(other), net(other))
        assert torch.equal(shrink(gated)(other), gated.eval()(other))


@torch.no_grad()
def test_the_channels_inside_a_root_that_keeps_its_python_code_can_go() -> None:
    torch.manual_seed(0)
    net = Root(values=False).double()
    graph = analyze(net, (torch.zeros(2, 3, 8, 8, dtype=torch.float64),))
    assert [group.size for group in graph.groups] == [6]
    x = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    for width in (1, 4, 6):
        gated = instrument(net, (x,))
        chosen = choose(gated.channels, (width,))
        gated.settle(chosen)
        dense = copy.deepcopy(net)
        dense.load_state_dict(gated.dense_state_dict())
        zero_columns(dense, gated.channels, chosen)
        assert gap(dense.train()(x), gated(x)) < 1e-12
        assert torch.equal(shrink(gated)(x), gated(x))


class Halves(nn.Module):
    """Halves an axis, whatever its width."""

    def forward(self, x: Tensor) -> Tensor:
        half = x.shape[1] // 2
        return torch.cat([x[:, :half].relu(), x[:, half:]], 1)


class OpaqueHalves(Halves):
    """The same in code that symbolic tracing does not follow."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.float() if len(x) > 1000 else x)


def halved(block: nn.Module) -> nn.Sequential:
    """A network around a block that takes and gives five channels."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 5, 1), block, nn.Conv2d(5, 4, 1), nn.Conv2d(4, 2, 1))


def test_a_leaf_that_halves_groups_of_nearly_the_same_size() -> None:
    """Of two and of three channels: most widths are near enough that the half is right."""
    graph = analyze(halved(OpaqueHalves()), (torch.zeros(2, 3, 8, 8),))
    assert [group.size for group in graph.groups] == [4]
    assert any("the call reads other channels" in pin.reason for pin in graph.pinned)


@torch.no_grad()
def test_halves_that_tracing_follows_are_groups_of_their_own() -> None:
    """The cut is where the first of them ends, also where that is not half of the width."""
    net = halved(Halves()).double()
    graph = analyze(net, (torch.zeros(2, 3, 8, 8, dtype=torch.float64),))
    assert [group.size for group in graph.groups] == [2, 3, 4]
    assert_law(net, [[1, 3, 4], [2, 1, 2], [1, 2, 3]])
