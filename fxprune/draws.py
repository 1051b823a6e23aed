"""The random numbers that are drawn beside a network, and how to draw the same ones again."""

import random
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor

_Access = tuple[Callable[[Any], Any], Callable[[Any, Any], Any], Callable[[Any, int], Any]]

_GENERATORS: dict[type, _Access] = {
    torch.Generator: (
        torch.Generator.get_state,
        torch.Generator.set_state,
        torch.Generator.manual_seed,
    ),
    random.Random: (random.Random.getstate, random.Random.setstate, random.Random.seed),
    np.random.RandomState: (
        np.random.RandomState.get_state,
        np.random.RandomState.set_state,
        np.random.RandomState.seed,
    ),
    np.random.BitGenerator: (
        lambda own: own.state,
        lambda own, state: setattr(own, "state", state),
        lambda own, seed: setattr(own, "state", type(own)(seed).state),
    ),
    np.random.Generator: (
        lambda own: own.bit_generator.state,
        lambda own, state: setattr(own.bit_generator, "state", state),
        lambda own, seed: setattr(own.bit_generator, "state", type(own.bit_generator)(seed).state),
    ),
}
"""How to read, set and seed what code of its own draws from, as `self.rng = Random(0)`."""

_KINDS = tuple(_GENERATORS)


def is_generator(value: object) -> bool:
    """Tell whether random numbers are drawn from a value, other than everyone's."""
    return isinstance(value, _KINDS) and not isinstance(value, random.SystemRandom)


def _access(own: object) -> _Access:
    return next(_GENERATORS[kind] for kind in type(own).__mro__ if kind in _GENERATORS)


def seed_all(seed: int) -> None:
    """Set everyone's random numbers that follow."""
    torch.default_generator.manual_seed(seed)
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        torch.cuda.manual_seed_all(seed)  # before, it would take effect later, in the user's code
    random.seed(seed)
    np.random.seed(seed % 2**32)


def seed_own(generators: Iterable[Any], seed: int) -> None:
    """Set the random numbers that follow of these generators."""
    for own in generators:
        _access(own)[2](own, seed)


class OwnDraws:
    """The state of a model's own generators."""

    def __init__(self, generators: Iterable[Any]) -> None:
        self._states = [(own, _access(own)[0](own)) for own in generators]

    def __eq__(self, other: object) -> bool:
        assert isinstance(other, OwnDraws)
        return all(_same(a, b) for (_, a), (_, b) in zip(self._states, other._states, strict=True))

    def put_back(self) -> None:
        """Give the generators the state that they had then."""
        for own, state in self._states:
            _access(own)[1](own, state)


class Draws:
    """The state of what random numbers are drawn from: everyone's, and a model's own generators."""

    def __init__(self, generators: Iterable[Any] = ()) -> None:
        self._numpy = np.random.get_state()
        self._python = random.getstate()
        self._torch = torch.random.get_rng_state()
        on_gpu: bool = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
        self._cuda = torch.cuda.get_rng_state_all() if on_gpu else []
        self._own = OwnDraws(generators)

    def __eq__(self, other: object) -> bool:
        assert isinstance(other, Draws)
        return (
            self._python == other._python
            and torch.equal(self._torch, other._torch)
            and all(map(torch.equal, self._cuda, other._cuda))
            and all(map(np.array_equal, self._numpy, other._numpy))
            and self._own == other._own
        )

    def put_back(self) -> None:
        """Make the random numbers that follow those that would have followed then."""
        random.setstate(self._python)
        torch.random.set_rng_state(self._torch)
        if self._cuda:
            torch.cuda.set_rng_state_all(self._cuda)
        np.random.set_state(self._numpy)
        self._own.put_back()


def _same(a: Any, b: Any) -> bool:
    """Tell whether two states of generators are equal, with arrays at any depth."""
    if isinstance(a, (Tensor, np.ndarray)):
        return bool((a == b).all())
    if isinstance(a, dict):
        return _same(list(a.values()), list(b.values()))
    if isinstance(a, (list, tuple)):
        return all(map(_same, a, b))
    return bool(a == b)
