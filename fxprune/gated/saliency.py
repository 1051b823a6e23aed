"""Per-channel saliency: what one step says about the channels that executed.

With a the activation at a channel's gate point and g its gradient, the Taylor saliency of a
channel is the mean over the samples of |sum over positions of g * a| (arXiv 2007.01486). Summed
over the batch before the absolute value, it is free: behind an affine norm

    sum g * a = gamma * dL/dgamma + beta * dL/dbeta,

and behind a bare convolution it is sum w * dL/dw + b * dL/db, since a is linear in both. A
channel that several layers make (a residual stage) has the sum of theirs.
"""

from collections.abc import Callable, Hashable, Mapping, Sequence

import torch
from torch import Tensor

from fxprune.channels.graph import Axis, ChannelGraph, Gate
from fxprune.policies.base import Observes

ParameterDim = tuple[str, int]
"""A parameter and the dimension along which it is read."""
Tensors = Mapping[str, Tensor]
"""The compact parameters by name."""


class Meter:
    """Measures the executed channels of a network at fixed widths.

    Every measure returns float32 [K], at least 0. Where each value goes is worked out once, so
    that a measurement of a network with norms is a few kernels, whatever its depth.
    """

    def __init__(
        self,
        channels: ChannelGraph,
        slot_of: Callable[[Axis], Tensor],
        total: int,
        device: torch.device,
    ) -> None:
        """Compute what the widths decide.

        Args:
            channels: the channel graph, whose gates say which parameters to read.
            slot_of: for an axis, the slot of each compact position, K where it is fixed: int64
                [length], on the CPU.
            total: K, the number of executed channels.
            device: where the parameters are.
        """
        self._channels, self._slot_of, self._total = channels, slot_of, total
        self._device = device
        self._readings: dict[Hashable, _Reading] = {}
        self._early: dict[ParameterDim, Tensor] = {}

    def measure(
        self, observes: Observes, tensors: Tensors, seen: Callable[[], Mapping[int, Tensor]]
    ) -> Tensor:
        """Measure what a policy observes.

        Args:
            observes: which measure, a method of that name; `none` is all zeros.
            tensors: the parameters.
            seen: asked for `sample`, for what its taps saw.
        """
        if observes == "sample":
            return self.sample(tensors, seen())
        if observes == "none":
            return torch.zeros(self._total, device=self._device)
        measures = {"batch": self.batch, "magnitude": self.magnitude, "bn_scale": self.bn_scale}
        return measures[observes](tensors)

    def batch(self, tensors: Tensors) -> Tensor:
        """Compute |sum of g * a| over the batch, from the parameters' gradients.

        0 where there is none.
        """
        reading = self._reading("batch", self._channels.gates)
        return reading(_taylor(reading.pairs, tensors, self._early))

    def read_early(self, tensors: Tensors) -> bool:
        """Keep p * dL/dp of the parameters that have gradients now, for the next measurement.

        For optimisers that step inside backward: there is no moment at which all gradients exist.

        Args:
            tensors: the parameters.

        Returns:
            Whether some parameters that require gradients have none yet.
        """
        pairs = self._reading("batch", self._channels.gates).pairs
        for pair in pairs:
            parameter = tensors[pair[0]]
            if parameter.grad is not None and pair not in self._early:
                self._early[pair] = _sum_others(parameter.float() * parameter.grad.float(), pair[1])
        return any(tensors[n].requires_grad for n, dim in pairs if (n, dim) not in self._early)

    def forget_early(self) -> None:
        """Drop what `read_early` has kept."""
        self._early.clear()

    def sample(self, tensors: Tensors, taps: Mapping[int, Tensor]) -> Tensor:
        """Return the mean over samples of |sum of g * a|, as the taps saw it in this backward.

        Args:
            tensors: the parameters.
            taps: by the number of its gate, float32 [compact positions]; gates without a tap are
                read as in `batch`.
        """
        gates = self._channels.gates
        tapped = self._reading(tuple(taps), [Gate(gates[n].parameters[:1]) for n in taps])
        others = [gate for number, gate in enumerate(gates) if number not in taps]
        rest = self._reading(("but", *taps), others)
        values = {gates[number].parameters[0]: seen.float() for number, seen in taps.items()}
        return tapped([values[pair] for pair in tapped.pairs]) + rest(
            _taylor(rest.pairs, tensors, self._early)
        )

    def magnitude(self, tensors: Tensors) -> Tensor:
        """Return the L2 norm of a channel's slices of the weights that make it."""
        reading = self._reading("makers", self._channels.makers)
        return reading([_square(tensors[name], dim) for name, dim in reading.pairs]).sqrt()

    def bn_scale(self, tensors: Tensors) -> Tensor:
        """Return |gamma| of the norm at the gate point.

        Behind a bare layer the norm of its weights.
        """
        gates = self._channels.gates
        reading = self._reading("firsts", [Gate(gate.parameters[:1]) for gate in gates])
        return reading([_square(tensors[name], dim).sqrt() for name, dim in reading.pairs])

    def _reading(self, key: Hashable, gates: Sequence[Gate]) -> "_Reading":
        if key not in self._readings:
            reading = _Reading(gates, self._channels, self._slot_of, self._total)
            self._readings[key] = reading.to(self._device)
        return self._readings[key]


class _Reading:
    """Adds up what is read at some gates: signed at each gate, absolute over the gates of a slot.

    Both sums look their summands up in tables with a row for each result, filled up with a zero:
    unlike atomic additions they give the same bits each time.

    Attributes:
        pairs: the parameters and dimensions to read, vectors first.
    """

    def __init__(
        self,
        gates: Sequence[Gate],
        channels: ChannelGraph,
        slot_of: Callable[[Axis], Tensor],
        total: int,
    ) -> None:
        lines: list[tuple[Axis, list[ParameterDim]]] = []
        for gate in gates:
            along: dict[Axis, list[ParameterDim]] = {}
            for name, dim in gate.parameters:
                along.setdefault(channels.axes[name][dim], []).append((name, dim))
            lines += along.items()
        met = {pair: axis for axis, pairs in lines for pair in pairs}
        self.pairs = sorted(met, key=lambda pair: len(channels.shapes[pair[0]]) > 1)
        read, begin = dict[ParameterDim, Tensor](), 0
        slots: dict[Axis, Tensor] = {}
        for pair in self.pairs:
            axis = met[pair]
            slots.setdefault(axis, slot_of(axis))
            read[pair] = torch.arange(begin, begin + len(slots[axis]), device="cpu")
            begin += len(slots[axis])
        nothing = torch.empty(0, dtype=torch.int64, device="cpu")
        summands, results, end = [nothing], [nothing], 0
        for axis, pairs in lines:
            line = torch.arange(end, end + len(slots[axis]), device="cpu")
            end += len(line)
            for pair in pairs:
                summands.append(read[pair])
                results.append(line)
        self._signed = _table(torch.cat(summands), torch.cat(results), end, empty=begin)
        slot = torch.cat([nothing, *(slots[axis] for axis, _ in lines)])
        at = (slot < total).nonzero().flatten()
        self._absolute = _table(at, slot[at], total, empty=end)

    def to(self, device: torch.device) -> "_Reading":
        """Take the tables to a device."""
        self._signed, self._absolute = self._signed.to(device), self._absolute.to(device)
        return self

    def __call__(self, values: Sequence[Tensor]) -> Tensor:
        """Sum the values of all pairs, one behind the other, to those of the slots."""
        zero = torch.zeros(1, device=self._signed.device)
        each = _sums(torch.cat([*values, zero]), self._signed).abs()
        return _sums(torch.cat([each, zero]), self._absolute)


def _table(summands: Tensor, results: Tensor, rows: int, empty: int) -> Tensor:
    """Find for each result the summands that belong to it: int64 [most summands, rows]."""
    order = results.argsort(stable=True)
    results = results[order]
    counts = torch.bincount(results, minlength=rows)
    rank = torch.arange(len(results), device="cpu") - (counts.cumsum(0) - counts)[results]
    table = torch.full((max([1, *counts.tolist()]), rows), empty, device="cpu")
    table[rank, results] = summands[order]
    return table


def _sums(values: Tensor, table: Tensor) -> Tensor:
    return values.index_select(0, table.flatten()).view(table.shape).sum(0)


def _taylor(
    pairs: Sequence[ParameterDim], tensors: Tensors, early: Mapping[ParameterDim, Tensor]
) -> list[Tensor]:
    """Compute p * dL/dp, of all vectors at once; pairs are in the order of a reading.

    What was read early is taken as it was then.
    """
    if early:
        lengths = (tensors[name].shape[dim] for name, dim in pairs)
        zeros = (torch.zeros(length, device=tensors[pairs[0][0]].device) for length in lengths)
        return [early.get(pair, zero) for pair, zero in zip(pairs, zeros, strict=True)]
    read = [(tensors[name], dim) for name, dim in pairs]
    grads = [torch.zeros_like(p) if p.grad is None else p.grad for p, _ in read]
    vectors = sum(p.dim() == 1 for p, _ in read)
    values = []
    if vectors:
        flat = torch.cat([p for p, _ in read[:vectors]])
        values.append(flat.float() * torch.cat(grads[:vectors]).float())
    for (parameter, dim), grad in zip(read[vectors:], grads[vectors:]):
        values.append(_sum_others(parameter.float() * grad.float(), dim))
    return values


def _square(parameter: Tensor, dim: int) -> Tensor:
    return _sum_others(parameter.float().square(), dim)


def _sum_others(values: Tensor, dim: int) -> Tensor:
    """Sum over all dimensions but one: float [size of that one]."""
    rest = [other for other in range(values.dim()) if other != dim]
    return values.sum(rest) if rest else values
