"""Modules that tracing cannot follow keep their code, and their channels go all the same."""

import copy
import math
import pickle  # noqa: TID251 - what it wrote itself
import random
import warnings
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import fxprune
from fxprune.errors import GateError
from tests.support.law import at_random, choose, gap, zeroed
from tests.support.plain import Plain
from tests.support.topologies.base import randomised
from tests.support.untouched import changes, described

IMAGES = torch.randn(4, 3, 8, 8)


class Attention(nn.Module):
    """Holds its widths as numbers."""

    def __init__(self, n: int, heads: int = 4) -> None:
        super().__init__()
        self.n, self.heads = n, heads
        self.qkv, self.o = nn.Linear(n, 3 * n), nn.Linear(n, n)

    def forward(self, x: Tensor) -> Tensor:
        b, _, h, w = x.shape
        y = self.qkv(x.flatten(2).transpose(1, 2))
        y = y.view(b, h * w, 3, self.heads, self.n // self.heads)
        q, k, v = y.permute(2, 0, 3, 1, 4)
        y = ((q @ k.transpose(-2, -1)).softmax(-1) @ v).transpose(1, 2).reshape(b, h * w, self.n)
        return x + self.o(y).transpose(1, 2).reshape(b, self.n, h, w)


class Halves(nn.Module):
    """Holds its widths as numbers, and is called several times."""

    def __init__(self, n: int) -> None:
        super().__init__()
        self.n, self.f, self.g = n, nn.Conv2d(n, 2 * n, 1), nn.Conv2d(n, n, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.f(x).view(x.shape[0], 2, self.n, *x.shape[2:])
        return self.g(y[:, 0] * y[:, 1].sigmoid())


class EachImage(Plain):
    def forward(self, x: Tensor) -> Tensor:
        y = self.wide(x)
        return torch.cat([self.c(y[i : i + 1]) for i in range(x.size(0))])


class EachOfThem(Plain):
    def forward(self, x: Tensor) -> Tensor:
        return self.c(torch.stack([part * (n + 1) for n, part in enumerate(self.wide(x))]))


class PartOfTheBatch(Plain):
    def forward(self, x: Tensor) -> Tensor:
        n, y = int(x.size(0) * 0.5), self.wide(x)
        return self.c(torch.cat([y[:n] * 0.5, y[n:]]))


class ByValue(Plain):
    def forward(self, x: Tensor) -> Tensor:
        y = self.wide(x)
        while y.abs().max() > 2:
            y = y / 2
        return self.c(y)


class ByCaughtError(Plain):
    def forward(self, x: Tensor) -> Tensor:
        y = self.wide(x)
        try:
            if not bool((y > -1e9).all()):
                raise ValueError("too small")
        except ValueError:
            y = y * 0
        return self.c(y)


class ByErrorOfTheAnalysis(Plain):
    """Would go another way where tensors have no values."""

    def forward(self, x: Tensor) -> Tensor:
        y = self.wide(x)
        try:
            y = y * len(y.mean((1, 2, 3)).tolist())
        except Exception:
            y = y.flip(1)
        return self.c(y)


def activation(x: Tensor) -> Tensor:
    return x.relu() if x.dim() == 4 else x


with warnings.catch_warnings():
    warnings.simplefilter("ignore", FutureWarning)  # scripts are deprecated
    scripted = torch.jit.script(activation)


class Scripted(Plain):
    """Calls a function of C++, which takes what says that it is a tensor for the memory of one."""

    def forward(self, x: Tensor) -> Tensor:
        return self.c(scripted(self.wide(x)))


class ByType(Plain):
    """Asks for a type in several ways."""

    def forward(self, x: Tensor, other: Tensor | None = None) -> Tensor:
        y = self.wide(x)
        if isinstance(
            y,
            (Tensor, list),
        ) and all(isinstance(part, Tensor) for part in (x, y)):
            y = y.flip(1)
        match y:
            case Tensor():
                y = y.roll(3, 1)
        own = isinstance(self.c.weight, nn.Parameter) and type(self.c.bias) is nn.Parameter
        if type(y) is Tensor and own and not isinstance(y, nn.Parameter):
            y = y.flip(1)
        if y.__class__ is Tensor and type(y.shape[1]) is int and isinstance(ByType, type):
            y = y.roll(5, 1)
        return self.c(y) if not isinstance(other, Tensor) else other


class ByPlace(Plain):
    """Asks where a tensor is, and asks for values there only."""

    def forward(self, x: Tensor) -> Tensor:
        y = self.wide(x)
        if y.mean().item() < 1e9 and y.device.type == "cpu":
            y = y.flip(1) * torch.arange(3, device=y.device).sum().item()
        return self.c(y.roll(3, 1) if y.is_cpu and not y.is_meta else y)


class ByTypeName(Plain):
    """Asks for the name of a type, in code that is kept."""

    def forward(self, x: Tensor) -> Tensor:
        y = self.wide(x)
        if y.mean().item() < 1e9:
            y = y * torch.ones(1, y.shape[1], 1, 1).type(y.type())
        return self.c(y)


class ByMask(Plain):
    """Takes channels, and places, by masks."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mask", torch.arange(24) % 3 == 0)

    def forward(self, x: Tensor) -> Tensor:
        y = self.wide(x)
        y = torch.cat([y[:, self.mask], y[:, ~self.mask]], 1)
        low = y.mean(1) < 0.1
        return self.c(y) * y.permute(0, 2, 3, 1)[low].abs().mean()


class ByMode(Plain):
    """Has another head in training, behind a branch on a value."""

    def __init__(self) -> None:
        super().__init__()
        self.aux = nn.Conv2d(24, 7, 1)

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        y = self.wide(x)
        if y.mean().item() > 1e9:
            y = y + 1
        return (self.c(y), self.aux(y)) if self.training else self.c(y)


class ByChance(Plain):
    def forward(self, x: Tensor) -> Tensor:
        y = self.a(x).relu()
        if not self.training or np.random.rand() > 0.5:
            y = y * 2
        y = self.b(y)
        if self.training and (torch.rand(1) < 0.5 or random.random() < 0.5):
            y = y.relu()
        return self.c(y)


class Numbers(Plain):
    """Makes tensors and NumPy's numbers of its widths."""

    def __init__(self) -> None:
        super().__init__()
        self.steps = torch.tensor([8.0, 16.0])

    def forward(self, x: Tensor) -> Tensor:
        y = self.wide(x)
        y = y / torch.tensor(y.shape[1]).sqrt() + torch.tensor([y.shape[1], 2.0]).sum()
        y = y / np.sqrt(y.size(1)) + np.float64(2) * self.steps[1] + float(self.steps[0])
        return self.c(y)


class MadeInForward(Plain):
    def forward(self, x: Tensor) -> Tensor:
        y = nn.Upsample(scale_factor=2)(self.b(nn.ReLU()(self.a(x))))
        return self.c(nn.Sequential(nn.ReLU(), nn.MaxPool2d(2))(y))


class Tokens(Plain):
    """Puts tokens in a square, whose side is not a number that tracing can follow."""

    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Linear(24, 24)

    def forward(self, x: Tensor) -> Tensor:
        y = self.mix(self.wide(x).flatten(2).transpose(1, 2)).transpose(1, 2)
        side = math.isqrt(y.shape[2])
        return self.c(y.unflatten(2, (side, side)))


class SomeImages(Plain):
    """Works on one image at a time, with no images before the first and behind the last."""

    def forward(self, x: Tensor) -> Tensor:
        y = self.wide(x)
        for n in range(len(y)):
            if y[n].amax() > 0.5:
                y = torch.cat([y[:n], y[n : n + 1].tanh(), y[n + 1 :]])
        return self.c(y)


class Experts(Plain):
    """Gives each image to one of two layers, by where a condition holds."""

    def __init__(self) -> None:
        super().__init__()
        self.other = nn.Conv2d(16, 24, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.a(x)
        first, out = x.mean((1, 2, 3)) > 0, 0
        for chosen, expert in ((first, self.b), (~first, self.other)):
            (here,) = torch.where(chosen)
            out = out + torch.zeros_like(expert(y)).index_add(0, here, expert(y[here]))
        return self.c(out)


class ExpertsByNumber(Experts):
    """A mixture of experts of which each sees the images that a router gives to it."""

    def __init__(self) -> None:
        super().__init__()
        self.gate, self.parts = nn.Linear(16, 2), nn.ModuleList([self.b, nn.Conv2d(16, 24, 1)])

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x).relu()
        weight, chosen = self.gate(x.mean((2, 3))).max(1)
        out = x.new_zeros(x.shape[0], self.c.in_channels, *x.shape[2:])
        for number, part in enumerate(self.parts):
            mask = chosen == number
            if mask.any():
                out[mask] = part(x[mask]) * weight[mask].view(-1, 1, 1, 1)
        return self.c(out)


class ExpertsAdded(ExpertsByNumber):
    """The same, added by the numbers of the images."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x).relu()
        weight, chosen = self.gate(x.mean((2, 3))).topk(1)
        out = x.new_zeros(x.shape[0], self.c.in_channels, *x.shape[2:])
        for number, part in enumerate(self.parts):
            images, _ = torch.where(chosen == number)
            out.index_add_(0, images, part(x[images]) * weight[images, 0, None, None, None])
        return self.c(out)


class ExpertsIfAny(Experts):
    """More experts than images, each of which runs if it has any."""

    def __init__(self) -> None:
        super().__init__()
        others = [nn.Conv2d(16, 24, 1) for _ in range(5)]
        self.gate, self.parts = nn.Linear(16, 6), nn.ModuleList([self.b, *others])

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x).relu()
        weight, chosen = self.gate(x.mean((2, 3))).max(1)
        out = x.new_zeros(x.shape[0], self.c.in_channels, *x.shape[2:])
        for number, part in enumerate(self.parts):
            (images,) = torch.where(chosen == number)
            if images.numel() > 0:
                out[images] = part(x[images]) * weight[images, None, None, None]
        return self.c(out)


class Repeats(Plain):
    """Repeats numbers as often as a tensor says."""

    def forward(self, x: Tensor) -> Tensor:
        means = x.mean((1, 2, 3))
        return self.c(self.wide(x) * means.repeat_interleave((means > 0).long() + 1).mean())


class SizesInATensor(Plain):
    """Reads its sizes out of a tensor."""

    def forward(self, x: Tensor) -> Tensor:
        y = self.wide(x)
        _, c, h, w = torch.tensor(y.shape).tolist()
        return self.c(y.view(-1, c, h * w).view(-1, c, h, w))


class Blocks(nn.Module):
    """Stops between its blocks by a value; the blocks hold their widths as numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Conv2d(3, 16, 3, padding=1), nn.Linear(16, 5)
        self.blocks = nn.ModuleList([Halves(16), Attention(16), Halves(16)])
        self.scale = nn.Parameter(torch.rand(1, 16, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x) * self.scale
        for block in self.blocks:
            x = block(x)
            if x.abs().max() > 1e8:
                break
        return self.head(x.mean((2, 3)))


class Inside(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.blocks, self.o = Blocks(), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.o(self.blocks(x).relu())


class Twice(nn.Module):
    """Calls one block on images of two sizes."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.block = nn.Conv2d(3, 16, 3, padding=1), Halves(16)
        self.down, self.head = nn.Conv2d(16, 16, 3, 2, 1), nn.Conv2d(16, 4, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y = self.block(self.a(x))
        z = self.block(self.down(y))
        if z.sum() > 1e9:
            z = z * 0
        return self.head(y), self.head(z)


class Joined(Blocks):
    """Joins tensors inside a child, where a rule looks into labels, before it asks for values."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([Paired(16), Halves(16)])


class Paired(Halves):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(torch.cat([x, x], 1).view(x.shape[0], 2, self.n, *x.shape[2:])[:, 0])


class OneOrTheOther(Plain):
    """Has a layer that its code never uses, and two more, of which a number decides."""

    def __init__(self) -> None:
        super().__init__()
        self.other, self.unused = nn.Conv2d(16, 24, 1), nn.Conv2d(16, 24, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.a(x)
        return self.c(self.b(y) if float(y.mean()) < 1 else self.other(y).flip(1))


class OfTwoConditions(OneOrTheOther):
    """Has a layer that runs only where two conditions hold."""

    def forward(self, x: Tensor) -> Tensor:
        y = self.a(x)
        return self.c(self.other(y) if y.max() > 99 and y.min() < -99 else self.b(y))


class ReadInPython(Plain):
    """Computes with the channels' means in NumPy."""

    def forward(self, x: Tensor) -> Tensor:
        y = self.wide(x)
        return self.c(y * float(np.asarray(y.detach().mean((0, 2, 3))).max()))


class Near(nn.Module):
    """Calls a layer of what it is a part of, which is no child of its own."""

    def __init__(self, parent: nn.Module) -> None:
        super().__init__()
        self.conv, self.parents = nn.Conv2d(16, 16, 1), [parent]
        vars(self)["parent"] = parent

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x).relu()
        return self.parent.b(x) if x.sum() > 0 else self.parents[0].b(-x)


class OfItsParent(Plain):
    def __init__(self) -> None:
        super().__init__()
        self.part = Near(self)

    def forward(self, x: Tensor) -> Tensor:
        return self.c(self.part(self.a(x).relu()))


class LikelyNumbers(Plain):
    """Compares with a distribution, which checks its parameters."""

    def forward(self, x: Tensor) -> Tensor:
        y = self.wide(x)
        return self.c(torch.distributions.Normal(y, y.abs() + 1).log_prob(torch.zeros_like(y)))


KEPT: dict[Callable[[], nn.Module], float] = {
    EachImage: 0.3,
    EachOfThem: 0.3,
    PartOfTheBatch: 0.3,
    ByValue: 0.3,
    ByCaughtError: 0.3,
    ByErrorOfTheAnalysis: 0.3,
    Scripted: 0.3,
    ByType: 0.3,
    ByPlace: 0.3,
    ByTypeName: 0.3,
    ByMask: 0.6,
    ByMode: 0.3,
    ByChance: 0.3,
    Numbers: 0.3,
    MadeInForward: 0.3,
    Tokens: 0.3,
    SomeImages: 0.3,
    Experts: 0.3,
    ExpertsByNumber: 0.4,
    ExpertsAdded: 0.4,
    ExpertsIfAny: 0.4,
    Repeats: 0.3,
    SizesInATensor: 0.3,
    Blocks: 0.45,
    Inside: 0.45,
    Twice: 0.35,
    Joined: 0.45,
    OneOrTheOther: 0.3,
    OfTwoConditions: 0.3,
    ReadInPython: 0.55,
    OfItsParent: 0.3,
    LikelyNumbers: 0.3,
}
"""The networks, and the share of their macs that is kept at most when half of the channels are."""


@pytest.mark.sampled(10)
@pytest.mark.parametrize("kind", KEPT, ids=lambda kind: kind.__name__)
def test_the_law_holds_and_channels_go(kind: type[nn.Module]) -> None:
    torch.manual_seed(0)
    model = randomised(kind())
    before = described(model)
    gated = fxprune.instrument(model, (IMAGES,))
    assert changes(before, described(model)) == []
    graph = gated.channels
    assert gated.cost.macs(gated.widths) <= KEPT[kind] * gated.cost.dense_macs
    names = {name for name, _ in model.named_modules()}
    assert {group.name for group in graph.groups} <= names
    assert dict(gated.named_parameters()).keys() == dict(model.named_parameters()).keys()
    model.eval(), gated.eval()
    for seed, batch in enumerate((4, 5)):
        chosen = at_random(graph, seed)
        gated.settle(chosen)
        x = torch.randn(batch, 3, 8, 8)
        with torch.no_grad():
            wanted = gated(x)
            assert gap(wanted, fxprune.shrink(gated)(x)) < 1e-5
            if not graph.mixing:
                assert gap(wanted, zeroed(model, gated, chosen)(x)) < 1e-5
    gated.settle(choose(graph, graph.layout.sizes, seed=3))
    with torch.no_grad():
        assert gap(model(x), gated(x)) < 1e-5


class Scaled(Plain):
    """Divides by a number of channels, which NumPy works out."""

    def forward(self, x: Tensor) -> Tensor:
        y = self.wide(x)
        return self.c(y / float(np.prod(y.shape[1:])))


class ScaledByATensor(Plain):
    """The same, by a tensor's value."""

    def forward(self, x: Tensor) -> Tensor:
        y = self.wide(x)
        return self.c(y / torch.tensor(y.shape[1]).sqrt().item())


class Filled(Plain):
    """The same, by a tensor that is filled with it."""

    def forward(self, x: Tensor) -> Tensor:
        y = self.wide(x)
        return self.c(y * torch.full((1, y.shape[1], 1, 1), float(np.prod(y.shape[1:]))))


@pytest.mark.parametrize("kind", [Scaled, ScaledByATensor, Filled], ids=lambda kind: kind.__name__)
def test_code_that_computes_with_the_number_of_channels_mixes(kind: type[nn.Module]) -> None:
    model = randomised(kind())
    gated = fxprune.instrument(model, IMAGES).eval()
    assert len(gated.channels.mixing) == 1
    with torch.no_grad():
        assert gap(gated(IMAGES), fxprune.shrink(gated)(IMAGES)) < 1e-5
    with pytest.raises(GateError, match="another function than the compact one"):
        fxprune.zeroed(gated, model)


def test_the_law_holds_where_two_conditions_do() -> None:
    model = randomised(OfTwoConditions()).eval()
    gated = fxprune.instrument(model, IMAGES).eval()
    gated.settle(chosen := at_random(gated.channels, 1))
    x = 1000 * IMAGES
    with torch.no_grad():
        wanted = gated(x)
        assert gap(wanted, fxprune.shrink(gated)(x)) < 1e-5
        assert gap(wanted, zeroed(model, gated, chosen)(x)) < 1e-5


@pytest.mark.sampled(2)
@pytest.mark.parametrize("kind", [ByMode, ByChance, Blocks], ids=lambda kind: kind.__name__)
def test_they_train(kind: type[nn.Module]) -> None:
    gated = fxprune.instrument(kind(), (IMAGES,), policy="random", every=1)
    optimizer = torch.optim.SGD(gated.parameters(), lr=1e-3)
    fxprune.attach(gated, optimizer)
    for _ in range(4):
        out = gated.train()(IMAGES)
        loss = sum(part.square().mean() for part in (out if isinstance(out, tuple) else (out,)))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        assert torch.isfinite(gated.eval()(IMAGES)).all()


@pytest.mark.slow
@torch.no_grad()
def test_copies_and_files_of_them(tmp_path: object) -> None:
    torch.manual_seed(0)
    gated = fxprune.instrument(Blocks(), (IMAGES,)).eval()
    compact, wanted = fxprune.shrink(gated), gated(IMAGES)
    assert torch.equal(copy.deepcopy(gated)(IMAGES), wanted)
    assert gap(wanted, copy.deepcopy(compact)(IMAGES)) < 1e-5
    assert gap(wanted, pickle.loads(pickle.dumps(compact))(IMAGES)) < 1e-5  # noqa: S301
    path = f"{tmp_path}/gated"
    fxprune.save(gated, path)
    assert torch.equal(fxprune.load(path, Blocks()).eval()(IMAGES), wanted)
    assert compact.state_dict().keys() == Blocks().state_dict().keys()
    compact.load_state_dict(compact.state_dict())


class OfLengths(nn.Module):
    """Makes a mask as long as the longest of its inputs, which no other numbers would give."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv1d(3, 8, 3, padding=1), nn.Conv1d(8, 8, 3, padding=1)

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        mask = torch.arange(int(lengths.max().item())) < lengths[:, None]
        y = self.b(self.a(x).relu() * mask[:, None])
        return (y * mask[:, None]).sum((1, 2)) / lengths


def test_lengths_are_those_of_the_example() -> None:
    torch.manual_seed(0)
    model = OfLengths().double().eval()
    gated = fxprune.instrument(model, (torch.randn(2, 3, 9).double(), torch.tensor([9, 4]))).eval()
    assert gated.channels.layout.sizes == (8, 8)
    for example in ((torch.randn(2, 3, 9), [9, 4]), (torch.randn(3, 3, 7), [2, 7, 5])):
        inputs = example[0].double(), torch.tensor(example[1])
        with torch.no_grad():
            assert gap(fxprune.shrink(gated)(*inputs), gated(*inputs)) <= 1e-12
            assert gap(fxprune.reference_of(gated, model)(*inputs), gated(*inputs)) <= 1e-12


class OfTasks(nn.Module):
    """Has a layer for each task, which a number among its inputs chooses."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 8, 1), nn.ModuleList(nn.Conv2d(8, 6, 1) for _ in range(5))
        self.c = nn.Conv2d(6, 4, 1)

    def forward(self, x: Tensor, task: Tensor) -> Tensor:
        return self.c(self.b[task.item()](self.a(x).relu()).relu())


def test_a_number_among_the_inputs_chooses_a_layer() -> None:
    torch.manual_seed(0)
    model = OfTasks().double().eval()
    gated = fxprune.instrument(model, (torch.randn(2, 3, 4, 4).double(), torch.tensor(1))).eval()
    assert gated.channels.layout.sizes == (8, 6)
    compact, reference = fxprune.shrink(gated), fxprune.reference_of(gated, model)
    for task in map(torch.tensor, range(5)):
        x = torch.randn(3, 3, 4, 4).double()
        with torch.no_grad():
            assert gap(compact(x, task), gated(x, task)) <= 1e-12
            assert gap(reference(x, task), gated(x, task)) <= 1e-12


class Nested(nn.Module):
    """Keeps its code or is followed, by turns, around another one of its kind."""

    def __init__(self, depth: int) -> None:
        super().__init__()
        self.conv, self.depth = nn.Conv2d(8, 8, 1), depth
        self.part = Nested(depth - 1) if depth else nn.Conv2d(8, 8, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(self.part(x).relu())
        assert x.shape[1] == self.conv.out_channels
        return -x if self.depth % 2 and x.sum() > 0 else x


def test_what_is_nested_is_explored_once(monkeypatch: pytest.MonkeyPatch) -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 1), Nested(3), nn.Conv2d(8, 4, 1)).double().eval()
    calls = []

    def counted(module: nn.Module, x: Tensor) -> Tensor:
        calls.append(1)
        return nn.Module.__call__(module, x)

    monkeypatch.setattr(Nested, "__call__", counted)
    gated = fxprune.instrument(model, (torch.randn(2, 3, 4, 4).double(),))
    assert len(gated.channels.groups) == 6
    assert len(calls) < 1500


class Adding(nn.Module):
    """Adds what it is given to what it makes of it, on one of its paths, if it is told to."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.adds = nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 1), False

    def forward(self, x: Tensor) -> Tensor:
        if x.sum() > 1e9:
            return self.a(x) + x if self.adds else self.a(x)
        return self.b(x)


class Sized(nn.Module):
    """Writes the shape of what a part of it returns."""

    def __init__(self) -> None:
        super().__init__()
        self.part = Adding()

    def forward(self, x: Tensor) -> Tensor:
        return self.part(x).view(-1, 8, 4, 4)


class Telling(nn.Module):
    """Tells a part inside a part what to do, and calls it with the same tensor each time."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.sized = nn.Conv2d(3, 8, 1), Sized()
        self.heads = nn.ModuleList(nn.Conv2d(8, 4, 1) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        x = -self.a(x) if x.sum() > 1e9 else self.a(x)
        results = []
        for adds, head in zip((False, True), self.heads, strict=True):
            self.sized.part.adds = adds
            results.append(head(self.sized(x)))
        return results[0] + results[1]


def test_what_is_nested_is_explored_in_each_state() -> None:
    gated = fxprune.instrument(Telling().double().eval(), (torch.randn(2, 3, 4, 4).double(),))
    gated.settle(at_random(gated.channels, seed=1))
    compact = fxprune.shrink(gated).eval()
    for images in (torch.randn(2, 3, 4, 4), torch.full((2, 3, 4, 4), 1e9)):
        for sign in (1, -1):
            with torch.no_grad():
                wanted = gated.eval()(sign * images.double())
                assert gap(wanted, compact(sign * images.double())) <= 1e-12
