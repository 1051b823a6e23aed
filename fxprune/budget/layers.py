"""Which layers keep how much: patterns of names become limits on the widths of channel groups.

A pattern is a shell pattern (`*`, `?`, `[…]`) over the names of `named_modules()`; `*` crosses
dots. It matches a layer by the layer's own name, by the name of a module around it (`layer4` is
all of `layer4`), by a parameter's name, or by the group's name in `fxprune inspect`.

`exclude` keeps all channels that the matched layers make, `exclude_inputs` all that they consume;
both win over the rest. `keep` says what share of its channels a group keeps, `floor` and `ceiling`
between what shares the budget may choose. There the first pattern that matches a layer decides;
layers whose channels can only be removed together form one group, which takes the largest share of
its layers. Shares become allowed widths: `keep` and `ceiling` are rounded down, to one rounding
step at least, `floor` is rounded up.
"""

import dataclasses
import difflib
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from numbers import Real
from typing import Any

from fxprune.budget.budget import Budget
from fxprune.budget.widths import allowed_widths
from fxprune.channels.graph import ChannelGraph, ChannelGroup, Role, layer_of, layers_of
from fxprune.errors import BudgetError

Shares = tuple[tuple[str, float], ...]
"""Patterns with the share of each, in the order in which they decide."""


@dataclass(frozen=True)
class Layers:
    """Patterns that say which layers keep how much of their channels.

    Attributes:
        exclude: layers that keep all channels that they make.
        exclude_inputs: layers that keep all channels that they consume.
        keep: the share that layers keep.
        floor: the least share that layers keep.
        ceiling: the most.

    Raises:
        BudgetError: a share is not above 0 and at most 1.
    """

    exclude: tuple[str, ...] = ()
    exclude_inputs: tuple[str, ...] = ()
    keep: Shares = ()
    floor: Shares = ()
    ceiling: Shares = ()

    def __post_init__(self) -> None:
        """Check the shares."""
        for word, shares in self.tables.items():
            for pattern, share in shares:
                value: Any = share  # a caller may have no types
                if not isinstance(value, Real) or not 0 < share <= 1:
                    raise BudgetError(
                        f"{word} of {pattern!r} cannot be {share!r}",
                        why="it is a share of the channels: above 0 and at most 1",
                        do=f"write {word} {pattern}=0.5, or exclude the layers to keep all",
                    )

    @property
    def tables(self) -> dict[str, Shares]:
        """The patterns that come with shares, by the word for them."""
        return {"keep": self.keep, "floor": self.floor, "ceiling": self.ceiling}

    @staticmethod
    def of(
        exclude: str | Sequence[str] = (),
        exclude_inputs: str | Sequence[str] = (),
        keep: Mapping[str, float] | None = None,
        floor: Mapping[str, float] | None = None,
        ceiling: Mapping[str, float] | None = None,
    ) -> "Layers":
        """Take lists and dicts, as `fxprune.instrument` has them.

        Raises:
            BudgetError: patterns are no texts, or shares are not given by pattern.
        """
        tables = {"keep": keep, "floor": floor, "ceiling": ceiling}
        for word, table in tables.items():
            if not isinstance(table, Mapping | None):
                raise BudgetError(
                    f"{word} cannot be {table!r}",
                    why="it gives shares of the channels by patterns of layers",
                    do=f'write {word}={{"layer4.*": 0.5}}, or budget="keep=0.5" for all layers',
                )
        return Layers(
            _several("exclude", exclude),
            _several("exclude_inputs", exclude_inputs),
            *(tuple((table or {}).items()) for table in tables.values()),
        )

    @staticmethod
    def parse(
        exclude: Sequence[str],
        exclude_inputs: Sequence[str],
        keep: Sequence[str],
        floor: Sequence[str],
        ceiling: Sequence[str],
    ) -> "Layers":
        """Read texts: patterns, and `pattern=share` for those with shares; several with commas.

        Raises:
            BudgetError: a text cannot be read, or a pattern is given twice.

        >>> Layers.parse(["stem.*,head"], [], ["layer4.*=0.3", "*=0.6"], [], []).keep
        (('layer4.*', 0.3), ('*', 0.6))
        """
        tables = {"keep": keep, "floor": floor, "ceiling": ceiling}
        return Layers(
            tuple(_split(exclude)),
            tuple(_split(exclude_inputs)),
            *(tuple(_shares_of(word, texts)) for word, texts in tables.items()),
        )


def _several(word: str, names: str | Sequence[str]) -> tuple[str, ...]:
    texts: Any = (names,) if isinstance(names, str) else names
    if not isinstance(texts, Sequence) or not all(isinstance(text, str) for text in texts):
        raise BudgetError(
            f"{word} must be patterns of layers",
            why=f"{names!r} is something else",
            do=f'write their names in named_modules(), such as {word}=["layer4.*"]',
        )
    return tuple(texts)


def _split(texts: Sequence[str]) -> list[str]:
    found = []
    for text in texts:
        parts = [part.strip() for part in text.split(",") if part.strip()]
        if not parts:
            raise BudgetError(
                f"the pattern {text!r} is empty", do="give one, or leave the option out"
            )
        found += parts
    return found


def _shares_of(word: str, texts: Sequence[str]) -> Iterator[tuple[str, float]]:
    seen = set()
    for text in _split(texts):
        pattern, _, share = map(str.strip, text.rpartition("="))
        if pattern in seen:
            raise BudgetError(f"{word} {pattern!r} is given twice", do="give it once")
        seen.add(pattern)
        try:
            yield pattern, float(share if pattern else "none")
        except ValueError as error:
            raise BudgetError(
                f"cannot read {word} {text!r}",
                why="it is not of the form PATTERN=SHARE",
                do=f"write, for example, {word} 'layer4.*=0.3'",
            ) from error


@dataclass(frozen=True)
class Limited:
    """A budget with the limits that patterns set in one network.

    Attributes:
        budget: with its limits.
        notes: what a user should know: where a pattern affects more layers than it matches, or
            fewer.
    """

    budget: Budget
    notes: tuple[str, ...] = ()


def limit(
    layers: Layers,
    budget: Budget | None,
    default: Budget,
    channels: ChannelGraph,
    modules: Iterable[str],
) -> Limited:
    """Put the limits of `layers` on a budget.

    Args:
        layers: the patterns.
        budget: the budget beside them. None with `keep`: layers without a share stay whole, or at
            their ceiling. None without `keep`: the default.
        default: the budget where none is given; its rounding and floor hold in both cases.
        channels: the network's channel groups.
        modules: the names of all of the network's modules.

    Raises:
        BudgetError: a pattern matches no layer, or asks for widths where no channels can be
            removed; or a group's floor is above its ceiling.
    """
    if layers == Layers():
        return Limited(budget or default)
    rest_whole = budget is None and bool(layers.keep)
    base = dataclasses.replace(budget or default, limits=())
    matcher = _Matcher(channels, modules)
    whole = matcher.excluded(layers)
    keep, floor, ceiling = (matcher.decided(*table, whole) for table in layers.tables.items())
    limits: list[tuple[int, int]] = []
    for group, widths in zip(channels.groups, allowed_widths(base, channels.layout)):
        size, index = group.size, group.index
        if index in whole:
            limits.append((size, size))
        elif index in keep:
            limits.append((_down(widths, keep[index] * size),) * 2)
        else:
            low, high = floor.get(index, 0.0), ceiling.get(index, 1.0)
            if low > high:
                raise BudgetError(
                    f"the group {group.name} cannot keep at least {low} and at most {high}",
                    why="its floor is above its ceiling",
                    do="change one of the patterns that match its layers",
                )
            least = next(width for width in widths if width >= low * size - 1e-6)
            most = max(_down(widths, high * size), least if low else 1)
            limits.append((most if rest_whole else least if low else 1, most))
    if rest_whole:
        share = sum(most for _, most in limits) / max(channels.layout.total, 1)
        base = dataclasses.replace(base, kind="keep", value=share, also=())
    return Limited(dataclasses.replace(base, limits=tuple(limits)), tuple(matcher.notes))


def _down(widths: Sequence[int], target: float) -> int:
    """Return the largest width up to a target; the smallest one where none is as small."""
    return max(width for width in widths if width == widths[0] or width <= target + 1e-6)


class _Matcher:
    """Finds the groups that patterns match, and collects notes for the user."""

    def __init__(self, channels: ChannelGraph, modules: Iterable[str]) -> None:
        self.channels = channels
        groups = [group.name for group in channels.groups]
        self.names = {name for name in (*modules, *channels.shapes, *groups) if name}
        self.notes: list[str] = []
        self.turning = {
            layer_of(member.parameter)
            for group in channels.groups
            for member in group.members
            if member.role is not Role.ALONG
        }

    def excluded(self, layers: Layers) -> set[int]:
        """Return the groups that stay whole."""
        whole = set()
        for pattern in layers.exclude:
            self._check("exclude", pattern)
            for group in self.channels.groups:
                if _any(self._making(group), pattern) or fnmatchcase(group.name, pattern):
                    whole.add(group.index)
                    self._note_others(group, (pattern,), f"exclude {pattern!r} keeps")
        for pattern in layers.exclude_inputs:
            self._check("exclude_inputs", pattern)
            for group in self.channels.groups:
                if not _any(self._consuming(group), pattern):
                    continue
                whole.add(group.index)
                makers = layers_of(_parameters(group, (Role.OUT,)))
                if len(makers) > 1:
                    self.notes.append(
                        f"exclude_inputs {pattern!r} keeps the channels of {', '.join(makers)}: "
                        f"they are those of one group, {group.name}"
                    )
        return whole

    def decided(self, word: str, shares: Shares, whole: set[int]) -> dict[int, float]:
        """Return the share of each group that a pattern matches; whole groups have none."""
        found: dict[int, float] = {}
        deciding: set[str] = set()
        for pattern, _ in shares:
            self._check(word, pattern)
        for group in self.channels.groups:
            own = self._first(group, shares)
            if not own or group.index in whole:
                continue
            found[group.index] = largest = max(share for _, share in own.values())
            deciding |= {pattern for pattern, _ in own.values()}
            if any(share != largest for _, share in own.values()):
                asked = [
                    f"{layer} {share} ({pattern!r})" for layer, (pattern, share) in own.items()
                ]
                self.notes.append(
                    f"{word} of the group {group.name} is {largest}, the largest of its layers': "
                    + ", ".join(asked)
                )
            else:
                patterns = tuple(dict.fromkeys(pattern for pattern, _ in own.values()))
                text = f"{word} {' and '.join(map(repr, patterns))} decides on"
                self._note_others(group, patterns, text)
        for pattern, _ in shares:
            if pattern not in deciding:
                self._refuse_idle(word, pattern)
                self.notes.append(
                    f"{word} {pattern!r} decides nothing: other patterns decide on its layers"
                )
        return found

    def _first(self, group: ChannelGroup, shares: Shares) -> dict[str, tuple[str, float]]:
        """Return the first pattern that matches each layer that makes the group's channels.

        A group has the name of one of its layers. For another layer that makes its channels, the
        group's name counts only if no pattern matches that layer's own name. For norms, which only
        pass channels on, both names count alike.
        """
        own: dict[str, tuple[str, float]] = {}
        makers = _parameters(group, (Role.OUT,))
        for parameter in self._making(group):
            by_name = [pair for pair in shares if _matches(parameter, pair[0])]
            by_group = [pair for pair in shares if fnmatchcase(group.name, pair[0])]
            if parameter in makers:
                matches = by_name + by_group
            else:
                matches = [pair for pair in shares if pair in by_name or pair in by_group]
            if matches:
                own.setdefault(layer_of(parameter), matches[0])
        return own

    def _making(self, group: ChannelGroup) -> list[str]:
        """Return the parameters of the layers that output the group's channels, norms included."""
        return _parameters(group, (Role.OUT, Role.ALONG))

    def _consuming(self, group: ChannelGroup) -> list[str]:
        """Return the parameters of the layers that have the group's channels as input.

        Norms and depthwise layers are among them, but not the bias of a layer that makes the
        channels.
        """
        along = _parameters(group, (Role.ALONG,))
        passing = [name for name in along if layer_of(name) not in self.turning]
        return [*_parameters(group, (Role.IN,)), *passing]

    def _note_others(self, group: ChannelGroup, patterns: tuple[str, ...], text: str) -> None:
        """Add a note if layers that make the group's channels are matched by no pattern."""
        others = layers_of(
            name
            for name in _parameters(group, (Role.OUT,))
            if not any(_matches(name, pattern) for pattern in patterns)
        )
        if others:
            self.notes.append(
                f"{text} the channels of {', '.join(others)} too: they are those of one group, "
                f"{group.name}"
            )

    def _check(self, word: str, pattern: str) -> None:
        """Refuse a pattern that matches nothing."""
        if any(fnmatchcase(name, pattern) for name in self.names):
            return
        near = difflib.get_close_matches(pattern, sorted(self.names), n=3, cutoff=0.4)
        raise BudgetError(
            f"{word} {pattern!r} matches no layer",
            why="patterns are over the names of named_modules(), such as "
            + ", ".join(group.name for group in self.channels.groups[:3]),
            do=f"did you mean {' or '.join(near)}?" if near else "fxprune inspect shows the names",
        )

    def _refuse_idle(self, word: str, pattern: str) -> None:
        """Refuse a pattern whose layers make no channels that could be removed."""
        if any(self._first(group, ((pattern, 1.0),)) for group in self.channels.groups):
            return
        reasons = {
            pinned.reason
            for pinned in self.channels.pinned
            if any(_matches(name, pattern) for name in pinned.parameters)
        }
        raise BudgetError(
            f"{word} {pattern!r} matches no channels that could be removed",
            why="; ".join(sorted(reasons)) or "its layers make none of their own",
            do="fxprune inspect shows the groups, and what is pinned; leave the pattern out",
        )


def _parameters(group: ChannelGroup, roles: Collection[Role]) -> list[str]:
    """Return the parameters in one of the roles to the group's channels, without repeats."""
    return list(dict.fromkeys(m.parameter for m in group.members if m.role in roles))


def _any(parameters: Iterable[str], pattern: str) -> bool:
    return any(_matches(name, pattern) for name in parameters)


def _matches(parameter: str, pattern: str) -> bool:
    """Tell whether a pattern names a parameter, its layer, or a module around it."""
    parts = parameter.split(".")
    return any(fnmatchcase(".".join(parts[:n]), pattern) for n in range(1, len(parts) + 1))
