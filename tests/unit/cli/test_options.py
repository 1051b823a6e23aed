"""Options of commands are the fields of the dataclass that they are read from."""

import dataclasses
import re
import subprocess
import sys
from typing import Annotated, Literal

import pytest
import typer
from typer.testing import CliRunner

from fxprune.cli import commands
from fxprune.cli.options import NONE_GIVEN, Given, described, options_of
from fxprune.trainer.options import TrainOptions
from fxprune.trainer.recipe import OPTIONS


@dataclasses.dataclass(frozen=True)
class Paint:
    """Paint something.

    Attributes:
        colour: of the `wall`, which may be
            bare [or not].
        coats: how many.
        thin: with water.
        hours: to dry.
    """

    colour: Literal["red", "blue"] = "red"
    coats: int = 2
    thin: bool = True
    hours: float | None = None


@pytest.fixture
def app() -> typer.Typer:
    made = typer.Typer()

    @made.command()
    @options_of(Paint(coats=3), "colour", "coats", "thin", "hours")
    def paint(
        wall: Annotated[str, typer.Argument()],
        given: Given = NONE_GIVEN,
        loud: Annotated[bool, typer.Option("--loud")] = False,
    ) -> None:
        typer.echo(f"{wall} {sorted(given.items())} {loud}")

    return made


def test_a_command_gets_only_what_was_given_with_the_fields_types(app: typer.Typer) -> None:
    run = CliRunner().invoke
    assert run(app, ["north"]).output == "north [] False\n"
    given = ["north", "--coats", "5", "--no-thin", "--hours", "0.5", "--colour", "blue", "--loud"]
    assert run(app, given).output == (
        "north [('coats', 5), ('colour', 'blue'), ('hours', 0.5), ('thin', False)] True\n"
    )
    assert run(app, ["north", "--colour", "green"]).exit_code == 2
    assert run(app, ["north", "--coats", "many"]).exit_code == 2


def test_help_is_what_the_docstring_says_and_defaults_are_the_instances(app: typer.Typer) -> None:
    text = " ".join(CliRunner().invoke(app, ["--help"], env={"COLUMNS": "200"}).output.split())
    assert "Of the wall, which may be bare [or not]. [default: (red)]" in text
    assert "How many. [default: (3)]" in text
    assert "--no-thin" in text
    assert "With water. [default: (on)]" in text
    assert "To dry. │" in text  # None is no default worth showing


def test_an_attribute_may_take_several_lines() -> None:
    assert described(Paint)["colour"] == "of the `wall`, which may be bare [or not]."
    assert list(described(Paint)) == [field.name for field in dataclasses.fields(Paint)]


def test_every_option_of_training_is_explained() -> None:
    assert list(described(TrainOptions)) == [
        field.name for field in dataclasses.fields(TrainOptions)
    ]


@pytest.mark.parametrize(
    ("command", "defaults", "apart"),
    [
        ("train", TrainOptions(), {"milestones", "decay", "recalibrate"}),
        ("prune", OPTIONS, None),
    ],
)
def test_commands_show_the_defaults_that_hold(
    command: str, defaults: TrainOptions, apart: set[str] | None
) -> None:
    parameters = typer.main.get_command(commands.app).commands[command].params  # type: ignore[attr-defined]
    shown = {option.name: option.show_default for option in parameters}
    names = {field.name for field in dataclasses.fields(TrainOptions)}
    if apart is not None:
        assert names - set(shown) == apart
    for name in names & set(shown):
        value = getattr(defaults, name)
        if value in (None, ""):
            assert shown[name] is False
        elif isinstance(value, bool):
            assert shown[name] == ("on" if value else "off")
        else:
            assert type(value)(shown[name]) == value


@pytest.mark.parametrize("command", ["inspect", "prune", "instrument", "train", "export", "report"])
def test_help_is_broken_by_the_terminal_and_has_an_example_a_line(command: str) -> None:
    text = CliRunner().invoke(commands.app, [command, "--help"], env={"COLUMNS": "500"}).output
    usage, *paragraphs = re.split(r"\n\s*\n", text.partition("╭")[0].strip())
    assert "[[" not in usage
    *prose, examples = paragraphs
    assert all("\n" not in paragraph for paragraph in prose)
    head, *lines = (line.strip() for line in examples.splitlines())
    assert head == "Examples:"
    assert lines
    assert all(re.match(r"(fxprune|torchrun) .*[^.,]$", line) for line in lines)


def test_help_needs_no_torch() -> None:
    code = (
        "import sys; from fxprune.cli.commands import app; "
        "app(['train', '--help'], standalone_mode=False); "
        "print(sorted({'torch', 'numpy'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == "[]"


@pytest.mark.parametrize(
    ("command", "said"),
    [
        ("export", "operators. [default: (the exporter's)]"),
        ("instrument", "[default: (balance, with --weights utility)]"),
        ("train", "file.py:factory"),
        ("prune", "one number for all. [default: (ImageNet's for folder:, else that of the"),
    ],
)
def test_help_holds_no_markup_by_mistake(command: str, said: str) -> None:
    """`:factory:` would become a picture, and a default in brackets of a text vanish."""
    text = CliRunner().invoke(commands.app, [command, "--help"], env={"COLUMNS": "250"}).output
    assert said in " ".join(text.split())
    assert "\N{FACTORY}" not in text
    assert "[bold]" not in text
