"""Budgets: how much may execute. `fxprune.budget.widths` spends them."""

import dataclasses
import re
import typing
from dataclasses import dataclass
from typing import Literal

from fxprune.channels.cost import CostModel, Widths
from fxprune.errors import BudgetError

Kind = Literal["keep", "macs", "params", "latency"]
KINDS: tuple[str, ...] = typing.get_args(Kind)
EXAMPLE = (
    "write keep=…, macs=…, params=… or latency=… with a share of the dense network, such as "
    "keep=0.5"
)


@dataclass(frozen=True)
class Budget:
    """How much of the dense network may execute.

    Attributes:
        kind: what is counted: channels (`keep`), multiply-accumulates of one example (`macs`) or
            elements of the parameters (`params`); or the time of one example in ONNX Runtime
            (`latency`), which `fxprune.export.latency` measures.
        value: the share of the dense network's count, above 0 and at most 1.
        round_to: widths are multiples of this, or the whole group; a group that is smaller than
            this stays whole. None: of 8, which kernels like (oneDNN and ONNX Runtime keep 8 or 16
            channels beside each other, tensor cores take 8 at a time); in a group of fewer than
            32 channels of the power of two that leaves it four widths or more.
        floor: the share of each group that global allocation must leave it.
        widths: what a latency budget was measured to mean; empty before that.

    Raises:
        BudgetError: a field is out of its range.
    """

    kind: Kind
    value: float
    round_to: int | None = None
    floor: float = 0.05
    widths: Widths = ()

    def __post_init__(self) -> None:
        """Checks the fields."""
        if self.kind not in KINDS:
            raise _unknown(self.kind)
        if not 0 < self.value <= 1:  # refuses nan too
            raise BudgetError(
                f"the budget {self.kind}={self.value} is out of range",
                why="it is a share of the dense network: above 0 and at most 1",
                do=EXAMPLE,
            )
        if self.round_to is not None and self.round_to < 1:
            raise BudgetError(f"round_to cannot be {self.round_to}", do="give 1 or more channels")
        if not 0 <= self.floor <= 1:
            raise BudgetError(
                f"the floor of a budget cannot be {self.floor}",
                do="give the share of each group that always stays, from 0 to 1",
            )
        if self.widths and self.kind != "latency":
            raise BudgetError(
                f"the budget {self} cannot have widths",
                why="only latency budgets are measured",
                do=EXAMPLE,
            )

    def __str__(self) -> str:
        floor = f",floor={self.floor}" if self.floor != Budget.floor else ""
        widths = f",widths={'/'.join(map(str, self.widths))}" if self.widths else ""
        return f"{self.kind}={self.value}{floor}{widths}"

    @staticmethod
    def parse(budget: "str | Budget", round_to: int | None = None) -> "Budget":
        """Reads `kind=share`; the inverse of `str`.

        It may be followed by `,floor=share`, and for a latency by `,widths=8/16/…`.

        Args:
            budget: the text, or a `Budget`, which is taken as it is.
            round_to: as the attribute; for a `Budget` None means its own.

        Raises:
            BudgetError: the text cannot be read or says something out of range.

        >>> Budget.parse("macs=0.25", round_to=8)
        Budget(kind='macs', value=0.25, round_to=8, floor=0.05, widths=())
        """
        if isinstance(budget, Budget):
            if round_to in (None, budget.round_to):
                return budget
            return dataclasses.replace(budget, round_to=round_to)
        match = re.fullmatch(
            r"\s*(\w+)\s*=\s*([^,\s]+)\s*(?:,\s*floor\s*=\s*([^,\s]+)\s*)?"
            r"(?:,\s*widths\s*=\s*(\d+(?:/\d+)*)\s*)?",
            budget,
        )
        if match is None:
            raise BudgetError(f"cannot read the budget {budget!r}", do=EXAMPLE)
        kind, value, floor, widths = match.groups()
        if kind not in KINDS:
            raise _unknown(kind)
        return Budget(
            typing.cast(Kind, kind),
            _number(value, budget),
            round_to,
            Budget.floor if floor is None else _number(floor, budget),
            tuple(map(int, widths.split("/"))) if widths else (),
        )

    def at(self, share: float, sizes: Widths) -> "Budget":
        """The budget of another share, not below its own.

        Measured widths grow evenly towards the `sizes` of the groups, in rounding steps: their
        latency is not measured again.
        """
        if share == self.value or self.kind != "latency":
            return dataclasses.replace(self, value=share)
        way = (share - self.value) / (1 - self.value)
        steps = (rounding_step(self.round_to, size) for size in sizes)
        widths = tuple(
            n if way >= 1 else w + int(way * (n - w) / step + 1e-9) * step
            for w, n, step in zip(self.widths, sizes, steps, strict=True)
        )
        return dataclasses.replace(self, value=share, widths=widths)

    def share(self, widths: Widths, cost: CostModel) -> float:
        """The share of the dense network that the widths cost, counted as the budget counts."""
        dense = max(self._count(cost.sizes, cost), 1)
        return self._count(widths, cost) / dense

    def fits(self, widths: Widths, cost: CostModel) -> bool:
        """Whether the widths cost no more than the budget."""
        return self._count(widths, cost) <= self.value * self._count(cost.sizes, cost) + 1e-6

    def _count(self, widths: Widths, cost: CostModel) -> int:
        if self.kind == "keep":
            return sum(widths)
        return cost.macs(widths) if self.kind == "macs" else cost.params(widths)


def rounding_step(round_to: int | None, size: int) -> int:
    """Of what the widths of a group of `size` channels are multiples; see `Budget.round_to`.

    >>> [rounding_step(None, size) for size in (3, 8, 12, 16, 24, 32, 512)]
    [1, 2, 2, 4, 4, 8, 8]
    """
    if round_to is not None:
        return round_to
    return min(1 << max(size // 4, 1).bit_length() - 1, 8)


def _number(text: str, budget: str) -> float:
    try:
        return float(text)
    except ValueError as error:
        raise BudgetError(
            f"cannot read the budget {budget!r}", why=f"{text!r} is not a number", do=EXAMPLE
        ) from error


def _unknown(kind: str) -> BudgetError:
    return BudgetError(f"unknown budget {kind!r}", do=EXAMPLE)
