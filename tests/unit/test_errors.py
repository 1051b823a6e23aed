"""What a user reads when something is refused, word by word."""

import copy
import linecache
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import fxprune
from fxprune.bank.exchange import Selection
from fxprune.errors import (
    BudgetError,
    ExportError,
    FxpruneError,
    GateError,
    OptionError,
    RunError,
    TraceError,
)
from fxprune.export.pt2 import export_pt2
from tests.support.nets import BY_NAME

IMAGE = torch.zeros(2, 3, 8, 8)


def line_of(code: str) -> str:
    """This file's line with the code, as messages show it."""
    lines = linecache.getlines(__file__)
    number = next(n for n, line in enumerate(lines, 1) if line.strip() == code)
    return f"{__file__}:{number}   {code}".replace(f"{Path.cwd()}/", "")


@pytest.mark.parametrize("kind", [FxpruneError, *FxpruneError.__subclasses__()])
def test_a_refusal_travels_between_processes(kind: type[FxpruneError]) -> None:
    error = kind("cannot do it", at="net.py:3", why="it is odd", do="another thing")
    clone = copy.copy(error)  # by the protocol of pickle
    assert type(clone) is kind
    assert str(clone) == str(error)
    assert "net.py:3" in str(clone)


def small() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 5, 1))


class Two(nn.Module):
    """Takes two images."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3)

    def forward(self, x: Tensor, y: Tensor, scale: float = 1.0) -> Tensor:
        return self.conv(x) + scale * self.conv(y)


class Deep(nn.Module):
    """Whose second layer does not fit its first."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.fc = nn.Conv2d(3, 8, 3), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.a(x))
        return self.fc(x.flatten(1))


def refused(kind: type[FxpruneError], call: Callable[[], Any]) -> str:
    with pytest.raises(FxpruneError) as refusal:
        call()
    assert type(refusal.value) is kind
    assert refusal.value.exit_code == 2
    return str(refusal.value)


@pytest.mark.parametrize(
    ("shape", "code"),
    [((2, 3, 8, 8), "return self.fc(x.flatten(1))"), ((1, 1, 8, 8), "x = F.relu(self.a(x))")],
)
def test_an_input_of_the_wrong_shape(shape: tuple[int, ...], code: str) -> None:
    text = refused(TraceError, lambda: fxprune.instrument(Deep(), (torch.zeros(shape),)))
    what, at, why, do = text.splitlines()
    assert what == f"the model does not run on inputs of shape [{shape}]"
    assert at == f"  at   {line_of(code)}"
    assert why.startswith("  why  RuntimeError: ")  # the rest is torch's
    assert do == (
        "  do   give example inputs of the shape the model takes, with the batch first (for "
        "--input without it); where its code refuses random values (as boxes, or indices), "
        "instrument its backbone alone"
    )


class Slip(nn.Module):
    """A model whose forward has a fault of its own."""

    def __init__(self, fault: str) -> None:
        super().__init__()
        self.body, self.fault = small(), fault

    def forward(self, x: Tensor) -> Any:
        x = self.body(x)
        if self.fault == "name":
            return self.tail(x)
        if self.fault == "returns None":
            return None
        return x.view(1, 2, 3)


@pytest.mark.parametrize(
    ("fault", "code", "do"),
    [
        ("name", "return self.tail(x)", "correct the model's code: model(*example_inputs) should"),
        ("view", "return x.view(1, 2, 3)", "give example inputs of the shape the model takes"),
    ],
)
def test_a_fault_in_the_models_own_code(fault: str, code: str, do: str) -> None:
    text = refused(TraceError, lambda: fxprune.analyze(Slip(fault), IMAGE))
    at = text.splitlines()[1].replace(f"{Path.cwd()}/", "")
    assert at == f"  at   {line_of(code)}"
    assert f"\n  do   {do}" in text


def test_a_model_that_returns_nothing() -> None:
    text = refused(TraceError, lambda: fxprune.analyze(Slip("returns None"), IMAGE))
    assert text.splitlines()[0] == "the model returns no tensor"


def test_an_input_of_another_dtype() -> None:
    text = refused(TraceError, lambda: fxprune.analyze(small(), IMAGE.to(torch.int64)))
    assert text.endswith("give example inputs of the dtype of the weights, torch.float32")


@pytest.mark.parametrize("policy", ["cucb", "utility"])
def test_a_model_on_the_meta_device(policy: str) -> None:
    with torch.device("meta"):
        model = small()
    assert fxprune.analyze(model, IMAGE).groups
    text = refused(GateError, lambda: fxprune.instrument(model, IMAGE, policy, budget="macs=0.5"))
    assert text.startswith("0.weight of the model is on the meta device\n")


def test_example_inputs_on_the_meta_device(tmp_path: Path) -> None:
    example = IMAGE.to("meta")
    compact = fxprune.shrink(fxprune.instrument(small(), example).eval())
    report = fxprune.export_onnx(compact, example, tmp_path / "a.onnx")
    assert report.max_rel_error <= report.tolerance


def test_inputs_that_are_no_tensors() -> None:
    assert refused(TraceError, lambda: fxprune.analyze(small(), [IMAGE])) == (
        "example inputs must be a tensor or a tuple of tensors, not list\n"
        "  do   write (x, y) for several inputs, or a dict for keywords"
    )


@pytest.mark.parametrize(
    ("given", "kind", "said"),
    [
        (
            {"budget": 0.5},
            BudgetError,
            "the budget cannot be 0.5\n  why  it is a float, and no text",
        ),
        ({"policy": None}, OptionError, "the policy cannot be None"),
        ({"keep": 0.5}, BudgetError, 'or budget="keep=0.5" for all layers'),
        ({"floor": [0.5]}, BudgetError, "floor cannot be [0.5]"),
        ({"keep": {"0": "0.5"}}, BudgetError, "keep of '0' cannot be '0.5'"),
        ({"exclude": nn.ReLU()}, BudgetError, "exclude must be patterns of layers"),
        ({"exclude_inputs": [nn.ReLU()]}, BudgetError, "exclude_inputs must be patterns"),
        ({"every": "1"}, OptionError, "every cannot be '1'"),
        ({"seed": "1"}, OptionError, "seed cannot be '1'"),
        ({"seed": -1}, OptionError, "seed cannot be -1"),
        ({"round_to": "8"}, BudgetError, "round_to cannot be '8'"),
        ({"round_to": 2.5}, BudgetError, "round_to cannot be 2.5"),
        ({"example_kwargs": 3}, TraceError, "example_kwargs must be a dict, not int"),
        ({"example_inputs": (1, 3, 8, 8)}, TraceError, "they are of the kind int"),
        ({"example_inputs": IMAGE[:0]}, TraceError, "there is no example among the example inputs"),
        ({"model": nn.LazyConv2d(8, 3)}, TraceError, "the model has lazy layers that have not run"),
        ({"model": nn.Conv2d}, TraceError, "the model is the class Conv2d, and no nn.Module"),
        ({"model": torch.relu}, TraceError, "no nn.Module"),
    ],
)
def test_arguments_of_another_kind(given: Any, kind: type[FxpruneError], said: str) -> None:
    call = {"model": small(), "example_inputs": IMAGE, **given}
    assert said in refused(kind, lambda: fxprune.instrument(**call))


def test_what_is_no_optimizer_and_no_gated_network(tmp_path: Path) -> None:
    gated: Any = fxprune.instrument(small(), IMAGE)
    sgd: Any = "sgd"
    said = refused(GateError, lambda: fxprune.attach(gated, sgd))
    assert said.startswith("cannot attach to the steps of a str")
    optimizer = torch.optim.SGD(gated.parameters(), 0.1)
    steps: Any = "9"
    said = refused(
        OptionError, lambda: fxprune.attach(gated, optimizer, schedule="cubic", steps=steps)
    )
    assert said.startswith("a schedule cannot be planned for '9' steps")
    plain: Any = small()
    assert "cannot save a Sequential" in refused(GateError, lambda: fxprune.save(plain, tmp_path))
    said = refused(GateError, lambda: fxprune.reference_of(plain, plain))
    assert said.startswith("a Sequential has no removed channels\n")
    assert said == refused(GateError, lambda: fxprune.zeroed(plain, plain))
    assert refused(GateError, lambda: fxprune.fold(plain.eval())) == (
        "cannot fold a Sequential\n"
        "  why  which layer a batch norm follows is read from a torch.fx graph\n"
        "  do   give what fxprune.shrink returned, or torch.fx.symbolic_trace(model)"
    )


@pytest.mark.parametrize("call", ["select", "settle"])
def test_what_is_no_selection(call: str) -> None:
    gated = fxprune.instrument(small(), IMAGE)
    said = refused(GateError, lambda: getattr(gated, call)(torch.arange(4)))
    assert said.startswith("cannot select a Tensor\n")


def test_passes_that_are_none() -> None:
    gated = fxprune.instrument(small(), IMAGE).eval()
    number: Any = 3
    assert "the passes cannot be 3" in refused(OptionError, lambda: fxprune.shrink(gated, number))
    assert "the pass cannot be 3" in refused(OptionError, lambda: fxprune.shrink(gated, [number]))


def test_images_with_other_channels(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"to ONNX\n  why  Given groups=1, weight"):
        fxprune.export_onnx(small(), IMAGE[:, :1], tmp_path / "net.onnx")


def test_the_dense_network_of_another() -> None:
    gated = fxprune.instrument(small(), IMAGE)
    for of in (fxprune.zeroed, fxprune.reference_of):
        said = refused(GateError, lambda of=of: of(gated, nn.Linear(3, 3)))
        assert said.startswith("the model is another one than the gated network was made of\n")


def test_paths_that_are_none() -> None:
    gated = fxprune.instrument(small(), IMAGE)
    none: Any = None
    calls: tuple[Callable[[], Any], ...] = (
        lambda: fxprune.save(gated, none),
        lambda: fxprune.load(none, small()),
        lambda: fxprune.export_onnx(small(), IMAGE, none),
        lambda: export_pt2(small(), IMAGE, none),
    )
    for call in calls:
        assert refused(OptionError, call) == (
            "the path cannot be None\n  do   give the name of a file as a text or a pathlib.Path"
        )


def test_models_that_are_none(tmp_path: Path) -> None:
    gated: Any = fxprune.instrument(small(), IMAGE)
    path, none = tmp_path / "gated.safetensors", None
    fxprune.save(gated, path)
    calls: tuple[Callable[[Any], Any], ...] = (
        lambda model: fxprune.load(path, model),
        lambda model: fxprune.export_onnx(model, IMAGE, tmp_path / "a.onnx"),
        lambda model: export_pt2(model, IMAGE, tmp_path / "a.pt2"),
        lambda model: fxprune.prune(model, IMAGE, data="digits", macs=0.5),
        lambda model: fxprune.reference_of(gated, model),
        lambda model: fxprune.zeroed(gated, model),
    )
    for call in calls:
        said = refused(TraceError, lambda call=call: call(none))
        assert said.startswith("the model is None, and no nn.Module")
    said = refused(TraceError, lambda: fxprune.export_onnx(small(), none, tmp_path / "a.onnx"))
    assert said.startswith("example inputs must be a tensor or a tuple of tensors, not NoneType")
    assert list(tmp_path.iterdir()) == [path]


def test_a_tensor_alone_is_one_input(tmp_path: Path) -> None:
    gated = fxprune.instrument(small(), IMAGE)
    assert gated.cost.dense_macs == fxprune.instrument(small(), (IMAGE,)).cost.dense_macs
    compact = fxprune.shrink(gated.eval())
    report = fxprune.export_onnx(compact, IMAGE, tmp_path / "a.onnx")
    assert report.max_rel_error <= report.tolerance


def test_keywords_that_are_all_of_a_plain_forward(tmp_path: Path) -> None:
    class Difference(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = small()

        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            return self.body(x) - 2 * self.body(y)

    given = {"y": torch.zeros(2, 3, 8, 8), "x": IMAGE}
    compact = fxprune.shrink(fxprune.instrument(Difference(), given).eval())
    real = {"x": torch.randn(7, 3, 8, 8), "y": torch.randn(7, 3, 8, 8)}
    report = fxprune.export_onnx(compact, given, tmp_path / "a.onnx", inputs=real)
    assert report.real_examples == 1 + 2 + 7
    assert export_pt2(compact, given, tmp_path / "a.pt2").max_rel_error <= 2e-5


@pytest.mark.parametrize("given", [1, 4])
def test_too_few_and_too_many_inputs(given: int) -> None:
    assert refused(TraceError, lambda: fxprune.analyze(Two(), (IMAGE,) * given)) == (
        f"Two.forward takes 2 inputs, not {given}\n"
        "  do   give one example tensor for each input, the batch first"
    )


def test_a_wrapped_model() -> None:
    wrapped = nn.DataParallel(small())
    assert refused(TraceError, lambda: fxprune.instrument(wrapped, (IMAGE,))) == (
        "the model is wrapped in DataParallel\n"
        "  why  the wrapper is not part of the network\n"
        "  do   instrument the bare model first, and wrap the gated one"
    )


def test_nothing_to_prune() -> None:
    model = nn.Conv2d(3, 5, 1)
    assert refused(GateError, lambda: fxprune.instrument(nn.Sequential(model), (IMAGE,))) == (
        "the model has no channel that could be removed\n"
        "  why  3 channels: the convolution reads a fixed number of channels\n"
        "       5 channels: the model returns these channels\n"
        "  do   `fxprune inspect` shows each pinned channel with its reason"
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"policy": "ucb"}, "unknown policy 'ucb'"),
        ({"policy": "cucb{c=-1}"}, "option 'c' of the policy 'cucb' cannot be -1.0"),
        ({"policy": "cucb{d=1}"}, "the policy 'cucb' has no option 'd'"),
        ({"budget": "flops=0.5"}, "unknown budget 'flops'"),
        ({"budget": "keep=0"}, "the budget keep=0.0 is out of range"),
        ({"budget": "keep=1.5"}, "the budget keep=1.5 is out of range"),
        ({"budget": "macs=nan"}, "the budget macs=nan is out of range"),
        ({"budget": "macs=0.001"}, "the budget macs=0.001 cannot be met"),
        ({"round_to": 0}, "round_to cannot be 0"),
        ({"every": 0}, "every cannot be 0"),
    ],
)
def test_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError) as refusal:
        fxprune.instrument(small(), (IMAGE,), **options)
    assert str(refusal.value).splitlines()[0] == message


def test_attach_to_what_is_not_gated() -> None:
    model = small()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    assert refused(GateError, lambda: fxprune.attach(model, optimizer)) == (
        "cannot attach to a Sequential\n"
        "  why  only a gated network selects channels\n"
        "  do   attach to what fxprune.instrument returned; for a wrapped one, to its .module"
    )


def test_attach_with_anothers_optimizer() -> None:
    model = small()
    gated = fxprune.instrument(model, (IMAGE,))
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    assert refused(GateError, lambda: fxprune.attach(gated, optimizer)) == (
        "the optimiser holds none of the gated network's parameters\n"
        "  why  it was made from another network's, perhaps the original model's\n"
        "  do   make it from gated.parameters()"
    )


@pytest.mark.parametrize(
    ("channels", "widths", "message"),
    [
        ([0, 1], (2,), "1 widths were given for 2 channel groups"),
        ([0, 6], (0, 2), "channel group 0 cannot have width 0"),
        ([0, 1, 2, 3, 4, 6], (5, 1), "channel group 0 cannot have width 5"),
        ([0, 1, 2], (1, 1), "a selection does not fit the channel groups"),
        ([0, 1], (1, 1), "a selection does not fit the channel groups"),
        ([4, 0], (1, 1), "a selection does not fit the channel groups"),
        ([-1, 4], (1, 1), "a selection does not fit the channel groups"),
        ([0, 10], (1, 1), "a selection does not fit the channel groups"),
        ([1, 1, 4], (2, 1), "a selection names a channel twice"),
    ],
)
@pytest.mark.parametrize("call", ["select", "settle"])
def test_selections(channels: list[int], widths: tuple[int, ...], message: str, call: str) -> None:
    net = BY_NAME["raw"]
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 6, 1), nn.Conv2d(6, 5, 1))
    gated = fxprune.instrument(model, net.inputs(dtype=torch.float32))
    before = gated.executing.clone()
    chosen = Selection(torch.tensor(channels), widths)
    text = refused(GateError, lambda: getattr(gated, call)(chosen))
    assert text.splitlines()[0] == message
    assert torch.equal(gated.executing, before)
    assert not gated.settled


def test_shrink_of_what_is_not_gated() -> None:
    assert refused(GateError, lambda: fxprune.shrink(small())) == (
        "cannot shrink a Sequential\n"
        "  why  only a gated network has a selection\n"
        "  do   call fxprune.instrument first"
    )


def test_fold_in_training_mode() -> None:
    compact = fxprune.shrink(fxprune.instrument(small(), (IMAGE,)))
    assert refused(GateError, lambda: fxprune.fold(compact.train())) == (
        "batch norms can only be folded in evaluation mode\n"
        "  why  in training mode their statistics are those of each batch\n"
        "  do   call .eval() first"
    )


def test_the_state_of_another_network() -> None:
    one = fxprune.instrument(small(), (IMAGE,))
    two = fxprune.instrument(nn.Sequential(nn.Conv2d(3, 9, 3), nn.Conv2d(9, 5, 1)), (IMAGE,))
    before = {name: value.clone() for name, value in one.dense_state_dict().items()}
    assert refused(RunError, lambda: one.restore(two.training_state())) == (
        "the saved state belongs to another network\n"
        "  why  these tensors differ: 0.bias, 0.weight, 1.bias, 1.weight, 2.bias\n"
        "  do   load it into the model it was saved from"
    )
    after = one.dense_state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items())
