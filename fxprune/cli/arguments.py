"""What several commands share: their arguments, and how a result is printed."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fxprune.cli import console

if TYPE_CHECKING:
    from fxprune.runs.run import Run
    from fxprune.trainer.loop import Tick


Spec = Annotated[
    str,
    typer.Argument(
        metavar="SPEC",
        help="Where the network comes from: [bold]model.py[/bold] (with a build_model() or a "
        "model, and perhaps example_inputs), [bold]model.py:factory[/bold], "
        "[bold]pkg.mod:factory[/bold], [bold]torchvision:resnet18[/bold], "
        "[bold]timm:resnet10t[/bold]. Options for the factory go in braces: "
        "'torchvision:resnet18{num_classes=10}'.",
        show_default=False,
    ),
]


Input = Annotated[
    str | None,
    typer.Option(
        "--input",
        metavar="3x32x32",
        help="Shape of the input without the batch; several inputs with commas. Needed for files "
        "without example_inputs.",
        show_default=False,
    ),
]


Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]


RunFolder = Annotated[
    Path | None,
    typer.Argument(
        metavar="[RUN]",
        help="The run directory that [bold]fxprune instrument[/bold] wrote; by default the one "
        "in the current directory, the newest if there are several.",
        show_default=False,
    ),
]


Trust = Annotated[
    bool,
    typer.Option(
        "--trust",
        help="Let the run import and call the code that it names, from now on. Runs that were "
        "made here need no such word; in those of others read that code first.",
    ),
]


def run_of(folder: Path | None, *, trust: bool = False) -> "Run":
    """The run that is meant, with a note if there was a choice.

    Raises:
        RunError: there is none, or the user neither named its SPEC nor trusts it.
    """
    from fxprune.runs.run import Run

    if folder is not None:
        run, remark = Run.open(folder, trust=trust), ""
    else:
        run, remark = Run.find(Path(), trust=trust)
    if remark:
        console.note(remark)
    run.require("spec", run.spec)
    return run


def print_result(
    record: dict[str, Any], show: Callable[[dict[str, Any]], Any], as_json: bool
) -> None:
    """Prints a record as JSON, or as the table that `show` makes of it."""
    if as_json:
        typer.echo(json.dumps(record, indent=2))
    else:
        console.stdout().print(show(record))


def show_tick(bar: console.Bar, tick: "Tick") -> None:
    """Moves a progress bar, and prints a line at the end of an epoch."""
    from fxprune.cli import tables

    bar.moved(tick.steps_done, tick.steps)
    if tick.metrics is not None:
        bar.say(tables.epoch_line(tick.metrics))
