"""Show a channel graph: as a short table of text or HTML, as DOT, as a picture."""

import html
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

ROWS = 20
"""Groups that a table names; with totals and pinned channels it stays under 30 lines."""
REASONS = 5
"""Reasons of pinned channels that a table names."""
SHORT = 40
"""Characters that two names may have together in a cell."""
_HEAD = ("group", "channels", "macs", "made by", "consumed by")


@dataclass(frozen=True)
class GroupRow:
    """A channel group, as it is shown: the layers that make its channels, and that consume them."""

    name: str
    size: int
    macs: int
    makes: Sequence[str]
    consumes: Sequence[str]


@dataclass(frozen=True)
class PinRow:
    """Channels that are pinned for one reason."""

    channels: int
    macs: int
    reason: str


@dataclass(frozen=True)
class Picture:
    """What is shown of a channel graph."""

    groups: Sequence[GroupRow]
    pinned: Sequence[PinRow]

    @property
    def layers(self) -> list[str]:
        """All layers that own channels of a group, once each."""
        return list(dict.fromkeys(n for g in self.groups for n in (*g.makes, *g.consumes)))


def as_text(graph: Picture) -> str:
    """Show the groups, the largest first, and what is pinned: at most 30 lines."""
    rows = [_HEAD, *_rows(graph)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(_HEAD))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths)) for row in rows]
    return "\n".join(line.rstrip() for line in [_title(graph), *lines, *_more(graph)])


def as_html(graph: Picture) -> str:
    """Show what `as_text` shows as an HTML table, for notebooks."""
    rows = "".join(_row(row, "td") for row in _rows(graph))
    more = "".join(f"<p>{html.escape(line)}</p>" for line in _more(graph))
    return (
        f"<p><b>{html.escape(_title(graph))}</b></p>"
        f"<table><thead>{_row(_HEAD, 'th')}</thead><tbody>{rows}</tbody></table>{more}"
    )


def as_dot(graph: Picture) -> str:
    """Write the graph in Graphviz's language: layers and groups, what makes and what consumes."""
    lines = ["digraph channels {", "  rankdir=TB;", "  node [fontname=Helvetica];"]
    for index, group in enumerate(graph.groups):
        text = f"{group.name}\n{group.size} channels"
        lines.append(f"  {_quoted(f'group {index}')} [label={_quoted(text)}, shape=ellipse];")
    lines += [f"  {_quoted(name)} [shape=box];" for name in graph.layers]
    for index, group in enumerate(graph.groups):
        node = _quoted(f"group {index}")
        lines += [f"  {_quoted(name)} -> {node};" for name in group.makes]
        lines += [f"  {node} -> {_quoted(name)};" for name in group.consumes]
    return "\n".join([*lines, "}", ""])


def plot(graph: Picture) -> Any:
    """Draw the graph with Matplotlib: layers from top to bottom, groups beside them.

    Returns:
        A `matplotlib.figure.Figure`.

    Raises:
        ImportError: Matplotlib is not installed.
    """
    from matplotlib.figure import Figure

    height = {name: -index for index, name in enumerate(graph.layers)}
    figure = Figure(figsize=(7, max(2.5, 0.24 * len(height) + 1)), layout="constrained")
    axes = figure.subplots()
    ends = [[height[name] for name in (*group.makes, *group.consumes)] for group in graph.groups]
    shown = [index for index, around in enumerate(ends) if around]
    shown.sort(key=lambda index: -sum(ends[index]) / len(ends[index]))
    apart = (len(height) - 1) / max(len(shown) - 1, 1)  # evenly, so that no two names meet
    for row, index in enumerate(shown):
        group, y, color = graph.groups[index], -row * apart, f"C{index % 10}"
        for names, style in ((group.makes, "-"), (group.consumes, ":")):
            for name in names:
                axes.plot([0, 1], [height[name], y], color=color, linewidth=1.2, linestyle=style)
        axes.annotate(f"  {group.name} ({group.size})", (1, y), va="center", fontsize=8)
        axes.plot([1], [y], "o", color=color, markersize=5)
    axes.set_yticks(list(height.values()), list(height))
    axes.set_xlim(-0.05, 1.6)
    axes.set_xticks([])
    axes.tick_params(axis="y", labelsize=8)
    axes.set_title("solid: makes the group's channels; dotted: consumes them", fontsize=9)
    for side in ("top", "right", "bottom"):
        axes.spines[side].set_visible(False)
    return figure


def _title(graph: Picture) -> str:
    free = sum(group.size for group in graph.groups)
    pinned = sum(pin.channels for pin in graph.pinned)
    return f"{len(graph.groups)} channel groups, {free:,} channels; {pinned:,} are pinned"


def _rows(graph: Picture) -> list[tuple[str, ...]]:
    whole = max(sum(group.macs for group in graph.groups) + sum(p.macs for p in graph.pinned), 1)
    largest = sorted(graph.groups, key=lambda group: -group.macs)[:ROWS]
    return [
        (
            group.name,
            str(group.size),
            f"{100 * group.macs / whole:.1f} %",
            _few(group.makes),
            _few(group.consumes),
        )
        for group in largest
    ]


def _more(graph: Picture) -> list[str]:
    lines = []
    if len(graph.groups) > ROWS:
        lines.append(f"… and {len(graph.groups) - ROWS} smaller groups")
    pins = sorted(graph.pinned, key=lambda pin: -pin.macs)
    lines += [f"pinned: {pin.channels:,} channels, {pin.reason}" for pin in pins[:REASONS]]
    if len(pins) > REASONS:
        lines.append(f"… and {len(pins) - REASONS} more; str(graph) has all")
    return lines


def _few(names: Sequence[str]) -> str:
    """List two names, or one where they are long, and how many there are beside these."""
    first = names[: 2 if sum(map(len, names[:2])) <= SHORT else 1]
    left = len(names) - len(first)
    return ", ".join(first) + (f" and {left} more" if left else "")


def _row(cells: Sequence[str], tag: str) -> str:
    return "<tr>" + "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in cells) + "</tr>"


def _quoted(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n") + '"'
