"""What the command line shows: figures, tables, and bars with rate and time left.

Results go to stdout; bars and notes go to stderr, so that a result can be piped on.
"""

import contextlib
import os
import sys
import time
from collections.abc import Collection, Iterator, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

from rich import box
from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.markup import escape
from rich.measure import Measurement
from rich.padding import Padding
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    SpinnerColumn,
    Task,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from rich.text import Text

from fxprune.errors import without_controls

PIPED_WIDTH = 160  # columns of a table that no terminal limits
NAME_WIDTH = 16  # to which a name is shortened before anything else gives way
BLOCKS = "▁▂▃▄▅▆▇█"  # of a sparkline, the lowest first
SPARKS = 24  # values in a sparkline, at most
QUIET_SECONDS = 60.0  # after which a log without a bar says how far it is


def stdout() -> Console:
    """Return the console for results."""
    width = None if sys.stdout.isatty() else _width()
    return Console(width=width, highlight=False, soft_wrap=False)


def stderr() -> Console:
    """Return the console for bars and notes."""
    return Console(stderr=True, width=None if sys.stderr.isatty() else _width(), highlight=False)


def _width() -> int | None:
    """Return the columns of a pipe: those of the terminal that it ends in, such as a pager's.

    None leaves it to rich, which reads COLUMNS.
    """
    if "COLUMNS" in os.environ:
        return None
    for stream in (sys.__stderr__, sys.__stdin__, sys.__stdout__):
        with contextlib.suppress(OSError, ValueError, AttributeError):
            return os.get_terminal_size(stream.fileno()).columns or PIPED_WIDTH  # type: ignore[union-attr]
    return PIPED_WIDTH


@dataclass(frozen=True)
class Name:
    """A name in a table; where it does not fit, its middle is left out, not its end."""

    text: str
    least: int = NAME_WIDTH

    def __rich_measure__(self, console: Console, options: ConsoleOptions) -> Measurement:
        """Say how narrow and how wide it may become."""
        del console, options
        return Measurement(min(len(self.text), self.least), len(self.text))

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Give as much of it as fits."""
        del console
        yield Text(middle(self.text, options.max_width), no_wrap=True, overflow="crop")


def middle(text: str, width: int) -> str:
    """Shorten a text to `width` by leaving out its middle.

    >>> middle("layer3.0.conv1", 11), middle("layer3.0.conv2", 11), middle("conv1", 11)
    ('layer…conv1', 'layer…conv2', 'conv1')
    """
    if len(text) <= width:
        return text
    end = width // 2
    return f"{text[: width - 1 - end]}…{text[len(text) - end :]}"


def distinct_width(names: Collection[str]) -> int:
    """Find the least width, at least `NAME_WIDTH`, to which names are shortened to different ones.

    >>> distinct_width({"layer1.0.conv1", "layer2.0.conv1"})
    16
    >>> distinct_width({"features.0.block.2.conv", "features.1.block.2.conv"})
    21
    """
    longest = max(map(len, names), default=0)
    for width in range(NAME_WIDTH, longest):
        if len({middle(name, width) for name in names}) == len(names):
            return width
    return max(longest, NAME_WIDTH)


@contextlib.contextmanager
def silenced(when: bool) -> Iterator[None]:
    """Print nothing within the block, if `when` says so: one of several processes speaks."""
    if not when:
        yield
        return
    with (
        Path(os.devnull).open("w") as nowhere,
        contextlib.redirect_stdout(nowhere),
        contextlib.redirect_stderr(nowhere),
        _results_to(nowhere),
    ):
        yield


_RESULTS: ContextVar[TextIO | None] = ContextVar("_RESULTS", default=None)
"""Where results go while stdout is not theirs."""


@contextlib.contextmanager
def _results_to(stream: TextIO) -> Iterator[None]:
    token = _RESULTS.set(stream)
    try:
        yield
    finally:
        _RESULTS.reset(token)


@contextlib.contextmanager
def results_alone() -> Iterator[None]:
    """Keep stdout for results: what else is printed, as by the user's forward, goes to stderr."""
    with _results_to(sys.stdout), contextlib.redirect_stdout(sys.stderr):
        yield


@contextlib.contextmanager
def result() -> Iterator[None]:
    """Let what is printed within the block be a result."""
    with contextlib.redirect_stdout(_RESULTS.get() or sys.stdout):
        yield


def note(text: str) -> None:
    """Say something beside the result."""
    stderr().print(f"[dim]note[/dim]  {escape(without_controls(text))}", soft_wrap=True)


def big(value: float) -> str:
    """Format a count for people.

    >>> big(1204), big(40_551_936), big(2.7e9)
    ('1,204', '40.55 M', '2.70 G')
    """
    for limit, letter in ((1e9, "G"), (1e6, "M")):
        if abs(value) >= limit:
            return f"{value / limit:.2f} {letter}"
    return f"{value:,.0f}"


def size(count: int) -> str:
    """Format a size in bytes for people.

    >>> size(512), size(1_300_000)
    ('512 B', '1.3 MB')
    """
    for limit, unit in ((10**9, "GB"), (10**6, "MB"), (10**3, "kB")):
        if count >= limit:
            return f"{count / limit:.1f} {unit}"
    return f"{count} B"


def share(value: float, precision: int = 1) -> str:
    """Format a share as a percentage.

    >>> share(0.256)
    '25.6 %'
    """
    return f"{100 * value:.{precision}f} %"


def sparkline(values: Sequence[float]) -> str:
    """Draw the last values as a line of blocks, the least of them as the lowest.

    >>> sparkline([0.1, 0.5, 0.9]), sparkline([1.0, 1.0]), sparkline([])
    ('▁▅█', '▁▁', '')
    """
    last = list(values)[-SPARKS:]
    low, high = min(last, default=0.0), max(last, default=0.0)
    span = (high - low) or 1.0
    return "".join(BLOCKS[round((value - low) / span * (len(BLOCKS) - 1))] for value in last)


def milliseconds(seconds: float) -> str:
    """Format a short time, with three digits.

    >>> milliseconds(0.0000164), milliseconds(0.00123), milliseconds(0.0421), milliseconds(1.2)
    ('0.0164 ms', '1.23 ms', '42.1 ms', '1,200 ms')
    """
    value = 1000 * seconds
    return f"{value:,.0f} ms" if value >= 1000 else f"{value:.3g} ms"


def heading(text: str) -> Text:
    """Return the text that stands above a table."""
    return Text(text, style="bold")


class _Table(Table):
    """A table; where the terminal is too narrow for its columns, a list of its rows."""

    least = 0

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Give the table, or each cell in a line of its own, named by its column."""
        if options.max_width >= self.least:
            yield from super().__rich_console__(console, options)
            return
        for row in zip(*(column.cells for column in self.columns), strict=True):
            for at, (column, cell) in enumerate(zip(self.columns, row, strict=True)):
                text = escape(cell.text) if isinstance(cell, Name) else cell
                yield Padding(f"{column.header}: {text}".lstrip(" :"), (0, 0, 0, 2 if at else 0))


def table(
    columns: Sequence[str], rows: Sequence[Sequence[str]], *, text: Sequence[str] = ()
) -> Table:
    """Make a table whose columns hold figures, but for those named in `text`: names, or words."""
    result = _Table(box=box.SIMPLE_HEAD, show_header=any(column.strip() for column in columns))
    for at, column in enumerate(columns):
        figures = column not in text
        longest = max((len(row[at]) for row in rows), default=0)
        result.least += 3 + (longest if figures else min(longest, NAME_WIDTH))
        result.add_column(
            escape(column),
            justify="right" if figures else "left",
            no_wrap=figures,
            overflow="ellipsis" if figures else "fold",
            min_width=longest if figures else None,
        )
    least = [distinct_width({row[at] for row in rows}) for at in range(len(columns))]
    for row in rows:
        result.add_row(
            *(
                Name(cell, width) if column in text and " " not in cell and cell else escape(cell)
                for column, cell, width in zip(columns, row, least)
            )
        )
    return result


class _Rate(ProgressColumn):
    """Steps a second, or seconds a step where these are slow."""

    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        if not speed:
            return Text("– /s", style="progress.data.speed")
        text = f"{speed:.1f} /s" if speed >= 1 else f"{1 / speed:.1f} s each"
        return Text(text, style="progress.data.speed")


@dataclass
class Bar:
    """A bar over steps, with rate, time so far and time left; for use in a with statement.

    Where there is no terminal, a line says how far it is when nothing was said for a minute.
    """

    progress: Progress
    task: TaskID
    what: str = ""
    said: float = field(default_factory=time.monotonic)
    seen: list[Any] = field(default_factory=list)  # the epochs so far

    def moved(self, done: int, total: int) -> None:
        """Show that `done` of `total` steps are done."""
        self.progress.update(self.task, completed=done, total=total)
        silent = time.monotonic() - self.said > QUIET_SECONDS
        if silent and self.progress.disable:
            self.say(f"{self.what}: {done:,} of {total:,} steps, {share(done / max(total, 1))}")

    def below(self, parts: Sequence[str]) -> None:
        """Show some words under the bar, in a terminal, in as many lines as they need."""
        if isinstance(self.progress, _Bars):
            self.progress.below = parts

    def rename(self, what: str) -> None:
        """Name what the steps are from now on, and begin anew."""
        self.what = what
        self.seen.clear()
        self.below(())
        self.progress.reset(self.task, description=escape(what), total=None)

    def say(self, *lines: str) -> None:
        """Print lines above the bar."""
        self.said = time.monotonic()
        for line in lines:
            self.progress.console.print(escape(line), soft_wrap=True)


@contextlib.contextmanager
def bar(what: str) -> Iterator[Bar]:
    """Show a bar; in a narrow terminal less of it."""
    width = stderr().width
    columns: list[ProgressColumn] = [TextColumn("{task.description}"), MofNCompleteColumn()]
    if width >= 40:
        columns.insert(1, BarColumn(bar_width=24 if width >= 80 else 8))
        columns += [TextColumn("left"), TimeRemainingColumn()]
    if width >= 80:
        columns += [TextColumn("after"), TimeElapsedColumn(), _Rate()]
    with _progress(columns) as progress:
        yield Bar(progress, progress.add_task(escape(what), total=None), what)


class _Bars(Progress):
    """Bars with some words under them."""

    below: Sequence[str] = ()

    def get_renderables(self) -> Iterator[RenderableType]:
        """Yield the bars, and the lines where there are any."""
        yield from super().get_renderables()
        if self.below:  # rich asks once before there is a console
            for line in filled(self.below, self.console.width):
                yield Text(line, no_wrap=True, overflow="ellipsis")


def filled(parts: Sequence[str], width: int) -> list[str]:
    """Put as many parts into each line as fit.

    >>> filled(["epoch 2", "right 93.1 %", "12 ms a step"], 24)
    ['epoch 2   right 93.1 %', '12 ms a step']
    """
    lines: list[str] = []
    for part in parts:
        if lines and len(lines[-1]) + 3 + len(part) <= width:
            lines[-1] += f"   {part}"
        else:
            lines.append(part)
    return lines


def _progress(columns: Sequence[ProgressColumn]) -> Progress:
    """Make bars that move, and go when they are done; in a log only the lines said above them."""
    console = stderr()
    return _Bars(
        *columns,
        console=console,
        transient=True,
        disable=not console.is_interactive,
        speed_estimate_period=60,
    )


class Phases:
    """A bar over named phases; call it as each of them begins."""

    def __init__(self, progress: Progress, names: Sequence[str]) -> None:
        self.progress = progress
        self.names = iter(names)
        self.name, self.begun = "", -1
        self.said = time.monotonic()
        self.task = progress.add_task("", total=len(names))

    def __call__(self) -> None:
        """Begin the next phase."""
        self.name = next(self.names, "")
        self.begun += 1
        self.progress.update(self.task, completed=self.begun, description=escape(self.name))

    def remark(self, text: str) -> None:
        """Say how far the phase is; where there is no terminal, in a line a minute."""
        line = escape(f"{self.name}: {text}")
        self.progress.update(self.task, description=line)
        silent = time.monotonic() - self.said > QUIET_SECONDS
        if silent and self.progress.disable:
            self.said = time.monotonic()
            self.progress.console.print(line, soft_wrap=True)


@contextlib.contextmanager
def phases(names: Sequence[str]) -> Iterator[Phases]:
    """Show a bar over a few named phases."""
    columns = (
        SpinnerColumn(),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.description}"),
    )
    with _progress(columns) as progress:
        begin = Phases(progress, names)
        yield begin
        progress.update(begin.task, completed=len(names), description="")
