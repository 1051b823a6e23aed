"""The command report."""

from pathlib import Path
from typing import Annotated

import typer

from fxprune.cli import console
from fxprune.cli.arguments import Trust, run_of
from fxprune.errors import OptionError, shell_word


def report(
    folders: Annotated[
        list[Path] | None,
        typer.Argument(
            metavar="RUN",
            help="Run directories; several are compared. By default the one in the current "
            "directory, the newest if there are several.",
            show_default=False,
        ),
    ] = None,
    dense: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="The folder of the dense network's training, with its metrics.jsonl, to draw "
            "beside one run.",
            show_default=False,
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            metavar="FILE",
            help="The HTML file; by default RUN/report.html, for several runs report.html here.",
            show_default=False,
        ),
    ] = None,
    trust: Trust = False,
) -> None:
    """Write a report: one HTML file with what a training did, which opens without a network.

    Examples: [bold]fxprune report model.fxprune[/bold],
    [bold]fxprune report a.fxprune b.fxprune -o compared.html[/bold].
    """
    from fxprune.cli.spec import network_of
    from fxprune.report import page
    from fxprune.report.of_runs import PAGE, record_of
    from fxprune.runs.history import METRICS
    from fxprune.runs.run import metrics_agree, metrics_of

    runs = [run_of(folder, trust=trust) for folder in folders or (None,)]
    if dense is not None and len(runs) > 1:
        raise OptionError(
            "--dense goes with one run",
            why=f"{len(runs)} runs are given",
            do="name one of them, or leave --dense out",
        )
    target = output or (runs[0].path / PAGE if len(runs) == 1 else Path(PAGE))
    if target.is_dir():
        raise OptionError(f"{target} is a folder", do="give -o the name of a file")
    if target.is_file() and target not in [run.path / PAGE for run in runs]:
        page.refuse_to_replace(target)
    beside = [] if dense is None else metrics_of(dense)
    if dense is not None and not beside:
        raise OptionError(
            f"{dense} has no epoch to draw",
            why=f"there is no {METRICS}, or it is empty",
            do="give --dense the folder of the dense network's training, or leave it out",
        )
    if any(metrics["widths"] for metrics in beside):
        raise OptionError(
            f"{dense} is no dense network's training",
            why="its epochs have widths: a gated network was trained there",
            do=f"name it as another run: fxprune report {shell_word(runs[0].path)} "
            f"{shell_word(str(dense))} -o compared.html",
        )
    with console.phases([f"building {run.path.name}" for run in runs]) as begin:
        records = []
        for run in runs:
            begin()
            gated = run.load(network_of(run))
            if not metrics_agree(run):
                console.note(
                    f"{run.path / METRICS} does not say what the checkpoint does: it is damaged or "
                    "was edited. The report is of the checkpoint"
                )
            record = record_of(run, gated, beside)
            if [one.path.name for one in runs].count(run.path.name) > 1:
                record["title"] = str(run.path)
            records.append(record)
    size = page.write(target, records)
    console.note(f"wrote {target}, {size / 1000:.0f} kB")
