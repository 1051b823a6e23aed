"""Copies of modules are what copy.deepcopy makes."""

import copy
import functools
from collections import deque
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from fxprune.tracing.deepcopy import copied


class Odd(nn.Module):
    """Attributes of many kinds, shared and nested."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.same = self.conv
        self.tied = nn.Linear(2, 2)
        self.tied.weight = nn.Parameter(torch.randn(2, 2, requires_grad=False))
        self.other = nn.Linear(2, 2)
        self.other.weight = self.tied.weight
        self.table = {"a": [1, 2], (1, 2): self.conv}
        self.plain = torch.ones(3)
        self.pair = (1, [2])
        self.register_buffer("mean", torch.zeros(2), persistent=False)
        self.register_forward_hook(hook)


def hook(*_: Any) -> None:
    """Does nothing."""


class Own(nn.Module):
    """Says itself how it is copied."""

    def __deepcopy__(self, memo: dict[int, Any]) -> "Own":
        clone = memo[id(self)] = Own()
        clone.mark = "by itself"
        return clone


class Stateful(nn.Module):
    """Says itself what its state is."""

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"secret": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state | {"restored": True})


def test_nothing_is_shared_that_deepcopy_does_not_share() -> None:
    odd = Odd()
    clone = copied(odd, {})
    reference = copy.deepcopy(odd)
    assert type(clone) is Odd
    assert clone.__dict__.keys() == reference.__dict__.keys()
    assert clone.same is clone.conv is clone.table[(1, 2)] is not odd.conv
    assert clone.other.weight is clone.tied.weight is not odd.tied.weight
    assert clone.table["a"] == [1, 2]
    assert clone.table["a"] is not odd.table["a"]
    assert clone.pair[1] is not odd.pair[1]
    assert torch.equal(clone.plain, odd.plain)
    assert clone.plain is not odd.plain
    assert clone._non_persistent_buffers_set == {"mean"}
    clone._non_persistent_buffers_set.add("x")
    assert odd._non_persistent_buffers_set == {"mean"}
    assert list(clone._forward_hooks.values()) == [hook]
    clone.register_forward_hook(hook)
    assert len(odd._forward_hooks) == 1
    for name, tensor in odd.state_dict().items():
        assert torch.equal(clone.state_dict()[name], tensor)
        assert clone.state_dict()[name].data_ptr() != tensor.data_ptr()


def test_the_memo_is_honoured() -> None:
    odd, other = Odd(), nn.Conv2d(1, 1, 1)
    memo: dict[int, Any] = {id(odd.conv): other}
    clone = copied(odd, memo)
    assert clone.conv is clone.same is other
    assert memo[id(odd)] is clone


def test_what_modules_say_of_their_copies_holds() -> None:
    stateful = Stateful()
    stateful.secret = 3
    weighted = parametrizations.weight_norm(nn.Linear(2, 3))
    clone = copied(nn.Sequential(Own(), stateful, weighted), {})
    assert clone[0].mark == "by itself"
    assert clone[1].secret is None
    assert clone[1].restored
    x = torch.randn(1, 2)
    assert torch.equal(clone[2](x), weighted(x))
    assert clone[2].parametrizations.weight[0] is not weighted.parametrizations.weight[0]


KEPT: dict[str, Callable[[Tensor], Any]] = {
    "list": lambda y: [{"features": y}],
    "tuple": lambda y: (1, y),
    "deque": lambda y: deque([y]),
    "object": lambda y: functools.partial(print, y),
}


@pytest.mark.parametrize("kind", KEPT)
def test_features_that_a_forward_kept_are_copied(kind: str) -> None:
    model = nn.Conv2d(3, 4, 3)
    model.kept = KEPT[kind](model(torch.randn(1, 3, 4, 4)))
    clone = copied(model, {})
    assert type(clone.kept) is type(model.kept)
    assert clone.kept is not model.kept


def test_views_of_tables_are_views_of_the_copies() -> None:
    model = nn.ModuleDict({"a": nn.Conv2d(1, 1, 1), "b": nn.ReLU()})
    model.names, model.layers = model.keys(), model.values()
    clone = copied(nn.Sequential(model), {})[0]
    clone["c"] = nn.Sigmoid()
    assert list(clone.names) == ["a", "b", "c"]
    assert next(iter(clone.layers)) is clone["a"]
    assert list(model.names) == ["a", "b"]
