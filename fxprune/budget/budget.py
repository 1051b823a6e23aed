"""Budgets: how much may execute.

`fxprune.budget.widths` spends them; those of latency are measured by `fxprune.export.latency`.
"""

import dataclasses
import math
import typing
from dataclasses import dataclass
from typing import Any, Literal

from fxprune.channels.cost import CostModel
from fxprune.channels.graph import Widths
from fxprune.errors import BudgetError, brief, described

Kind = Literal["keep", "macs", "params", "latency"]
KINDS: tuple[str, ...] = typing.get_args(Kind)
SPEEDUP = "speedup"  # another way to write a latency
EXAMPLE = (
    "write keep=…, macs=…, params=… or latency=… with a share of the dense network, such as "
    "keep=0.5, or speedup=2 for latency=0.5"
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
        also: further budgets that hold at the same time, each a kind and a share.
        limits: the least and the most channels that each group may keep, what patterns of layers
            came to in one network (`fxprune.budget.layers`); empty for no limits.

    Raises:
        BudgetError: a field is out of its range.
    """

    kind: Kind
    value: float
    round_to: int | None = None
    floor: float = 0.05
    widths: Widths = ()
    also: tuple[tuple[Kind, float], ...] = ()
    limits: tuple[tuple[int, int], ...] = ()

    def __post_init__(self) -> None:
        """Check the fields."""
        for kind, value in self.shares:
            if kind not in KINDS:
                raise _unknown(kind)
            if not 0 < value <= 1:  # refuses nan too
                raise BudgetError(
                    f"the budget {kind}={value} is out of range",
                    why="it is a share of the dense network: above 0 and at most 1",
                    do=f"write {kind}={value / 100:g} for {value:g} %"
                    if 2 <= value <= 100
                    else EXAMPLE,
                )
        kinds = [kind for kind, _ in self.shares]
        if len({*kinds}) < len(kinds) or (self.also and "latency" in kinds):
            raise BudgetError(
                f"the budgets {' and '.join(kinds)} cannot hold together",
                why="each of keep, macs and params counts once, and latency stands alone",
                do="write several with commas, such as macs=0.5,params=0.3",
            )
        multiple: Any = self.round_to  # a caller may have no types
        if multiple is not None and not (isinstance(multiple, int) and multiple >= 1):
            raise BudgetError(f"round_to cannot be {multiple!r}", do="give 1 or more channels")
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

    @property
    def shares(self) -> tuple[tuple[Kind, float], ...]:
        """Every kind that is limited, with its share; the first is the budget's own."""
        return (self.kind, self.value), *self.also

    @property
    def is_unmeasured(self) -> bool:
        """Whether it limits the latency, and no widths were found for it by measuring yet."""
        return self.kind == "latency" and not self.widths

    @property
    def asked(self) -> str:
        """Its text form without widths and limits, which the layers show."""
        return str(dataclasses.replace(self, widths=(), limits=()))

    def __str__(self) -> str:
        parts = [f"{kind}={value}" for kind, value in self.shares]
        parts += [f"floor={self.floor}"] if self.floor != Budget.floor else []
        parts += [f"widths={'/'.join(map(str, self.widths))}"] if self.widths else []
        limits = "/".join(f"{least}-{most}" for least, most in self.limits)
        return ",".join([*parts, *([f"limits={limits}"] if limits else [])])

    @staticmethod
    def parse(budget: "str | Budget", round_to: int | None = None) -> "Budget":
        """Read `kind=share`, or several with commas; the inverse of `str`.

        They may be followed by `,floor=share`, by `,limits=4-16/8-8/…`, and for a latency by
        `,widths=8/16/…`. `speedup=2` is `latency=0.5`.

        Args:
            budget: the text, or a `Budget`, which is taken as it is.
            round_to: as the attribute; for a `Budget` None means its own.

        Raises:
            BudgetError: the text cannot be read or says something out of range.

        >>> budget = Budget.parse("macs=0.25,params=0.5", round_to=8)
        >>> budget.kind, budget.value, budget.also, budget.round_to
        ('macs', 0.25, (('params', 0.5),), 8)
        """
        if isinstance(budget, Budget):
            if round_to in (None, budget.round_to):
                return budget
            return dataclasses.replace(budget, round_to=round_to)
        if not isinstance(budget, str):
            raise BudgetError(
                f"the budget cannot be {brief(budget)}",
                why=f"it is {described(budget)}, and no text",
                do='write "macs=0.5" for half of the macs, or keep, params or latency',
            )
        shares: list[tuple[Kind, float]] = []
        more: dict[str, str] = {}
        for part in budget.split(","):
            key, equals, value = map(str.strip, part.partition("="))
            if not (key and equals and value) or key in more:
                raise BudgetError(f"cannot read the budget {budget!r}", do=EXAMPLE)
            if key in ("floor", "widths", "limits"):
                more[key] = value
            elif key in KINDS:
                shares.append((typing.cast(Kind, key), _number(value, budget)))
            elif key == SPEEDUP:
                shares.append(("latency", _latency_of(_number(value, budget))))
            else:
                raise _unknown(key)
        if not shares:
            raise BudgetError(f"cannot read the budget {budget!r}", do=EXAMPLE)
        (kind, share), *also = shares
        return Budget(
            kind,
            share,
            round_to,
            _number(more["floor"], budget) if "floor" in more else Budget.floor,
            tuple(width for (width,) in _table(more.get("widths", ""), 1, budget)),
            tuple(also),
            tuple((least, most) for least, most in _table(more.get("limits", ""), 2, budget)),
        )

    def at(self, share: float, sizes: Widths) -> "Budget":
        """Make the budget of another share, not below its own.

        Measured widths, further budgets and the most that each group may keep grow evenly towards
        the dense network, widths in rounding steps; no latency is measured again.
        """
        if share == self.value:
            return self
        way = (share - self.value) / (1 - self.value)

        def risen(width: int, size: int) -> int:
            step = rounding_step(self.round_to, size)
            return size if way >= 1 else width + int(way * (size - width) / step + 1e-9) * step

        return dataclasses.replace(
            self,
            value=share,
            widths=tuple(map(risen, self.widths, sizes)),
            also=tuple((kind, value + way * (1 - value)) for kind, value in self.also),
            limits=tuple(
                (least, risen(most, n))
                for (least, most), n in zip(self.limits, sizes, strict=bool(self.limits))
            ),
        )

    def share(self, widths: Widths, cost: CostModel) -> float:
        """Compute the share of the dense network that the widths cost, in the budget's measure."""
        return _share(self.kind, widths, cost)

    def fits(self, widths: Widths, cost: CostModel) -> bool:
        """Tell whether the widths keep the budget, and those that hold with it."""
        return self.broken(widths, cost) is None

    def broken(self, widths: Widths, cost: CostModel) -> tuple[Kind, float] | None:
        """Return the first kind that the widths cost more of, and the share that they cost."""
        for kind, value in self.shares:
            if _count(kind, widths, cost) > value * _count(kind, cost.sizes, cost) + 1e-6:
                return kind, _share(kind, widths, cost)
        return None


def _share(kind: Kind, widths: Widths, cost: CostModel) -> float:
    return _count(kind, widths, cost) / max(_count(kind, cost.sizes, cost), 1)


def _count(kind: Kind, widths: Widths, cost: CostModel) -> int:
    if kind == "keep":
        return sum(widths)
    return cost.macs(widths) if kind == "macs" else cost.params(widths)


def rounding_step(round_to: int | None, size: int) -> int:
    """Return what the widths of a group of `size` channels are multiples of; see `Budget.round_to`.

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


def _table(text: str, columns: int, budget: str) -> list[tuple[int, ...]]:
    """Read rows of whole numbers: `8/16`, or `4-16/8-8` for two columns."""
    rows = [row.split("-") for row in text.split("/")] if text else []
    if not all(len(row) == columns and all(map(_is_whole, row)) for row in rows):
        raise BudgetError(f"cannot read the budget {budget!r}", do=EXAMPLE)
    return [tuple(map(int, row)) for row in rows]


def _is_whole(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) < 10


def _latency_of(speedup: float) -> float:
    """Return the share of the dense network's time that makes a network `speedup` times as fast."""
    if not 1 <= speedup < math.inf:
        raise BudgetError(
            f"a speedup cannot be {speedup:g}",
            why="it says how many times as fast the network shall be",
            do="give 1 or more, such as speedup=2",
        )
    return 1 / speedup


def _unknown(kind: str) -> BudgetError:
    return BudgetError(f"unknown budget {kind!r}", do=EXAMPLE)
