"""The command demo."""

from pathlib import Path
from typing import Annotated

import typer

from fxprune.cli import console
from fxprune.cli.arguments import Json, print_result, show_tick


def demo(
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="DIR", help="Folder for what it writes.")
    ] = Path("fxprune-demo"),
    as_json: Json = False,
) -> None:
    """Show the whole way in one go: a small CNN learns digits, dense and gated, side by side.

    Under two minutes on two cores. Needs scikit-learn, which the extra "demo" brings.
    """
    from fxprune import demo as demonstration
    from fxprune.cli import records, tables

    with console.bar("reading the digits") as bar:

        def begin(what: str) -> None:
            bar.rename(what)
            bar.say(what)

        shown = demonstration.run(output, begin=begin, progress=lambda tick: show_tick(bar, tick))
    print_result(records.of_demo(shown), tables.show_demo, as_json)
