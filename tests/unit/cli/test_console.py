"""Tables and bars at widths that a terminal, a pager or a log has."""

import io
import os
import pty
import subprocess
import sys
import termios

import pytest
from rich.console import Console

from fxprune.cli import console
from fxprune.cli.arguments import print_result
from fxprune.errors import RunError

NAMES = ("layer3.0.downsample.conv1", "layer3.0.downsample.conv2")


def shown(width: int) -> str:
    table = console.table(
        ("group", "channels", "made by"),
        [(name, "1,024", ", ".join(NAMES * 3)) for name in NAMES],
        text=("group", "made by"),
    )
    page = Console(file=io.StringIO(), width=width, force_terminal=False)
    page.print(table)
    text = page.file.getvalue()  # type: ignore[attr-defined]
    assert max(map(len, text.splitlines())) <= width
    return str(text)


@pytest.mark.parametrize("width", [50, 60, 80])
def test_names_are_cut_in_the_middle(width: int) -> None:
    first = [line.split()[0] for line in shown(width).splitlines() if "1,024" in line]
    assert len(first) == len(set(first)) == 2, "what tells them apart stays"
    assert all(name.startswith("layer3") for name in first)


def test_names_that_fit_stay_whole() -> None:
    assert all(name in shown(200) for name in NAMES)


def test_a_table_that_does_not_fit_becomes_a_list_of_its_rows() -> None:
    lines = [line.rstrip() for line in shown(40).splitlines()]
    assert lines[0] == f"group: {NAMES[0]}"
    assert lines.count("  channels: 1,024") == 2
    assert all(word in " ".join(lines) for word in NAMES), "nothing is left out"


def test_a_pipe_has_the_width_of_the_terminal_that_it_ends_in() -> None:
    """A child whose output is piped, while its stderr is a terminal of 70 columns."""
    main, other = pty.openpty()
    termios.tcsetwinsize(other, (20, 70))
    code = "from fxprune.cli import console; print(console.stdout().width)"
    environment = {key: value for key, value in os.environ.items() if key != "COLUMNS"}
    with os.fdopen(main, "rb"), os.fdopen(other, "wb") as terminal:
        for stream, expected in ((terminal, "70"), (subprocess.DEVNULL, str(console.PIPED_WIDTH))):
            done = subprocess.run(
                [sys.executable, "-c", code],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=stream,
                env=environment,
                check=True,
                text=True,
            )
            assert done.stdout.strip() == expected


def test_a_log_says_how_far_it_is(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(console, "QUIET_SECONDS", 0.0)
    with console.bar("training") as bar:
        bar.moved(5, 20)
        bar.rename("measuring")
        bar.moved(1, 3)
    lines = capsys.readouterr().err.splitlines()
    assert lines == ["training: 5 of 20 steps, 25.0 %", "measuring: 1 of 3 steps, 33.3 %"]
    with console.phases(["measuring"]) as begin:
        begin()
        begin.remark("3 rounds")
    assert capsys.readouterr().err.splitlines() == ["measuring: 3 rounds"]
    monkeypatch.setattr(console, "QUIET_SECONDS", 60.0)
    with console.bar("training") as bar:
        bar.moved(5, 20)
    assert not capsys.readouterr().err


@pytest.mark.parametrize(
    ("width", "lines"),
    [
        (100, ["epoch 1   right 90 %   ▁█   2 ms a step"]),
        (24, ["epoch 1   right 90 %", "▁█   2 ms a step"]),
    ],
)
def test_a_terminal_shows_all_of_the_words_under_the_bar(
    monkeypatch: pytest.MonkeyPatch, width: int, lines: list[str]
) -> None:
    screen = io.StringIO()
    monkeypatch.setattr(
        console, "stderr", lambda: Console(file=screen, force_terminal=True, width=width)
    )
    with console.bar("training") as bar:
        bar.moved(3, 10)
        bar.below(["epoch 1", "right 90 %", "▁█", "2 ms a step"])
    for line in lines:
        assert line in screen.getvalue()


@pytest.mark.parametrize("terminal", ["dumb", "xterm"])
def test_a_bar_moves_only_where_a_terminal_can_move_it(
    monkeypatch: pytest.MonkeyPatch, terminal: str
) -> None:
    screen = io.StringIO()
    made = Console(
        file=screen, force_terminal=True, width=20, highlight=False, _environ={"TERM": terminal}
    )
    monkeypatch.setattr(console, "stderr", lambda: made)
    with console.bar("training") as bar:
        bar.moved(3, 10)
        bar.say("epoch 1")
    said = screen.getvalue()
    assert ("3/10" in said) == ("\x1b[" in said) == (terminal == "xterm")
    assert "epoch 1" in said


def test_a_terminal_that_knows_ascii_alone_gets_signs_of_it() -> None:
    code = (
        "import sys; from fxprune.cli import commands, console; commands._open_streams();"
        "[print(console.sparkline([0, 1, 2]), '1 – 2 …', file=f) for f in (sys.stdout, sys.stderr)]"
    )
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True)
    assert done.stdout == done.stderr == b"_=# 1 - 2 ...\n"


def test_a_text_of_a_stranger_commands_no_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    text = "iou\x1b[2J\x9b2J\r\a"
    print_result({"metric": [text]}, lambda record: record["metric"][0], as_json=False)
    console.note(text)
    done = capsys.readouterr()
    refusal = str(RunError(text, at=text, why=text, do=f"{text}\nsecond line"))
    for said in (done.out, done.err, refusal):
        assert r"iou\x1b[2J\x9b2J\r\x07" in said
        assert all(char.isprintable() or char == "\n" for char in said)
