"""Calls as people write them: options, keywords, lists and dicts of tensors, outputs by name."""

from collections import OrderedDict, UserDict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fxprune
from fxprune.errors import TraceError
from fxprune.tracing.trace import trace
from tests.support.topologies.base import randomised

IMAGE = torch.randn(2, 3, 8, 8)


class Base(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 16, 3), nn.Conv2d(16, 4, 3)

    def run(self, x: Tensor) -> Tensor:
        y: Tensor = self.b(self.a(x).relu())
        return y


class Passes(Base):
    def predict(self, x: Tensor, augment: bool = False) -> Tensor:
        return self.run(x.flip(3) if augment else x)

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        return self.predict(x, *args, **kwargs)


class Labelled(Base):
    def forward(self, x: Tensor, labels: Tensor | None = None, **kwargs: Any) -> Any:
        assert not kwargs
        y = self.run(x)
        return y if labels is None else {"logits": y, "loss": (y - labels).square().mean()}


class Several(Base):
    def forward(self, *xs: Tensor) -> Tensor:
        return self.run(sum(xs, torch.zeros(())))


class Nested(Base):
    def forward(self, inputs: dict[str, Any]) -> Tensor:
        return self.run(inputs["rgb"] + inputs["more"][0])


@pytest.mark.parametrize(
    ("model", "inputs", "kwargs"),
    [
        (Passes(), (IMAGE,), {}),
        (Passes(), (IMAGE,), {"augment": True}),
        (Labelled(), (IMAGE,), {}),
        (Labelled(), (IMAGE,), {"labels": torch.zeros(2, 4, 4, 4)}),
        (Labelled(), {"x": IMAGE}, {}),
        (Several(), (IMAGE, IMAGE), {}),
        (Nested(), ({"rgb": IMAGE, "more": [IMAGE]},), {}),
    ],
)
def test_a_network_is_called_as_the_model_is(
    model: nn.Module, inputs: Any, kwargs: dict[str, Any]
) -> None:
    module = trace(model.eval(), *_arguments(inputs, kwargs))
    args, named = _arguments(inputs, kwargs)
    wanted, found = model(*args, **named), module(*args, **named)
    assert type(wanted) is type(found)
    for a, b in zip(_tensors(wanted), _tensors(found), strict=True):
        assert torch.equal(a, b)


def _arguments(inputs: Any, kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    return ((), {**inputs, **kwargs}) if isinstance(inputs, dict) else (inputs, kwargs)


def _tensors(value: Any) -> list[Tensor]:
    return list(value.values()) if isinstance(value, dict) else [value]


def test_options_are_taken_where_they_are_those_of_the_trace() -> None:
    model = Passes()
    plain, flipped = trace(model, (IMAGE,)), trace(model, (IMAGE,), {"augment": True})
    assert torch.equal(plain(IMAGE), plain(x=IMAGE))
    assert torch.equal(flipped(IMAGE, augment=True), model(IMAGE, augment=True))
    with pytest.raises(TypeError, match="augment=True is given, but the network was traced"):
        plain(IMAGE, augment=True)
    with pytest.raises(TypeError, match=r"augment=False is given, .* traced with augment=True"):
        flipped(IMAGE, augment=False)
    labelled = trace(Labelled(), (IMAGE,))
    assert torch.equal(labelled(IMAGE, labels=None), labelled(IMAGE))
    with pytest.raises(TypeError, match="labels=a tensor is given"):
        labelled(IMAGE, labels=IMAGE)


class Named(OrderedDict):  # type: ignore[type-arg]
    """A dict whose entries are attributes as well."""

    def __init__(self, **entries: Any) -> None:
        super().__init__(**entries)
        self.__dict__.update(entries)


@dataclass
class Plain:
    logits: Tensor
    count: int = 1


class Returns(Base):
    def __init__(self, kind: Any) -> None:
        super().__init__()
        self.kind = kind

    def forward(self, x: Tensor) -> Any:
        return self.kind(logits=self.run(x))


@pytest.mark.parametrize("kind", [Named, Plain, OrderedDict])
def test_outputs_keep_their_class_from_training_to_the_file(kind: Any, tmp_path: Path) -> None:
    model = Returns(kind).eval()
    gated = fxprune.instrument(model, (IMAGE,))
    compact = fxprune.shrink(gated.eval())
    for network in (gated, compact):
        result = network(IMAGE)
        assert type(result) is kind
        logits = result["logits"] if kind is OrderedDict else result.logits
        assert logits.shape == (2, 4, 4, 4)
        if kind is Named:
            assert result["logits"] is result.logits
        if kind is Plain:
            assert result.count == 1
    report = fxprune.export_onnx(compact, (IMAGE,), tmp_path / "net.onnx", reference=gated)
    assert report.max_rel_error <= report.tolerance


@pytest.mark.sampled(1)
@pytest.mark.parametrize(
    ("model", "inputs"),
    [
        (Several(), (IMAGE, IMAGE)),
        (Nested(), ({"rgb": IMAGE, "more": [IMAGE]},)),
    ],
)
def test_networks_of_nested_inputs_are_exported(
    model: nn.Module, inputs: Any, tmp_path: Path
) -> None:
    gated = fxprune.instrument(model, inputs)
    compact = fxprune.shrink(gated.eval())
    dense = fxprune.zeroed(gated, model)
    report = fxprune.export_onnx(compact, inputs, tmp_path / "net.onnx", reference=dense)
    assert report.max_rel_error <= report.tolerance
    fxprune.attach(gated.train(), torch.optim.SGD(gated.parameters(), lr=0.1))
    gated(*inputs).square().mean().backward()


@dataclass(frozen=True)
class Batch:
    image: Tensor
    more: list[Any]
    name: str = "any"


class Entries(UserDict):  # type: ignore[type-arg]
    """A mapping that is no dict."""


class WithBatch(Base):
    def forward(self, x: Tensor, batch: Any = None) -> Tensor:
        values = batch if isinstance(batch, Batch) else Batch(batch["image"], batch["more"])
        return self.run(x + values.image + values.more[0])


@pytest.mark.parametrize("kind", [Batch, Named, Entries, "nested"], ids=str)
@torch.no_grad()
def test_objects_of_tensors_are_taken(kind: Any) -> None:
    def batch(x: Tensor) -> Any:
        if kind == "nested":
            return Entries(image=x, more=[Batch(x, []).image])
        return kind(image=x, more=[x + 1])

    model = randomised(WithBatch()).eval()
    gated = fxprune.instrument(model, (IMAGE, batch(IMAGE))).eval()
    other = torch.randn(3, 3, 8, 8)
    wanted = gated(other, batch=batch(other))
    assert wanted.shape == (3, 4, 4, 4)
    assert torch.allclose(fxprune.zeroed(gated, model)(other, batch(other)), wanted, atol=1e-5)
    assert torch.allclose(fxprune.shrink(gated)(other, batch(other)), wanted, atol=1e-5)
    with pytest.raises(TypeError, match="batch has another structure"):
        gated(other, [other])
    if kind is Batch:
        with pytest.raises(TypeError, match="batch_name='other' is given"):
            gated(other, Batch(other, [other], "other"))


class Holds:
    """An object of which nothing is known."""

    def __init__(self) -> None:
        self.image = IMAGE


def test_tensors_in_other_objects_are_no_constants() -> None:
    with pytest.raises(TraceError, match=r"an object of the class Holds .* holds tensors"):
        fxprune.analyze(WithBatch(), (IMAGE, Holds()))


def test_inputs_that_hold_no_tensor_are_refused() -> None:
    with pytest.raises(TraceError, match="there is no tensor among the example inputs"):
        fxprune.analyze(Passes(), (3,))
    with pytest.raises(TraceError, match="they are of the kind Holds"):
        fxprune.analyze(Passes(), (Holds(),))
