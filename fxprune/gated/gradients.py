"""The check that gradients are applied to the channels that made them.

A gradient belongs to the channels that executed in its backward pass. A step that would apply
gradients to other channels is refused. So is one with gradients that were added to those of the
step before, if channels were exchanged in between. Whether that was done, the next backward pass
sees; whoever adds gradients to a network that another loss trains (a GAN) zeroes them later.
"""

import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from torch import Tensor
from torch.utils.hooks import RemovableHandle
from torch.utils.weak import TensorWeakRef

from fxprune.bank.exchange import Home
from fxprune.errors import GateError


class Gradients:
    """The gradients of resident parameters, which are the same objects at all selections."""

    def __init__(self, homes: Mapping[str, Home]) -> None:
        self._homes = homes
        self._dropped = False
        self._used: tuple[TensorWeakRef, int] | None = None
        self._left: TensorWeakRef | None = None  # a gradient of channels that have left
        self._mark: RemovableHandle | None = None
        self._mixed = False  # whether others were added to it

    def leave(self, trains: Callable[[Tensor], bool]) -> None:
        """Note at an exchange that the channels of the present gradients leave.

        The first gradient of those that are zeroed stands for all.

        Args:
            trains: tells whether an attached optimiser holds a parameter.
        """
        self._mixed, self._left = False, None
        if self._mark is not None:
            self._mark.remove()
        with_gradients = (p for p in self._parameters() if p.grad is not None)
        first = next((p for p in with_gradients if p.requires_grad and trains(p)), None)
        if first is None or first.grad is None:
            return
        self._left = TensorWeakRef(first.grad)
        own, held = weakref.ref(self), TensorWeakRef(first)

        def look(_: Tensor) -> None:
            gradients, parameter = own(), held()
            if gradients is not None and parameter is not None:
                gradients._mixed = gradients._is_left(parameter)
                if not gradients._mixed:  # it was zeroed, and what is added from now on is right
                    gradients._left = None

        parameter: Any = first
        self._mark = parameter.register_hook(look)

    def refuse_mixed(self, parameters: Iterable[Tensor]) -> None:
        """Refuse a step with gradients that were added to those of channels that have left.

        Args:
            parameters: that the step changes; others may be zeroed later.

        Raises:
            GateError: one of them has such gradients.
        """
        if self._mixed and any(map(self._is_left, parameters)):
            raise GateError(
                "the gradients were added to those of other channels",
                why="those of the last step were not zeroed, and the channels have changed since",
                do="call optimizer.zero_grad() before each backward pass that begins a step",
            )

    def _is_left(self, parameter: Tensor) -> bool:
        gradient = parameter.grad
        if gradient is None or self._left is None or gradient is not self._left():
            return False
        return bool(gradient.any())

    def drop(self) -> None:
        """Forget all gradients, because their channels are about to leave."""
        first = next((p.grad for p in self._parameters() if p.grad is not None), None)
        self._dropped = self._dropped or (first is not None and not self._is_used(first))
        for parameter in self._parameters():
            parameter.grad = None

    def used(self) -> None:
        """Note after a step that the present gradients were applied.

        The first gradient stands for all, since they come from the same backward passes.
        """
        first = next((p.grad for p in self._parameters() if p.grad is not None), None)
        self._used = None if first is None else (TensorWeakRef(first), first._version)

    def check(self) -> None:
        """Check the gradients before a step.

        Raises:
            GateError: the only gradients there were are of other channels.
        """
        gone = self._dropped and all(p.grad is None for p in self._parameters())
        self._dropped = False
        if gone:
            raise GateError(
                "the gradients are those of other channels than the ones that execute",
                why="the selection changed between backward and the optimiser's step",
                do="call optimizer.step() or zero_grad() before what changes the selection",
            )

    def _is_used(self, gradient: Tensor) -> bool:
        if self._used is None:
            return False
        known, version = self._used
        return known() is gradient and gradient._version == version

    def _parameters(self) -> Iterator[Tensor]:
        return (home.tensor() for home in self._homes.values())
