"""The check that gradients are applied to the channels that made them.

A gradient belongs to the channels that executed in its backward pass. A step that would apply
gradients to other channels is refused.
"""

from collections.abc import Iterator, Mapping

from torch import Tensor
from torch.utils.weak import TensorWeakRef

from fxprune.bank.exchange import Home
from fxprune.errors import GateError


class Gradients:
    """The gradients of resident parameters, which are the same objects at all selections."""

    def __init__(self, homes: Mapping[str, Home]) -> None:
        self._homes = homes
        self._dropped = False
        self._used: tuple[TensorWeakRef, int] | None = None

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
