"""The steps of random networks: `KINDS` by name, and `FREQUENT`, their names as often as wanted."""

from collections.abc import Callable

from tests.support.steps import joins, layers, places, weights
from tests.support.steps.writer import Dice, Map, Writer

Kind = Callable[[Writer, Map, Map, Dice], None]
"""Writes one operation on two maps, of which it may ignore the second."""

_ALL: tuple[Kind, ...] = (*layers.KINDS, *places.KINDS, *joins.KINDS, *weights.KINDS)
KINDS: dict[str, Kind] = {kind.__name__: kind for kind in _ALL}
FREQUENT = tuple(kind.__name__ for kind in _ALL)
