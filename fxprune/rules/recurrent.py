"""Recurrent layers: RNN, GRU, LSTM.

PyTorch takes them apart into linear layers, which have rules of their own. The columns that consume
an input's channels follow it. The hidden channels are those of the first state, of zeros: layers
and directions, whose states are one tensor, lose the same ones. What a step makes is the state of
the next, which a sequence of one step does not show.
"""

from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn

from fxprune.channels.sizes import ModuleSizes, Sizes
from fxprune.rules.base import ModuleTies, Tie
from fxprune.tracing.code_state import is_users


class StateTies(ModuleTies):
    """The rows of the weights that make a state are the columns of those that read it."""

    keys = (nn.RNNBase,)

    def __call__(self, module: Any) -> Iterator[Tie]:
        """Yield the pair of each layer and direction; the state stays where other code makes it."""
        for name in module._flat_weights_names:
            if not name.startswith("weight_hh"):
                continue
            read = made = _stored(module, name)
            if module.proj_size:
                made = _stored(module, name.replace("_hh", "_hr"))
            if made is not None and read is not None:
                yield (made, 0), (read, 1)
            else:
                for key, weight in module.named_parameters():
                    if "weight_ih" not in key:
                        yield from (((weight, dim), None) for dim in range(weight.dim()))


def _stored(module: Any, name: str) -> Tensor | None:
    """Return the parameter with a weight's rows and columns; None if something else makes it.

    It is the weight itself, or what a norm of PyTorch's makes the weight from.
    """
    own, made = module._parameters, getattr(module, "parametrizations", {})
    known = [own[key] for key in (name, f"{name}_v", f"{name}_orig") if key in own]
    if name in made and not any(is_users(type(part)) for part in made[name]):
        known += [value for value in made[name].parameters() if min(value.shape, default=0) > 1]
    return known[0] if len(known) == 1 else None


class RecurrentAttributes(ModuleSizes):
    """The numbers of features of a recurrent layer's input, state and output."""

    keys = (nn.RNNBase, nn.RNNCellBase)

    def __call__(self, module: Any, sizes: Sizes) -> None:
        inputs = sizes.of("weight_ih_l0") or sizes.of("weight_ih")
        states = sizes.of("weight_hh_l0") or sizes.of("weight_hh")
        if inputs is not None:
            module.input_size = inputs[1]
        if states is not None and not getattr(module, "proj_size", 0):
            module.hidden_size = states[1]  # PyTorch finds no projection between equal widths
