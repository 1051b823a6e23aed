"""Trace: one graph for each mode where they differ, the user's lines, leaves for what it can't."""

import inspect
import random
from collections import Counter

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fxprune import analyze, attach, instrument, reference_of, shrink
from fxprune.errors import TraceError
from fxprune.gated.module import GatedModule
from fxprune.passes import Program, apply
from fxprune.passes.trace import ATTRIBUTES
from fxprune.tracing.module import TracedModule
from fxprune.tracing.trace import trace as traced_by
from fxprune.user_lines import where
from tests.support import tiny
from tests.support.nets import BY_NAME, Net
from tests.support.tiny import printed, start


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


class KeepsItsCode(nn.Module):
    """Branches on what is in a tensor, or on a number of Python's own generator."""

    def __init__(self, draws: bool) -> None:
        super().__init__()
        self.conv, self.dropout, self.draws = nn.Conv2d(8, 8, 1), nn.Dropout(0.5), draws

    def forward(self, x: Tensor) -> Tensor:
        x = self.dropout(self.conv(x))
        return 2 * x if (random.random() if self.draws else x.sum()) > 0.5 else x


class AsksForItsSize(nn.Module):
    """Asks for the size of what a part returns that keeps its code."""

    def __init__(self, draws: bool) -> None:
        super().__init__()
        self.part, self.conv = KeepsItsCode(draws), nn.Conv2d(8, 8, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.part(x)
        assert x.shape[1] == 8
        y: Tensor = self.conv(x)
        return y


@pytest.mark.parametrize("draws", [False, True])
def test_a_module_that_asks_for_the_size_of_a_leafs_result_is_followed(draws: bool) -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 1), AsksForItsSize(draws), nn.Conv2d(8, 4, 1))
    module = traced_by(model, (torch.zeros(2, 3, 4, 4),))
    calls = [node.target for node in module.graph.nodes if node.op == "call_module"]
    assert calls == ["0", "1.part", "1.conv", "2"]


def test_control_flow_on_sizes_is_followed_and_asserted() -> None:
    module = trace(BY_NAME["sized"])
    calls = [node.target for node in module.graph.nodes if node.op == "call_module"]
    assert calls == ["stem", "wide", "fc"]
    assert module(torch.zeros(5, 3, 8, 8, dtype=torch.float64)).shape == (5, 5)  # the batch is free
    with pytest.raises(AssertionError, match="traced for inputs of another size"):
        module(torch.zeros(2, 3, 16, 16, dtype=torch.float64))  # its loop would have run twice


RUNS = Counter[str]()
"""How often a model's code ran; on the model itself, or in a plain list, it would be put back."""


class Counted(nn.Module):
    """Counts how often its code runs; it may ask for its mode."""

    def __init__(self, asks: bool) -> None:
        super().__init__()
        self.conv, self.asks = nn.Conv2d(3, 4, 1), asks
        RUNS.clear()

    def forward(self, x: Tensor) -> Tensor:
        RUNS["forward"] += 1
        x = self.conv(x)
        return F.dropout(x) if self.asks and self.training else x


@pytest.mark.parametrize("asks", [False, True])
def test_a_model_is_traced_for_each_mode_that_it_asks_for(asks: bool) -> None:
    model = Counted(asks).train()
    module = traced_by(model, (torch.zeros(1, 3, 2, 2),))
    assert RUNS.total() == 1 + asks
    assert len(module.graphs) == 1 + asks
    assert model.training
    assert "training" not in vars(nn.Module)


class HandsOn(nn.Module):
    """Uses its mode in one way or another."""

    def __init__(self, way: str) -> None:
        super().__init__()
        self.conv, self.way = nn.Conv2d(3, 4, 1), way
        RUNS.clear()

    def forward(self, x: Tensor) -> Tensor:
        RUNS["forward"] += 1
        x = self.conv(x)
        if self.way == "as an argument":
            return F.dropout(x, 0.5, self.training)
        if self.way == "by identity":
            return F.dropout(x, 0.5) if self.training is True else x
        return x * (2 - int(self.training))


@pytest.mark.parametrize(
    ("way", "runs"), [("as an argument", 1), ("by identity", 2), ("as a number", 2)]
)
def test_a_mode_that_is_only_handed_on_needs_no_second_trace(way: str, runs: int) -> None:
    model, x = HandsOn(way), torch.ones(1, 3, 2, 2)
    module = traced_by(model, (x,))
    assert RUNS.total() == runs
    assert len(module.graphs) == 2
    for mode in (True, False):
        with torch.random.fork_rng():
            torch.manual_seed(0)
            wanted = model.train(mode)(x)
            torch.manual_seed(0)
            assert torch.equal(module.train(mode)(x), wanted)


class OnTheBatch(nn.Module):
    """Control flow on the batch, which has to stay free: it makes a leaf."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x) if len(x) > 1 else -self.conv(x)


class OnTheImage(nn.Module):
    """A loop over the rows of the image, which a leaf leaves free."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return sum(self.conv(x)[:, :, row] for row in range(x.shape[-1]))


@pytest.mark.parametrize("block", [OnTheBatch, OnTheImage])
def test_what_inputs_may_vary_is_not_fixed(block: type[nn.Module]) -> None:
    model = nn.Sequential(nn.Conv2d(3, 3, 1), block()).eval()
    module = apply("trace", Program(model, (torch.zeros(2, 3, 4, 4),))).graph_module
    assert [node.target for node in module.graph.nodes if node.op == "call_module"] == ["0", "1"]
    for shape in ((1, 3, 4, 4), (3, 3, 6, 6)):
        x = torch.randn(shape)
        assert torch.equal(module(x), model(x))


class Scaled(nn.Module):
    """Asks for sizes of what was made of images, and of an input that is no batch."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 1)

    def forward(self, x: Tensor, scale: Tensor) -> Tensor:
        x = self.conv(x * scale[:, None, None])
        return x + 1 if x.shape[1] == 4 else x


def test_an_input_without_a_batch_stays_as_long_in_a_larger_batch() -> None:
    model = Scaled().eval()
    inputs = torch.zeros(2, 3, 4, 4), torch.ones(3)
    module = apply("trace", Program(model, inputs)).graph_module
    assert [node.target for node in module.graph.nodes if node.op == "call_module"] == ["conv"]
    x, scale = torch.randn(5, 3, 4, 4), torch.rand(3)
    assert torch.equal(module(x, scale), model(x, scale))


class Timed(nn.Module):
    """Takes a number, and then images."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.fc = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 5, 1)

    def forward(self, time: Tensor, x: Tensor) -> Tensor:
        return self.fc(self.stem(x) * time)


def test_a_number_in_front_of_the_images() -> None:
    gated = instrument(Timed(), (torch.tensor(3.0), torch.zeros(2, 3, 6, 6)))
    assert gated.cost.dense_macs == (3 * 4 + 4 * 5) * 36  # of one example
    compact = shrink(gated.eval())
    inputs = torch.tensor(2.0), torch.randn(5, 3, 6, 6)
    assert torch.equal(compact(*inputs), gated(*inputs))


def test_a_number_of_the_image_is_fixed_where_nothing_else_helps() -> None:
    model = OnTheImage().eval()
    module = apply("trace", Program(model, (torch.zeros(2, 3, 4, 4),))).graph_module
    x = torch.randn(3, 3, 4, 4)
    assert torch.equal(module(x), model(x))
    with pytest.raises(AssertionError, match="traced for inputs of another size"):
        module(torch.zeros(2, 3, 6, 6))


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


class InPlace(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        view = x[:, 0]
        x += 1
        x *= 2
        x[:, 1] = 5.0
        return view + x[:, 1]


def test_what_is_written_in_place_shows_in_views() -> None:
    x = torch.rand(2, 3)
    given, wanted = x.clone(), x.clone()
    traced = apply("trace", Program(InPlace(), (x,))).module
    assert torch.equal(traced(given), InPlace()(wanted))
    assert torch.equal(given, wanted)


class ByRank(nn.Module):
    """Looks up what to do by the number of dimensions, as the layers of einops do."""

    def forward(self, x: Tensor) -> Tensor:
        return x.permute({3: (0, 2, 1), 4: (0, 3, 2, 1)}[x.ndim])


def test_code_that_looks_up_a_rank_is_followed() -> None:
    module = traced_by(nn.Sequential(nn.Conv2d(3, 4, 3), ByRank()), (torch.zeros(1, 3, 8, 8),))
    called = [n.target for n in module.graph.nodes if n.op in ("call_module", "call_method")]
    assert called == ["0", "permute"]
    with pytest.raises(AssertionError, match="another size"):
        module(torch.zeros(3, 8, 8))


class CountsInPlace(nn.Module):
    """Computes with sizes in place, and goes on to use what they were."""

    def forward(self, x: Tensor) -> Tensor:
        size, (height, width) = x.shape, x.shape[2:]
        wide, half, whole = width, x.size(1), 1
        wide *= 2
        half //= 2
        for length in size:
            whole *= length
        size += (1,)
        y = x.reshape(whole).reshape(size)[..., 0].reshape(x.shape)
        return F.interpolate(torch.cat([y[:, half:], y[:, :half]], 1), (wide, width + height))


def test_arithmetic_of_sizes_in_place_changes_no_other_name() -> None:
    net = nn.Sequential(nn.Conv2d(3, 8, 3), CountsInPlace(), nn.Conv2d(8, 4, 1)).eval()
    x = torch.randn(2, 3, 8, 9)
    gated = instrument(net, (x,), budget="keep=1.0").eval()
    for example in (x, torch.randn(3, 3, 7, 6)):
        torch.testing.assert_close(gated(example), net(example))


def test_buffers_are_written_as_the_model_writes_them() -> None:
    net = BY_NAME["by_hand"]
    model, clone = net.model(), net.model()
    attributes = {name: dict(vars(child)) for name, child in model.named_modules()}
    traced = apply("trace", Program(model, net.inputs())).module.train()
    for name, child in model.named_modules():
        assert vars(child).keys() == attributes[name].keys()
    assert all(torch.equal(a, b) for a, b in zip(model.buffers(), clone.buffers(), strict=True))
    for seed in range(3):
        x = net.inputs(4, seed=seed)
        assert torch.equal(traced(*x), clone.train()(*x))
    found, wanted = dict(traced.named_buffers()), dict(clone.named_buffers())
    assert int(wanted["norm.steps"]) == 3
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)


def test_random_numbers_that_python_draws_are_drawn_in_every_step() -> None:
    net = BY_NAME["stochastic_depth"]
    state, drawn = torch.random.get_rng_state(), random.getstate()
    traced = trace(net)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert random.getstate() == drawn
    traced.train()
    torch.manual_seed(0)
    results = {float(traced(*net.inputs()).detach().sum()) for _ in range(20)}
    assert len(results) == 2


def test_a_model_whose_own_code_cannot_be_followed_keeps_it() -> None:
    class Root(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 3, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.conv(x) if random.random() < 0.5 else x

    model, x = Root(), torch.randn(2, 3, 4, 4)
    module = apply("trace", Program(model, (x,))).module
    assert [node.op for node in module.graph.nodes] == ["placeholder", "call_module", "output"]
    results = {float(module(x).detach().sum()) for _ in range(20)}
    assert len(results) == 2
    state = module.origin.state_dict(dict(module.named_parameters()))
    assert list(state) == list(model.state_dict())


def test_a_custom_gradient_stays() -> None:
    net = BY_NAME["custom_gradient"]
    model = net.model()
    traced = apply("trace", Program(model, net.inputs())).module
    gradients = []
    for network in (model, traced):
        network(*net.inputs()).square().sum().backward()
        gradients.append(model.get_parameter("a.weight").grad)
        model.zero_grad()
    assert torch.equal(*gradients)


class Frozen(nn.Module):
    """A part without gradients, in which another part has them again."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c, self.d = (nn.Conv2d(3, 3, 1) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            x = self.a(x)
            with torch.enable_grad():
                x = self.b(x)
            y = self.c(x)
        return self.d(x + y)


def test_the_model_is_left_alone() -> None:
    class Keeps(nn.Module):
        last, calls = None, 0

        def forward(self, x: Tensor) -> Tensor:
            self.last, self.calls = x, self.calls + 1
            return x * torch.arange(3.0)  # which torch.fx keeps on the model

    model, x = Keeps(), torch.ones(2, 3)
    before = dict(vars(model))
    traced = apply("trace", Program(model, (x,))).module
    assert vars(model) == before
    assert torch.equal(traced(x), model(x))


def test_parts_without_gradients_stay_so() -> None:
    model, inputs = Frozen(), (torch.randn(2, 3, 4, 4),)
    with torch.no_grad():  # which is the caller's, and no part of the network
        traced = apply("trace", Program(model, inputs)).module
    traced(*inputs).sum().backward()
    learned = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
    assert learned == {"b.weight", "b.bias", "d.weight", "d.bias"}
    assert torch.is_grad_enabled()
    with torch.no_grad():
        assert not traced(*inputs).requires_grad
        assert not torch.is_grad_enabled()


class Precise(nn.Module):
    """A part in full precision, whatever surrounds it."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = (nn.Conv2d(3, 3, 1) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x)
        with torch.autocast("cpu", enabled=False):
            y = self.b(x.float())
        return y + self.c(x)


def test_the_precision_of_parts_stays() -> None:
    model, inputs = Precise(), (torch.randn(2, 3, 4, 4),)
    traced = apply("trace", Program(model, inputs)).module
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(traced(*inputs), model(*inputs))
    assert not torch.is_autocast_enabled("cpu")


def named(*names: str) -> nn.Module:
    """Make a network with a convolution of each of these names, in a row."""
    model = nn.Sequential()
    for name in names:
        model.add_module(name, nn.Conv2d(3, 3, 1))
    return model


def test_what_a_network_calls_its_parts_is_no_attribute_of_a_gated_one() -> None:
    plain = (torch.zeros(2, 3, 4, 4),)
    gated = instrument(named("a", "b"), plain)
    attach(gated, torch.optim.SGD(gated.parameters(), 0.1))
    gated(*plain).sum().backward()
    gated.eval()(*plain)
    own = {name for name in vars(gated) if name not in vars(nn.Module())}
    assert own <= ATTRIBUTES | set(dir(GatedModule))
    for name in ("graph", "cost", "bank", "select", "steps", "_known"):
        model = named(name, "last")
        gated = instrument(model, plain).eval()
        assert f"{name}.weight" in gated.state_dict()
        torch.testing.assert_close(gated(*plain), reference_of(gated, model).eval()(*plain))
        torch.testing.assert_close(shrink(gated)(*plain), gated(*plain))


@pytest.mark.parametrize("name", ['a"b', "a\\b", "a\nb"])
def test_names_that_no_code_can_quote_are_refused(name: str) -> None:
    with pytest.raises(TraceError, match="give it another name"):
        apply("trace", Program(named(name), (torch.zeros(2, 3, 4, 4),)))


def test_a_gated_network_is_refused_alone_and_inside() -> None:
    """It was gated once more, at the widths of the selection of that moment."""
    x = torch.zeros(2, 3, 8, 8)
    gated = instrument(nn.Sequential(nn.Conv2d(3, 16, 3), nn.Conv2d(16, 4, 3)), x)
    with pytest.raises(TraceError, match="the model is a gated network already"):
        instrument(gated, x)
    with pytest.raises(TraceError, match="'0' is a gated network already"):
        analyze(nn.Sequential(gated, nn.Conv2d(4, 2, 3)), x)
    again = instrument(shrink(gated), x)
    assert again.cost.dense_macs == gated.cost.macs(gated.widths)
