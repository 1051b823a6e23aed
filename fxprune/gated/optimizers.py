"""Rounds: each of the attached optimisers steps once, then channels change places.

Before the first step of a round the policy sees the gradients; after the last one channels may be
exchanged. In between they may not, since an optimiser that has not stepped holds gradients of the
channels that execute. A round in which one is missing, since GradScaler skipped it or since it
steps seldom, ends without an exchange when there are new gradients. Optimisers are held weakly.
"""

import weakref
from collections.abc import Iterator

from torch import Tensor
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from fxprune.budget.schedule import Pace


class Rounds:
    """The optimisers whose steps drive a network's selection."""

    def __init__(self) -> None:
        self._paces: weakref.WeakKeyDictionary[Optimizer, Pace | None]
        self._paces = weakref.WeakKeyDictionary()
        self._stepped: weakref.WeakSet[Optimizer] = weakref.WeakSet()
        self._fresh = False  # there are gradients newer than the last step, if several are attached
        self._marks: list[RemovableHandle] = []

    def __contains__(self, optimizer: object) -> bool:
        return any(optimizer is one for one in self._paces)

    def __deepcopy__(self, memo: dict[int, object]) -> "Rounds":
        return Rounds()  # a copy of a network has no optimiser

    @property
    def paces(self) -> Iterator[Pace]:
        """The shares of the network that their steps spend by themselves."""
        return (pace for pace in [*self._paces.values()] if pace is not None)

    def add(self, optimizer: Optimizer, pace: Pace | None) -> None:
        """Attaches one, in place of those that hold some of the same parameters."""
        own = {id(p) for group in optimizer.param_groups for p in group["params"]}
        for other in [*self._paces]:
            if any(id(p) in own for group in other.param_groups for p in group["params"]):
                self.release(other)
        self._paces[optimizer] = pace
        self._mark()

    def release(self, optimizer: Optimizer) -> None:
        """Detaches one."""
        self._paces.pop(optimizer, None)
        self._stepped.discard(optimizer)
        self._mark()

    def _mark(self) -> None:
        """Takes note of new gradients where there are several optimisers."""
        for mark in self._marks:
            mark.remove()
        several = [*self._paces] if len(self._paces) > 1 else []
        groups = (group for optimizer in several for group in optimizer.param_groups)
        parameters = (p for group in groups for p in group["params"] if p.requires_grad)
        self._marks = [p.register_post_accumulate_grad_hook(self._new) for p in parameters]

    def _new(self, _: Tensor) -> None:
        self._fresh = True

    def begins(self, optimizer: Optimizer) -> bool:
        """Whether a step that it is about to take is the first of a round."""
        if optimizer not in self:
            return False
        if self._stepped and not self._fresh and optimizer not in self._stepped:
            return False
        self._fresh = False
        self._stepped.clear()
        return True

    def ends(self, optimizer: Optimizer) -> bool:
        """Whether the step that it has taken is the last of a round."""
        if optimizer not in self:
            return False
        self._stepped.add(optimizer)
        if len(self._stepped) < len(self._paces):
            return False
        self._stepped.clear()
        return True
