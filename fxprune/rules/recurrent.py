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
from fxprune.rules.base import ModuleTies


class StateTies(ModuleTies):
    """The rows of the weights that make a state are the columns of those that read it."""

    keys = (nn.RNNBase,)

    def __call__(self, module: Any) -> Iterator[tuple[tuple[Tensor, int], tuple[Tensor, int]]]:
        """Yield the pair of each layer and direction."""
        for name, weight in module.named_parameters(recurse=False):
            if name.startswith("weight_hh"):
                made = getattr(module, name.replace("_hh", "_hr")) if module.proj_size else weight
                yield (made, 0), (weight, 1)


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
