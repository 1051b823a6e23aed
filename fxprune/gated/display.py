"""Show a gated network: how it chooses, what executes now, and what that costs."""

import html
from collections.abc import Sequence
from dataclasses import dataclass

from fxprune import registry
from fxprune.gated.executing import Executing

ROWS = 20
"""Groups that are named; the whole stays under 30 lines."""


@dataclass(frozen=True)
class GatedPicture:
    """What is shown of a gated network.

    Attributes:
        policy: in its text form.
        budget: in its text form.
        steps: observed optimiser steps.
        state: "training", "evaluation" or "settled".
        macs: multiply-accumulates of one example, now and dense.
        params: elements of the parameters, now and dense.
        groups: of each channel group its name, the channels that execute, and all.
    """

    policy: str
    budget: str
    steps: int
    state: str
    macs: tuple[int, int]
    params: tuple[int, int]
    groups: Sequence[tuple[str, int, int]]


def picture_of(gated: Executing) -> GatedPicture:
    """Read what is shown of a gated network."""
    graph, cost, widths = gated.channels, gated.cost, gated.widths
    mode = "training" if gated.training else "evaluation"
    names = (group.name for group in graph.groups)
    return GatedPicture(
        policy=registry.to_text(gated.settings.policy),
        budget=gated.settings.budget.asked,
        steps=gated.steps,
        state=f"{mode}, settled" if gated.settled else mode,
        macs=(cost.macs(widths), cost.dense_macs),
        params=(cost.params(widths), cost.dense_params),
        groups=list(zip(names, widths, graph.layout.sizes, strict=True)),
    )


def as_text(shown: GatedPicture) -> str:
    """Show a gated network in at most 30 lines; the groups that give most come first."""
    lines = [_title(shown)]
    lines += [f"  {name:7} {value}" for name, value in _figures(shown)]
    lines += [f"  {name}  {now} of {whole} channels" for name, now, whole in _largest(shown)]
    if len(shown.groups) > ROWS:
        lines.append(f"  … and {len(shown.groups) - ROWS} more groups")
    return "\n".join(lines)


def as_html(shown: GatedPicture) -> str:
    """Show what `as_text` shows as HTML, for notebooks."""
    cells = "".join(
        f"<tr><td>{html.escape(name)}</td><td>{now}</td><td>{whole}</td></tr>"
        for name, now, whole in _largest(shown)
    )
    figures = " · ".join(f"{name} {value}" for name, value in _figures(shown))
    return (
        f"<p><b>{html.escape(_title(shown))}</b></p><p>{html.escape(figures)}</p>"
        "<table><thead><tr><th>group</th><th>executes</th><th>of</th></tr></thead>"
        f"<tbody>{cells}</tbody></table>"
    )


def _title(shown: GatedPicture) -> str:
    return f"gated network, {shown.state}, {shown.steps:,} steps"


def _figures(shown: GatedPicture) -> list[tuple[str, str]]:
    rows = [("policy", shown.policy), ("budget", shown.budget)]
    for name, (now, whole) in (("macs", shown.macs), ("params", shown.params)):
        rows.append((name, f"{now:,} of {whole:,} ({100 * now / max(whole, 1):.1f} %)"))
    return rows


def _largest(shown: GatedPicture) -> list[tuple[str, int, int]]:
    return sorted(shown.groups, key=lambda row: row[1] - row[2])[:ROWS]
