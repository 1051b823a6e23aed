"""Recurrent layers: PyTorch takes them apart into linear layers, which have rules of their own.

The columns that consume an input's channels follow it. The hidden width stays: the layers make
their first state of that many zeros.
"""

from typing import Any

from torch import nn

from fxprune.channels.sizes import ModuleSizes, Sizes


class RecurrentAttributes(ModuleSizes):
    """The number of features of a recurrent layer's input."""

    keys = (nn.RNNBase, nn.RNNCellBase)

    def __call__(self, module: Any, sizes: Sizes) -> None:
        shape = sizes.of("weight_ih_l0") or sizes.of("weight_ih")
        if shape is not None:
            module.input_size = shape[1]
