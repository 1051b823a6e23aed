"""The user's model is as it was, in depth, after a success and after a refusal."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import utils
from torch.nn.utils.parametrizations import spectral_norm

import fxprune
from fxprune.errors import FxpruneError
from tests.support.cli import python
from tests.support.untouched import changes, described

IMAGE = torch.randn(2, 3, 8, 8)


class Holder:
    """An object of the model's own."""

    def __init__(self) -> None:
        self.grid: list[Any] = [torch.zeros(1)]


class Fills(nn.Module):
    """Fills containers of every kind, attributes and hook tables at its first call."""

    def __init__(self, wrong: bool) -> None:
        super().__init__()
        self.a, self.b, self.wrong = nn.Conv2d(3, 16, 3), nn.Conv2d(16, 4, 3), wrong
        self.cache: dict[str, Any] = {}
        self.seen: set[str] = set()
        self.rows, self.own, self.hooked, self.last = [1], Holder(), False, None
        self.count = torch.zeros(3)
        self.register_buffer("total", torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        if not self.hooked:
            self.a.register_forward_hook(lambda *_: None)
            self.hooked = True
        y = self.b(self.a(x).relu())
        if "grid" not in self.cache:
            self.cache["grid"] = torch.zeros_like(y[:1]) + 1
        self.own.grid[0] = self.cache["grid"]
        self.seen.add("forward")
        self.rows.append(2)
        self.count += 1
        self.total = self.total + 1
        self.last = y
        if self.wrong:
            y = self.b(y)  # which takes 16 channels
        return y + self.own.grid[0]


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("wrong", [False, True])
def test_nothing_in_the_model_changes(training: bool, wrong: bool) -> None:
    model = Fills(wrong).train(training)
    before = described(model)
    if wrong:
        with pytest.raises(FxpruneError):
            fxprune.instrument(model, (IMAGE,))
    else:
        fxprune.instrument(model, (IMAGE,))
    assert changes(before, described(model)) == []


@pytest.mark.filterwarnings("ignore:.*weight_norm. is deprecated")
@pytest.mark.parametrize("norm", [spectral_norm, utils.spectral_norm, utils.weight_norm])
def test_what_a_norm_of_a_weight_keeps_stays_in_training_mode(norm: Callable[..., Any]) -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), norm(nn.Conv2d(8, 8, 3)), nn.Conv2d(8, 4, 1))
    before = described(model.train())
    fxprune.instrument(model, (IMAGE,))
    assert changes(before, described(model)) == []


@pytest.mark.parametrize("kind", [nn.RNN, nn.LSTM, nn.GRU])
def test_the_weights_that_a_recurrent_layer_notes_stay_its_own(kind: type[nn.RNNBase]) -> None:
    class Recurrent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Conv1d(3, 8, 3), kind(8, 4, batch_first=True)

        def forward(self, x: Tensor) -> Any:
            return self.b(self.a(x).transpose(1, 2))[0]

    model = Recurrent()
    before = described(model)
    fxprune.instrument(model, (IMAGE[:, :, 0],))
    assert changes(before, described(model)) == []


def _scaled(model: nn.Module) -> None:
    for parameter in model.parameters():
        parameter.data.mul_(0.9)


def _replaced(model: nn.Module) -> None:
    for _, parameter in model.named_parameters():
        parameter.data = parameter.data * 0.9


@torch.no_grad()
def _copied(model: nn.Module) -> None:
    for tensor in model.state_dict().values():
        tensor.copy_(tensor * 0.9)


def _listed(model: Any) -> None:
    for parameter in model.listed:
        parameter.detach().mul_(0.9)


def _by_name(model: Any) -> None:
    model.weight.data.mul_(0.9)


class Body(nn.Module):
    """A layer with code of its own, which is traced beside a root that keeps its code."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x).view(-1, 8, 6, 6)


class Teaches(nn.Module):
    """Writes into the parameters of a teacher in its forward; the root keeps its code or not."""

    def __init__(self, write: Callable[[Any], None], keeps: bool) -> None:
        super().__init__()
        self.student, self.teacher = Body(), nn.Conv2d(3, 8, 3)
        self.teacher.listed = list(self.teacher.parameters())  # type: ignore[assignment]
        self.write, self.keeps = write, keeps
        self.head = nn.Conv2d(8, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        self.write(self.teacher)
        y = self.student(x) * self.teacher(x).sigmoid()
        if self.keeps and y.abs().max() < 0:  # asks for what is in a tensor
            y = y + 1
        return self.head(y)


@pytest.mark.sampled(4)
@pytest.mark.parametrize("keeps", [False, True])
@pytest.mark.parametrize("write", [_scaled, _replaced, _copied, _listed, _by_name])
def test_parameters_that_forward_writes_to_stay(write: Callable[[Any], None], keeps: bool) -> None:
    model = Teaches(write, keeps)
    before = described(model)
    fxprune.instrument(model, (IMAGE,))
    assert changes(before, described(model)) == []


def test_a_change_is_seen() -> None:
    model = Fills(False)
    before = described(model)
    model(IMAGE)
    found = changes(before, described(model))
    assert {"model.cache", "model.seen", "model.rows", "model.last"} <= {
        path.partition("[")[0] for path in found
    } | set(found)


@pytest.mark.slow
def test_what_torch_remembers_of_itself_is_not_of_the_trace() -> None:
    """It finds its constructors once, which has not to be while a trace replaces some of them."""
    code = (
        "import torch, fxprune\n"
        "from tests.support.nets import BY_NAME\n"
        "net = BY_NAME['resnet_projection']\n"
        "fxprune.instrument(net.model(), net.inputs())\n"
        "with torch.device('meta'):\n"
        "    assert torch.empty(1).is_meta\n"
    )
    python("-c", code, folder=Path(__file__).parents[3])


@pytest.mark.parametrize("write", [_scaled, _replaced, _copied, _by_name])
def test_a_forward_that_writes_to_parameters_still_does(write: Callable[[Any], None]) -> None:
    model = Teaches(write, keeps=False)
    dense = copy.deepcopy(model)
    gated = fxprune.instrument(model, (IMAGE,), policy="random")
    gated.spend(1.0)
    with torch.no_grad():
        for _ in range(3):
            torch.testing.assert_close(gated.train()(IMAGE), dense(IMAGE))


class Noisy(nn.Module):
    """Draws from a generator of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 4, 1)
        self.generator = torch.Generator().manual_seed(3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        return self.head(x + torch.rand(x.shape[2:], generator=self.generator))


def test_a_generator_of_the_models_own_draws_on_as_before() -> None:
    model = Noisy()
    before = model.generator.get_state()
    gated = fxprune.instrument(model, (torch.zeros(2, 3, 8, 8),))
    assert torch.equal(model.generator.get_state(), before)
    fxprune.shrink(gated)
    assert torch.equal(model.generator.get_state(), before)
