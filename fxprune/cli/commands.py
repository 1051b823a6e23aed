"""The command line: each command is in a file of its own, and is registered here.

Commands import what they need when they run, so that --help and --version need no torch.
"""

import codecs
import contextlib
import functools
import inspect as introspection  # a command is called inspect
import io
import os
import re
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, ParamSpec, TypeVar

import typer

from fxprune import __version__
from fxprune.cli import console
from fxprune.cli.demo import demo
from fxprune.cli.env import env
from fxprune.cli.export import export
from fxprune.cli.instrument import inspect, instrument
from fxprune.cli.prune import prune
from fxprune.cli.report import report
from fxprune.cli.signals import ending
from fxprune.cli.train import train
from fxprune.errors import FxpruneError, FxpruneWarning, ModelError, RunError, Unsaid

app = typer.Typer(
    name="fxprune",
    help="Channel pruning during training: from model.py to a compact ONNX file.\n\n"
    "Three steps: [bold]fxprune instrument model.py[/bold] writes a run directory, "
    "[bold]fxprune train[/bold] trains it at the narrow network's cost (or your own loop does), "
    "[bold]fxprune export --onnx[/bold] writes the compact network, checked against the trained "
    "one. A network that is trained already: [bold]fxprune prune[/bold] does all three."
    "\n\n[bold]fxprune demo[/bold] shows all three in under two minutes.",
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"fxprune {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool,
        typer.Option("--version", help="Print the version.", callback=_version, is_eager=True),
    ] = False,
) -> None:
    pass


P = ParamSpec("P")
T = TypeVar("T")


def _to_its_end(command: Callable[P, T]) -> Callable[P, T]:
    """Keep code of the user's, such as a loss, from ending a command, and from writing to stdout.

    A command would seem to have done its work, and its result could not be read by a program.
    """

    @functools.wraps(command)
    def called(*args: P.args, **kwargs: P.kwargs) -> T:
        try:
            with console.results_alone():
                return command(*args, **kwargs)
        except Unsaid:
            raise
        except SystemExit as error:
            from fxprune.user_lines import user_line

            raise ModelError(
                "the command was ended by code that it called",
                at=user_line(error),
                why=f"it raised SystemExit({error.code!r})",
                do="take out the call of sys.exit, or raise an error",
            ) from error

    return called


def _help_of(command: Callable[..., None]) -> str:
    """Write a docstring as help: paragraphs that the terminal breaks, and an example a line."""
    paragraphs = []
    for paragraph in (introspection.getdoc(command) or "").split("\n\n"):
        text = " ".join(paragraph.split())
        if text.startswith("Examples:"):
            text = "\n  ".join(["Examples:", *re.findall(r"\[bold\].*?\[/bold\]", text)])
        paragraphs.append(text)
    return "\n\n".join(paragraphs)


for command in (inspect, prune, instrument, train, export, report, demo, env):
    app.command(help=_help_of(command))(_to_its_end(command))


def main() -> None:
    """Run the command line; a refusal is one message on stderr and its error's exit code."""
    if not sys.warnoptions:
        warnings.simplefilter("ignore")  # of torch and its exporter; -W brings them back
        warnings.simplefilter("always", FxpruneWarning)
        warnings.showwarning = lambda message, *_, **__: console.note(str(message))
    _open_streams()
    try:
        with ending(), _os_errors_refused():
            app()
    except FxpruneError as error:
        with contextlib.suppress(OSError):  # stderr may be what failed
            typer.echo(f"error: {error}", err=True)
        sys.exit(error.exit_code)


def _open_streams() -> None:
    """Open the standard streams that were closed, lest a file that is written gets their number."""
    while (handle := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass
    os.close(handle)
    sys.stdout = sys.stdout or os.fdopen(1, "w", closefd=False)
    sys.stderr = sys.stderr or os.fdopen(2, "w", closefd=False)
    codecs.register_error("plain", _plain)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="plain")


def _plain(error: UnicodeError) -> tuple[str, int]:
    """Write what the terminal's encoding lacks in ASCII; names of files may be no text at all."""
    assert isinstance(error, UnicodeEncodeError)
    known = {"…": "...", "–": "-", "·": "-", "×": "x", "±": "+-", "→": "->", "\u00a0": " "}
    known |= zip(console.BLOCKS, "_.:-=+*#", strict=True)
    lacking = error.object[error.start : error.end]
    texts = (known.get(c) or c.encode("ascii", "backslashreplace").decode() for c in lacking)
    return "".join(texts), error.end


@contextlib.contextmanager
def _os_errors_refused() -> Iterator[None]:
    """Turn an OSError that no other code has explained into a refusal."""
    try:
        Path.cwd()
    except OSError as error:
        raise RunError(
            "the current folder is gone", why=str(error), do="change to a folder that exists (cd)"
        ) from error
    try:
        yield
    except OSError as error:
        try:
            sys.stdout.flush()
        except OSError:  # a full disk: what is left in it would be tried again at the end
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        from fxprune.user_lines import user_line

        raise RunError(
            "the operating system refused a call",
            at=user_line(error),
            why=str(error),
            do="check the file or connection that it names: its permissions, the space on the disk",
        ) from error
