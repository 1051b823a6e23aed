"""What a network costs as a function of its groups' widths: macs and params.

Both are sums of terms; a term is a scale times a product of lengths, and a length is linear in
the widths (see `fxprune.channels.graph.Term`). One macs term is one node on one example, one
params term is one parameter.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from fxprune.channels.graph import Factor, Term, Widths
from fxprune.errors import GateError


@dataclass(frozen=True)
class CostModel:
    """The macs and params of a network at any widths, exactly.

    Attributes:
        macs_terms: multiply-accumulates of one example, a term for each node.
        params_terms: elements of the parameters, a term for each parameter.
        sizes: number of channels of each group; the dense widths.
    """

    macs_terms: tuple[Term, ...]
    params_terms: tuple[Term, ...]
    sizes: Widths

    def macs(self, widths: Widths) -> int:
        """Count multiply-accumulates of one example.

        Args:
            widths: how many channels of each group execute.

        Raises:
            GateError: the widths do not fit the groups.
        """
        return self._macs.at(self._checked(widths))

    def params(self, widths: Widths) -> int:
        """Count elements of all parameters at the widths; raises as `macs` does."""
        return self._params.at(self._checked(widths))

    @cached_property
    def dense_macs(self) -> int:
        """Macs of one example with all channels."""
        return self.macs(self.sizes)

    @cached_property
    def dense_params(self) -> int:
        """Elements of all parameters with all channels."""
        return self.params(self.sizes)

    @cached_property
    def macs_per_channel(self) -> tuple[float, ...]:
        """For each group, the macs saved per channel when half of the dense group is removed."""
        return tuple(self._per_channel(self.macs, group) for group in range(len(self.sizes)))

    @cached_property
    def params_per_channel(self) -> tuple[float, ...]:
        """For each group, the parameters saved per channel when half of it is removed."""
        return tuple(self._per_channel(self.params, group) for group in range(len(self.sizes)))

    def _per_channel(self, count: Callable[[Widths], int], group: int) -> float:
        size = self.sizes[group]
        half = max(size // 2, 1)
        narrow = (*self.sizes[:group], half, *self.sizes[group + 1 :])
        return (count(self.sizes) - count(narrow)) / max(size - half, 1)

    def _checked(self, widths: Widths) -> Widths:
        if len(widths) != len(self.sizes):
            raise GateError(
                f"{len(widths)} widths were given for {len(self.sizes)} channel groups",
                do=f"give a width for each group; the dense ones are {self.sizes}",
            )
        for group, (width, size) in enumerate(zip(widths, self.sizes)):
            if not 1 <= width <= size:
                raise GateError(
                    f"channel group {group} cannot have width {width}",
                    why=f"it has {size} channels, and at least one must stay",
                    do=f"give a whole number from 1 to {size}",
                )
        return widths

    @cached_property
    def _macs(self) -> "_Table":
        return _Table(self.macs_terms, len(self.sizes))

    @cached_property
    def _params(self) -> "_Table":
        return _Table(self.params_terms, len(self.sizes))


class _Table:
    """Terms as arrays: each different length is worked out once, then multiplied term by term."""

    def __init__(self, terms: tuple[Term, ...], groups: int) -> None:
        one = Factor(1)
        lengths = list(dict.fromkeys([one, *(f for term in terms for f in term.factors)]))
        index = {factor: i for i, factor in enumerate(lengths)}
        most = max((len(term.factors) for term in terms), default=0)

        self.fixed = np.array([factor.fixed for factor in lengths], dtype=np.int64)
        self.count = np.zeros((len(lengths), groups), dtype=np.int64)
        for i, factor in enumerate(lengths):
            for group, count in factor.per_channel:
                self.count[i, group] += count
        self.scale = np.array([term.scale for term in terms], dtype=np.int64)
        self.factors = np.zeros((len(terms), most), dtype=np.int64)  # 0 is the length `one`
        for i, term in enumerate(terms):
            self.factors[i, : len(term.factors)] = [index[factor] for factor in term.factors]

    def at(self, widths: Widths) -> int:
        values: npt.NDArray[np.int64] = self.fixed + self.count @ np.array(widths, dtype=np.int64)
        return int((self.scale * values[self.factors].prod(axis=1)).sum())
