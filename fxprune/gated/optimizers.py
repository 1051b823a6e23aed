"""Rounds: each of the attached optimisers steps once, then channels are exchanged.

The policy sees the gradients before the first step of a round (where optimisers step inside
backward, before each step those that exist by then). Channels are exchanged after the last step of
the round only: an optimiser that has not stepped holds gradients of the channels that execute. An
optimiser whose parameters are all frozen is not waited for. Optimisers that step in a backward
hook, one for each parameter, make one round per backward pass. A round in which an optimiser does
not step (GradScaler skipped it, or it steps seldom) ends without an exchange when there are new
gradients. Optimisers are held weakly.

For example, with the optimisers A and B attached: A, B, exchange; A, B, exchange; A, new gradients
(B was skipped: no exchange), A, B, exchange. Two losses that reach the same layers make A, new
gradients, B, new gradients, A … : no round ends, and that is warned of.
"""

import warnings
import weakref
from collections.abc import Callable, Iterable, Iterator

from torch import Tensor
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from fxprune.budget.schedule import StepSchedule
from fxprune.errors import FxpruneWarning, message

MANY = 64
"""Rounds without an exchange in a row that are warned of."""


class Rounds:
    """The optimisers whose steps drive a network's selection."""

    def __init__(self) -> None:
        self._paces: weakref.WeakKeyDictionary[Optimizer, StepSchedule | None]
        self._paces = weakref.WeakKeyDictionary()
        self._stepped: weakref.WeakSet[Optimizer] = weakref.WeakSet()
        # those with gradients newer than their last step, if several are attached
        self._fresh: weakref.WeakSet[Optimizer] = weakref.WeakSet()
        self._marks: list[RemovableHandle] = []
        self._checked = False  # see `warn_of_unheld`
        self._broken = 0  # rounds in a row that ended without an exchange

    def __contains__(self, optimizer: object) -> bool:
        return any(optimizer is one for one in self._paces)

    def __bool__(self) -> bool:
        return len(self._paces) > 0

    def __deepcopy__(self, memo: dict[int, object]) -> "Rounds":
        return Rounds()  # a copy of a network has no optimiser

    @property
    def paces(self) -> Iterator[StepSchedule]:
        """The schedules of those optimisers that have one."""
        return (pace for pace in [*self._paces.values()] if pace is not None)

    def add(self, optimizer: Optimizer, pace: StepSchedule | None) -> None:
        """Attach an optimiser, in place of those that hold some of the same parameters."""
        own = {id(p) for group in optimizer.param_groups for p in group["params"]}
        for other in [*self._paces]:
            if any(id(p) in own for group in other.param_groups for p in group["params"]):
                self.release(other)
        self._paces[optimizer] = pace
        self.check_again()
        self._mark()

    def holds(self, parameter: Tensor) -> bool:
        """Tell whether an attached optimiser holds a parameter."""
        groups = (group["params"] for one in [*self._paces] for group in one.param_groups)
        return any(parameter is p for each in groups for p in each)

    def release(self, optimizer: Optimizer) -> None:
        """Detach an optimiser."""
        self._paces.pop(optimizer, None)
        self._stepped.discard(optimizer)
        self._mark()

    def _mark(self) -> None:
        """Note which optimisers have new gradients, where there are several."""
        for mark in self._marks:
            mark.remove()
        several = [*self._paces] if len(self._paces) > 1 else []
        self._marks = [
            parameter.register_hook(self._marking(optimizer))  # before any hook that steps
            for optimizer in several
            for group in optimizer.param_groups
            for parameter in group["params"]
            if parameter.requires_grad
        ]

    def _marking(self, optimizer: Optimizer) -> Callable[[Tensor], None]:
        held = weakref.ref(optimizer)

        def mark(_: Tensor) -> None:
            one = held()
            if one is not None:
                self._fresh.add(one)

        return mark

    def check_again(self) -> None:
        """Let `warn_of_unheld` look at the gradients of the next step."""
        self._checked = False

    def warn_of_unheld(self, parameters: Iterable[tuple[str, Tensor]]) -> None:
        """Warn once, after a step, of gradients that no attached optimiser applies.

        Args:
            parameters: the network's exchanged parameters, by name.
        """
        if self._checked:
            return
        self._checked = True
        held = {id(p) for one in self._paces for group in one.param_groups for p in group["params"]}
        for name, parameter in parameters:
            if parameter.grad is not None and id(parameter) not in held:
                text = message(
                    f"no attached optimiser holds the parameter {name}, which has a gradient",
                    why="channels are exchanged after the steps of attached optimisers; another "
                    "that steps later would apply it to other channels",
                    do="call fxprune.attach for each optimiser that steps this network; freeze "
                    "with requires_grad_(False) what none of them trains",
                )
                warnings.warn(text, FxpruneWarning, stacklevel=2)
                return

    @property
    def are_several(self) -> bool:
        """Whether a round may have several steps."""
        return len(self._paces) > 1

    def begins(self, optimizer: Optimizer) -> bool:
        """Tell whether the step that an optimiser is about to take is the first of a round."""
        if optimizer not in self:
            return False
        begins = not self._stepped or optimizer in self._stepped
        begins = begins or any(one in self._fresh for one in self._stepped)
        if begins:
            self._broken += bool(self._stepped)
            self._stepped.clear()
        return begins

    def warn_of_broken(self) -> None:
        """Warn, at the beginning of a round, if those before it ended without an exchange."""
        if self._broken != MANY:
            return
        names = " and ".join(type(one).__name__ for one in self._paces)
        text = message(
            f"the selection has not changed for {MANY} steps",
            why=f"the attached optimisers ({names}) step in turns, each with gradients of its own, "
            "and channels are exchanged once all of them have stepped",
            do="run all backward passes first, then all steps; or give each a network of its own",
        )
        warnings.warn(text, FxpruneWarning, stacklevel=2)

    def ends(self, optimizer: Optimizer) -> bool:
        """Tell whether the step that an optimiser has taken is the last of its round."""
        if optimizer not in self:
            return False
        self._stepped.add(optimizer)
        self._fresh.discard(optimizer)
        if any(one not in self._stepped and _trains(one) for one in [*self._paces]):
            return False
        self._stepped.clear()
        self._broken = 0
        return True


def _trains(optimizer: Optimizer) -> bool:
    return any(p.requires_grad for group in optimizer.param_groups for p in group["params"])


def inside(optimizer: Optimizer) -> list[Optimizer]:
    """Return the optimisers that one wraps."""
    return [value for value in vars(optimizer).values() if isinstance(value, Optimizer)]
