"""Plug-ins are found in their folder, and built from their text form."""

import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Literal

import pytest

from fxprune.errors import OptionError
from fxprune.registry import build, collect, from_text, imported, known, to_text


@dataclass(frozen=True)
class Base:
    """What the plug-ins of these tests derive from."""

    keys: ClassVar[tuple[str, ...]]


@dataclass(frozen=True)
class Plain(Base):
    keys = ("plain", "p")


@dataclass(frozen=True)
class Tuned(Base):
    keys = ("tuned",)

    rate: float = 0.5
    often: int = 3
    form: Literal["batch", "sample"] = "batch"
    loud: bool = False
    name: str = "x"
    inside: int = field(default=0, init=False)


@dataclass(frozen=True)
class Rich(Base):
    keys = ("rich",)

    bits: int
    at: tuple[int, ...] = (1, 2)
    most: float | None = None
    names: list[str] = field(default_factory=list)
    path: Path = Path("a")


KNOWN = {"plain": Plain, "p": Plain, "tuned": Tuned, "rich": Rich}

PLUGIN = """
import abc
from tests.unit.test_registry import Base

class {name}(Base):
    keys = {keys}

class {name}Abstract(Base, abc.ABC):
    keys = ("abstract",)
    @abc.abstractmethod
    def method(self): ...
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An importable package of this test's own, called `plugs`."""
    package = tmp_path / "plugs"
    package.mkdir()
    (package / "__init__.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    yield package
    for name in [name for name in sys.modules if name.partition(".")[0] == "plugs"]:
        del sys.modules[name]


def test_a_file_in_the_folder_is_a_plug_in(folder: Path) -> None:
    (folder / "b.py").write_text(PLUGIN.format(name="Second", keys='("two", 2)'))
    (folder / "a.py").write_text(PLUGIN.format(name="First", keys='("one",)'))
    (folder / "helper.py").write_text("from plugs.a import First\nfrom plugs.b import Second\n")
    found = collect("plugs", Base)
    assert [(key, cls.__name__) for key, cls in found.items()] == [
        ("one", "First"),
        ("two", "Second"),
        (2, "Second"),
    ]


def test_the_table_is_read_only(folder: Path) -> None:
    (folder / "a.py").write_text(PLUGIN.format(name="First", keys='("one",)'))
    found = collect("plugs", Base)
    with pytest.raises(TypeError):
        found["two"] = found["one"]  # type: ignore[index]


def test_duplicates_are_refused(folder: Path) -> None:
    (folder / "a.py").write_text(PLUGIN.format(name="First", keys='("one",)'))
    (folder / "b.py").write_text(PLUGIN.format(name="Second", keys='("two", "one")'))
    with pytest.raises(OptionError) as refusal:
        collect("plugs", Base)
    assert str(refusal.value) == (
        "two plug-ins are called one\n"
        "  at   plugs.a and plugs.b\n"
        "  do   give one of them another key"
    )


@pytest.mark.parametrize(
    ("text", "plugin"),
    [
        ("plain", Plain()),
        ("p", Plain()),
        (" plain{} ", Plain()),
        ("tuned", Tuned()),
        ("tuned{rate=0.25}", Tuned(rate=0.25)),
        ("tuned{ often = 7 , form=sample,}", Tuned(often=7, form="sample")),
        ("tuned{loud=true,rate=1e-3}", Tuned(loud=True, rate=0.001)),
        ("tuned{loud=False,name=a-b}", Tuned(name="a-b")),
        ("rich{bits=4}", Rich(4)),
        ("rich{bits=4,at=(3,),most=0.5}", Rich(4, (3,), 0.5)),
        ("rich{bits=4,at=[3,4],most=None}", Rich(4, (3, 4))),
        ("rich{bits=4,names=['a','b,c'],path=x/y}", Rich(4, names=["a", "b,c"], path=Path("x/y"))),
    ],
)
def test_text_forms(text: str, plugin: Base) -> None:
    assert from_text(text, KNOWN, "thing") == plugin
    assert from_text(to_text(plugin), KNOWN, "thing") == plugin


def test_only_what_differs_is_written() -> None:
    assert to_text(Plain()) == "plain"
    assert to_text(Tuned()) == "tuned"
    assert to_text(Tuned(often=4, loud=True)) == "tuned{often=4,loud=True}"
    assert to_text(Rich(4)) == "rich{bits=4}"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "tuned(rate=1)",
            "cannot read the thing 'tuned(rate=1)'\n"
            "  why  it is not of the form name or name{option=value,…}\n"
            "  do   known: plain, p, tuned, rich",
        ),
        ("", "cannot read the thing ''"),
        ("other", "unknown thing 'other'\n  do   known: plain, p, tuned, rich"),
        (
            "tuned{rat=1}",
            "the thing 'tuned' has no option 'rat'\n"
            "  do   known options: form, loud, name, often, rate",
        ),
        ("tuned{inside=1}", "the thing 'tuned' has no option 'inside'"),
        ("plain{rate=1}", "the thing 'plain' has no option 'rate'\n  do   known options: none"),
        (
            "tuned{rate}",
            "cannot read 'rate' in the thing 'tuned{rate}'\n  do   write option=value",
        ),
        (
            "tuned{rate=1,rate=2}",
            "an option of the thing 'tuned{rate=1,rate=2}' is given twice",
        ),
        (
            "tuned{rate=fast}",
            "option 'rate' of the thing 'tuned' cannot be 'fast'\n  do   give a number",
        ),
        (
            "tuned{often=1.5}",
            "option 'often' of the thing 'tuned' cannot be '1.5'\n  do   give a whole number",
        ),
        (
            "tuned{form=both}",
            "option 'form' of the thing 'tuned' cannot be 'both'\n  do   give one of batch, sample",
        ),
        (
            "tuned{loud=1}",
            "option 'loud' of the thing 'tuned' cannot be '1'\n  do   give true or false",
        ),
        (
            "rich{bits=4,at=5}",
            "option 'at' of the thing 'rich' cannot be '5'\n"
            "  do   give a value of its type, tuple[int, ...]",
        ),
        ("rich", "the thing 'rich' needs its option 'bits'\n  do   write {bits=…}"),
    ],
)
def test_refusals(text: str, message: str) -> None:
    with pytest.raises(OptionError) as refusal:
        from_text(text, KNOWN, "thing")
    assert str(refusal.value).startswith(message)


def test_build_takes_texts() -> None:
    assert build(Tuned, {"often": "9", "name": "y"}, "thing") == Tuned(often=9, name="y")


@pytest.mark.usefixtures("folder")
def test_a_class_from_elsewhere_is_known_once_it_is_imported() -> None:
    class Tool:
        keys: ClassVar[tuple[str, ...]]

    def define() -> type[Tool]:
        class Mine(Tool):
            keys = ("mine",)

        return Mine

    assert imported(Tool) == ()
    first = define()
    assert known("plugs", Tool) == {"mine": first}
    again = define()  # as a notebook's cell, run again
    assert known("plugs", Tool) == {"mine": again}

    class Unnamed(again):  # type: ignore[misc,valid-type]
        pass

    assert imported(Tool) == (again,)

    class Second(Tool):
        keys = ("mine",)

    with pytest.raises(OptionError, match="two plug-ins are called mine"):
        known("plugs", Tool)
    assert Second in imported(Tool)


@pytest.mark.parametrize("keys", ['"one"', "None"])
def test_keys_that_are_no_tuple_are_refused(folder: Path, keys: str) -> None:
    (folder / "a.py").write_text(PLUGIN.format(name="First", keys=keys))
    with pytest.raises(OptionError, match=r"the keys of plugs\.a\.First are (a str|None)"):
        collect("plugs", Base)
