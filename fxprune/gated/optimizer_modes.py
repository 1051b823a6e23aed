"""What optimisers do to all weights at once, beside their steps, they do to resting channels too.

Schedule-free optimisers train at one point, and evaluate at another between that and a third, which
they keep: `eval()` and `train()` move the weights there and back. A channel that rests at the one
point and enters while the others are at the other would be moved back from where it never was.
"""

import contextlib
import weakref
from collections.abc import Callable
from typing import Any

from torch.optim import Optimizer

from fxprune.gated.averages import living
from fxprune.gated.module import GatedModule

_MOVING = ("train", "eval", "sync_lookahead")


def show_all_channels(optimizer: Optimizer) -> None:
    """Show all channels to those methods of an attached optimiser that move all weights.

    They are replaced for this optimiser alone. A copy has its own again.
    """
    for name in _MOVING:
        if hasattr(type(optimizer), name):
            vars(optimizer)[name] = _shown(optimizer, name)


def _shown(optimizer: Optimizer, name: str) -> Callable[..., Any]:
    kind, held = type(optimizer), weakref.ref(optimizer)

    def call(*args: Any, **kwargs: Any) -> Any:
        one = held()
        assert one is not None
        with contextlib.ExitStack() as shown:
            for network in living():
                if isinstance(network, GatedModule) and network.is_driven_by(one):
                    shown.enter_context(network.all_channels())
            return getattr(kind, name)(one, *args, **kwargs)

    return call
