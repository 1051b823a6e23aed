"""Gradients that wait for their step while other channels execute.

A gradient belongs to the channels that executed when it was made. `eval()` in the midst of an
accumulation shows other channels; `train()` brings back the former ones, and their gradients. A
step that would apply gradients to channels that did not make them is refused.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.weak import TensorWeakRef

from fxprune.bank.exchange import Home
from fxprune.errors import GateError


class _Waiting(NamedTuple):
    """A gradient that was put aside, and the zeros in its place.

    The zeros tell what a loop did meanwhile: `zero_grad` takes them away or writes to them.
    """

    parameter: Tensor
    gradient: Tensor
    zeros: Tensor
    version: int

    @property
    def untouched(self) -> bool:
        return self.parameter.grad is self.zeros and self.zeros._version == self.version


class Pending:
    """The gradients of residents; a parameter stays the same object at all selections."""

    def __init__(self, homes: Mapping[str, Home]) -> None:
        self._homes = homes
        self._waiting: list[_Waiting] = []
        self._dropped = False
        self._used: tuple[TensorWeakRef, int] | None = None

    @contextmanager
    def aside(self) -> Iterator[None]:
        """Around the exchange by which evaluation begins; gradients that were used are dropped."""
        taken = [(p, p.grad) for p in self._parameters() if p.grad is not None]
        for parameter, _ in taken:
            parameter.grad = None
        if taken and self._is_used(taken[0][1]):
            taken = []
        yield
        self._waiting = []
        for parameter, gradient in taken:
            zeros = torch.zeros_like(parameter.detach())
            parameter.grad = zeros
            self._waiting.append(_Waiting(parameter, gradient, zeros, zeros._version))

    @contextmanager
    def back(self) -> Iterator[None]:
        """Around the exchange by which training goes on."""
        untouched = [waiting for waiting in self._waiting if waiting.untouched]
        for waiting in untouched:
            waiting.parameter.grad = None
        self._waiting = []
        self.drop()
        yield
        for waiting in untouched:
            waiting.parameter.grad = waiting.gradient

    def drop(self) -> None:
        """Forgets all gradients, because their channels are about to leave."""
        first = next((p.grad for p in self._parameters() if p.grad is not None), None)
        self._dropped = self._dropped or (first is not None and not self._is_used(first))
        for parameter in self._parameters():
            parameter.grad = None

    def used(self) -> None:
        """To be called after a step: what lies about from now on was applied.

        One gradient stands for all, since they are of the same backward passes.
        """
        first = next((p.grad for p in self._parameters() if p.grad is not None), None)
        self._used = None if first is None else (TensorWeakRef(first), first._version)

    @contextmanager
    def moving(self, function: Callable[[Tensor], Tensor]) -> Iterator[None]:
        """Around what `nn.Module.to` and its kind do to the parameters."""
        untouched = [waiting for waiting in self._waiting if waiting.untouched]
        yield
        self._waiting = []
        for parameter, gradient, _, _ in untouched:
            zeros = torch.zeros_like(parameter.detach())
            parameter.grad = zeros
            moved = _Waiting(parameter, function(gradient), zeros, zeros._version)
            self._waiting.append(moved)

    def check(self) -> None:
        """To be called before a step.

        Raises:
            GateError: the only gradients there were are of other channels.
        """
        waits = bool(self._waiting) and all(waiting.untouched for waiting in self._waiting)
        gone = self._dropped and all(p.grad is None for p in self._parameters())
        self._waiting, self._dropped = [], False
        if waits or gone:
            raise GateError(
                "the gradients are those of other channels than the ones that execute",
                why="the selection changed between backward and the optimiser's step"
                + (", for evaluation" if waits else ""),
                do="step first" + (", or call train() before the step" if waits else ""),
            )

    def _is_used(self, gradient: Tensor) -> bool:
        if self._used is None:
            return False
        known, version = self._used
        return known() is gradient and gradient._version == version

    def _parameters(self) -> Iterator[Tensor]:
        return (home.tensor() for home in self._homes.values())
