"""Shape functions give what PyTorch itself does on meta tensors."""

import operator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from fxprune import analyze
from fxprune.analysis import label_mode
from fxprune.analysis.shape_functions import call_of, known_results
from tests.support.topologies import classic
from tests.support.topologies.base import Net

aten = torch.ops.aten
X = torch.empty(2, 4, 3, 3, device="meta")
GATE, VECTOR = torch.empty(2, 4, 1, 1, device="meta"), torch.empty(4, device="meta")
HALF = torch.empty(2, 4, 3, 3, device="meta", dtype=torch.float16)
OUTER = torch.empty(1, 1, 3, 3, device="meta")
LINE, CUBE = torch.empty(2, 4, 9, device="meta"), torch.empty(2, 4, 5, 6, 7, device="meta")
LAST = torch.empty(2, 4, 3, 3, device="meta").to(memory_format=torch.channels_last)
PLANE, ROWS = torch.empty(4, 3, 1, device="meta"), torch.empty(6, 9, device="meta")
KERNEL = torch.empty(6, 2, 3, 3, device="meta")
WINDOW = ([1, 1], [1, 1], [1, 1], False, [0, 0])


class Calls(TorchDispatchMode):
    """Notes the ATen calls that take tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[Any, tuple[Any, ...], dict[str, Any]]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is not aten.empty.memory_format:
            self.seen.append((func, args, kwargs or {}))
        return func(*args, **kwargs or {})


def looks(out: Any) -> list[tuple[Any, ...]]:
    parts = out if isinstance(out, tuple) else (out,)
    return [(tuple(part.shape), part.stride(), part.dtype) for part in parts]


@pytest.mark.parametrize(
    ("op", "args"),
    [
        (aten.relu.default, (X,)),
        (aten.hardtanh.default, (X, 0, 6)),
        (aten.mul.Tensor, (GATE, X)),
        (aten.div.Tensor, (X, 2.0)),
        (aten.cat.default, ([X, GATE.expand(2, 4, 3, 3).contiguous()], -3)),
        (aten.cat.default, ([LINE, LINE],)),
        (aten.mean.dim, (X, [-1, -2], True)),
        (aten.mean.dim, (CUBE, [-1, -2], True)),
        (aten.relu.default, (LAST,)),
        (aten.mul.Tensor, (LAST, VECTOR.view(4, 1, 1))),
        (aten.add.Tensor, (LAST, LAST)),
        (aten.linear.default, (LINE, ROWS, None)),
        (aten.linear.default, (LINE.transpose(1, 2), ROWS[:, :4], VECTOR.expand(6, 4)[:, 0])),
        (aten.convolution.default, (X, KERNEL, None, *WINDOW, 2)),
        (aten.convolution.default, (LAST, KERNEL, None, *WINDOW, 2)),
        (aten.convolution.default, (X.transpose(2, 3), KERNEL, None, *WINDOW, 2)),
        (aten.convolution.default, (X, KERNEL, None, [2, 1], [3, 2], [2, 3], False, [0, 0], 2)),
    ],
    ids=str,
)
def test_the_result_looks_like_pytorchs(op: Any, args: tuple[Any, ...]) -> None:
    told = known_results(op, args)
    assert told is not None
    several, forms = told
    assert not several
    assert [tuple(forms[0])] == [*looks(op(*args))]  # type: ignore[arg-type]


def test_the_first_result_of_a_batch_norm_looks_like_pytorchs() -> None:
    args = (X, *[VECTOR] * 4, True, 0.1, 1e-5)
    told, out = known_results(aten.native_batch_norm.default, args), aten.native_batch_norm(*args)
    assert told is not None
    assert told[0]
    assert len(told[1]) == len(out)
    assert told[1][0] == looks(out)[0]


def test_what_works_in_place_gives_its_argument() -> None:
    assert known_results(aten.add_.Tensor, (X, GATE)) == (False, [0])
    assert known_results(aten.add_.Tensor, (GATE, X)) is None


@pytest.mark.parametrize(
    ("op", "args"),
    [
        *[
            (aten.mul.Tensor, args)
            for args in (
                (X, HALF),
                (GATE, OUTER),
                (X.transpose(1, 2), 2.0),
                (LAST, X),
                (LAST, PLANE),
                (X.long(), 2.0),
                (X, 2j),
                (torch.zeros(3), 2.0),
            )
        ],
        (aten.linear.default, (LINE, ROWS[:, :4], None)),
        (aten.linear.default, (VECTOR, ROWS[:, :4], None)),
        (aten.linear.default, (LINE, ROWS, VECTOR)),
        (aten.native_layer_norm.default, (LINE, [4], VECTOR, None, 1e-5)),
        (aten.native_layer_norm.default, (HALF, [3], None, ROWS[0, :3], 1e-5)),
        (aten.cat.default, ([X, HALF], 1)),
        (aten.cat.default, ([X, OUTER], 1)),
        (aten.cat.default, ([X, VECTOR[:0]], 1)),
        (aten.cat.default, ([X, X], 4)),
        (aten.mean.dim, (X, [2, 3])),
        (aten.convolution.default, (X, KERNEL, None, *WINDOW, 1)),
        (aten.convolution.default, (X, KERNEL, VECTOR, *WINDOW, 2)),
        (aten.convolution.default, (X[0], KERNEL, None, *WINDOW, 2)),
        (aten.convolution.default, (GATE, KERNEL, None, [1, 1], [0, 0], *WINDOW[2:], 2)),
        (aten.convolution.default, (HALF, KERNEL, None, *WINDOW, 2)),
        (aten.native_batch_norm.default, (X, *[VECTOR[:3]] * 4, True, 0.1, 1e-5)),
        (aten.native_batch_norm.default, (LINE[:, :, 0], *[VECTOR] * 4, True, 0.1, 1e-5)),
    ],
    ids=str,
)
def test_what_is_not_plain_is_left_to_pytorch(op: Any, args: tuple[Any, ...]) -> None:
    assert known_results(op, args) is None


LAYERS = [
    (nn.Conv1d(4, 6, 3, padding=1), LINE),
    (nn.Conv2d(4, 8, 3, stride=2, groups=2, bias=False), X),
    (nn.Conv3d(4, 6, (1, 3, 3), dilation=2), CUBE),
    (nn.BatchNorm1d(4), LINE),
    (nn.BatchNorm1d(4, affine=False), LINE[:, :, 0].contiguous()),
    (nn.BatchNorm2d(4, momentum=None), X),
    (nn.BatchNorm3d(4), CUBE),
    (nn.AdaptiveAvgPool2d(1), X),
    (nn.AdaptiveAvgPool2d((1, 1)), X),
    (nn.Hardsigmoid(), X),
    (nn.Hardsigmoid(inplace=True), X),
    (nn.Hardswish(), X),
    (nn.Hardswish(inplace=True), X),
    (nn.LeakyReLU(0.3), X),
    (nn.LeakyReLU(0.3, inplace=True), X),
    (nn.LayerNorm(9), LINE),
    (nn.LayerNorm((4, 9), elementwise_affine=False), LINE),
    (nn.LayerNorm(4), LINE.transpose(1, 2)),
    (nn.ReLU(), X),
    (nn.ReLU(inplace=True), X),
    (nn.ReLU6(), X),
    (nn.ReLU6(inplace=True), X),
    (nn.Sigmoid(), X),
    (nn.SiLU(), X),
    (nn.SiLU(inplace=True), X),
    (nn.Tanh(), X),
]
FUNCTIONS = [
    (operator.add, (X, GATE), {}),
    (operator.iadd, (X, 2), {}),
    (operator.mul, (X, 2.0), {}),
    (operator.imul, (X, X), {}),
    (torch.add, (X, 1), {}),
    (torch.mul, (X, GATE), {}),
    (torch.relu, (X,), {}),
    (torch.sigmoid, (X,), {}),
    (Tensor.add, (X, GATE), {}),
    (Tensor.add_, (X, 2.0), {}),
    (Tensor.mul, (X, GATE), {}),
    (Tensor.mul_, (X, X), {}),
    (Tensor.relu, (X,), {}),
    (Tensor.relu_, (X,), {}),
    (Tensor.sigmoid, (X,), {}),
    (torch.cat, ([X, X],), {}),
    (torch.cat, ((X, X), 1), {}),
    (torch.cat, ([X, X],), {"dim": 1}),
]


def named(value: object) -> str | None:
    """The part of a test's name: the same in every process, unlike the text of a function."""
    return str(value) if isinstance(value, nn.Module) else getattr(value, "__name__", None)


@pytest.mark.parametrize(
    ("target", "args", "kwargs"),
    [*[(layer, (x,), {}) for layer, x in LAYERS], *FUNCTIONS],
    ids=named,
)
@torch.no_grad()
def test_a_plain_call_comes_to_what_pytorch_makes_of_it(
    target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> None:
    if isinstance(target, nn.Module):
        target = target.to("meta").eval()
    told = call_of(target, args, kwargs)
    with Calls() as calls:
        out = target(*args, **kwargs)
    ((func, given, named),) = calls.seen
    assert told is not None
    assert told[0] is func
    assert listed(told[1]) == listed(given)
    assert not named
    results = known_results(*told)
    assert results is not None
    first = results[1][0]
    assert out is told[1][first] if isinstance(first, int) else first == looks(out)[0]


@pytest.mark.parametrize(
    ("target", "args", "kwargs"),
    [
        (nn.Conv2d(4, 6, 3, padding="same"), (X,), {}),
        (nn.Conv2d(4, 6, 3, padding=1, padding_mode="circular"), (X,), {}),
        (nn.BatchNorm2d(4, track_running_stats=False).eval(), (X,), {}),
        (nn.BatchNorm2d(4).eval(), (LINE,), {}),
        (nn.BatchNorm2d(4).train(), (X,), {}),
        (nn.AdaptiveAvgPool2d(2), (X,), {}),
        (nn.utils.parametrizations.weight_norm(nn.Conv2d(4, 6, 3)), (X,), {}),
        (nn.ReLU(), (), {"input": X}),
        (operator.add, (1, X), {}),
        (torch.add, (X, X), {"alpha": 2}),
        (torch.cat, ([X, X],), {"axis": 1}),
    ],
    ids=named,
)
def test_other_calls_are_left_to_pytorch(
    target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> None:
    assert call_of(target, args, kwargs) is None


def test_a_layer_with_code_of_its_users_is_left_to_pytorch() -> None:
    hooked, patched = nn.ReLU(), nn.ReLU()
    hooked.register_forward_hook(lambda *call: call[-1][:, :2])
    patched.forward = torch.sigmoid  # type: ignore[method-assign]
    assert call_of(hooked, (X,), {}) is None
    assert call_of(patched, (X,), {}) is None


def listed(value: Any) -> Any:
    """The arguments of a call, in lists, tensors by their identity and look."""
    if isinstance(value, (list, tuple)):
        return [listed(part) for part in value]
    return id(value) if isinstance(value, Tensor) else value


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("x", [GATE[:, :, 0, 0], LINE.transpose(1, 2), LAST.movedim(1, 3)], ids=str)
@torch.no_grad()
def test_a_linear_layer_looks_like_what_pytorch_takes_apart(x: Tensor, bias: bool) -> None:
    layer = nn.Linear(4, 6, bias, device="meta")
    call = call_of(layer, (x,), {})
    assert call is not None
    assert call[0] is aten.linear.default
    told = known_results(*call)
    assert told is not None
    assert told[1] == looks(layer(x))


@pytest.mark.parametrize("net", classic.NETS, ids=lambda net: net.name)
def test_without_them_an_analysis_finds_the_same(net: Net, monkeypatch: pytest.MonkeyPatch) -> None:
    model, inputs = net.model(), net.inputs()
    graph = analyze(model, inputs)
    monkeypatch.setattr(label_mode, "known_results", lambda *_: None)
    other = analyze(model, inputs)
    assert str(graph) == str(other)
    assert graph.macs_terms == other.macs_terms
