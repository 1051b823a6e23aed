"""Per-channel saliency: what one step says about the channels that executed.

With a the activation at a channel's gate point and g its gradient, the Taylor saliency of a
channel is the mean over the samples of |sum over positions of g * a| (arXiv 2007.01486). Summed
over the batch before the absolute value, it is free: behind an affine norm

    sum g * a = gamma * dL/dgamma + beta * dL/dbeta,

and behind a bare convolution it is sum w * dL/dw + b * dL/db, since a is linear in both. A
channel that several layers make (a residual stage) has the sum of theirs.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from fxprune.groups import Axis, ChannelGraph, Gate

Read = Callable[[Tensor, int], Tensor]
"""From a parameter and a dimension, a value for each position along it: float32 [length]."""


@dataclass(frozen=True, eq=False)
class Meter:
    """Measures the executed channels of a network.

    Attributes:
        channels: the channel graph, whose gates say which parameters to read.
        tensors: the compact parameters by name.
        slot_of: for an axis, the slot of each compact position, int64 [length]; K where fixed.
        total: K, the number of executed channels.

    Every measure returns float32 [K], at least 0.
    """

    channels: ChannelGraph
    tensors: Mapping[str, Tensor]
    slot_of: Callable[[Axis], Tensor]
    total: int

    def batch(self) -> Tensor:
        """|sum of g * a| over the batch, from the parameters' gradients; 0 where there is none."""
        return self._read(self.channels.gates, _taylor)

    def sample(self, taps: Mapping[int, Tensor]) -> Tensor:
        """The mean over samples of |sum of g * a|, as the taps saw it in this step's backward.

        Args:
            taps: by the number of its gate, float32 [compact positions]; gates without a tap are
                read as in `batch`.
        """
        gates = self.channels.gates
        seen = self._read((g for number, g in enumerate(gates) if number not in taps), _taylor)
        for number, values in taps.items():
            name, dim = gates[number].parameters[0]
            self._add(seen, self.channels.axes[name][dim], values)
        return seen

    def magnitude(self) -> Tensor:
        """The L2 norm of a channel's slices of the weights that make it."""
        return self._read(self.channels.makers, _square).sqrt()

    def bn_scale(self) -> Tensor:
        """|gamma| of the norm at the gate point; behind a bare layer the norm of its weights."""
        firsts = (Gate(gate.parameters[:1]) for gate in self.channels.gates)
        return self._read(firsts, lambda parameter, dim: _square(parameter, dim).sqrt())

    def _read(self, gates: Iterable[Gate], read: Read) -> Tensor:
        device = next(iter(self.tensors.values())).device
        seen = torch.zeros(self.total + 1, device=device)  # the last takes the fixed positions
        for gate in gates:
            signed: dict[Axis, Tensor] = {}
            for name, dim in gate.parameters:
                axis, value = self.channels.axes[name][dim], read(self.tensors[name], dim)
                signed[axis] = signed[axis] + value if axis in signed else value
            for axis, value in signed.items():
                self._add(seen, axis, value)
        return seen[: self.total]

    def _add(self, seen: Tensor, axis: Axis, values: Tensor) -> None:
        seen.index_add_(0, self.slot_of(axis), values.abs())


def _taylor(parameter: Tensor, dim: int) -> Tensor:
    if parameter.grad is None:
        return parameter.new_zeros(parameter.shape[dim], dtype=torch.float32)
    return _others(parameter.detach().float() * parameter.grad.float(), dim)


def _square(parameter: Tensor, dim: int) -> Tensor:
    return _others(parameter.detach().float().square(), dim)


def _others(values: Tensor, dim: int) -> Tensor:
    """Sums over all dimensions but one."""
    rest = [other for other in range(values.dim()) if other != dim]
    return values.sum(rest) if rest else values
