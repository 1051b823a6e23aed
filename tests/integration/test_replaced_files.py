"""Files of the user's that a command did not get the name of stay; an export replaces its own."""

from pathlib import Path

import pytest

from fxprune.export.marks import is_exported
from fxprune.runs.run import ADDED
from tests.support.cli import MODEL, Call

EXPORT = ("export", "model.fxprune")
OTHERS = b"made by another program"


@pytest.mark.parametrize(
    ("words", "name"),
    [
        ((), "model.onnx"),
        (("--pt2",), "model.pt2"),
        (("--int8",), "model.int8.onnx"),
        (("--torch",), "model.safetensors"),
        (("--torch", "-o", "small.py"), "small.safetensors"),
        (("--torch", "-o", "out"), "out/model.py"),
    ],
)
def test_what_was_not_named_is_not_replaced(
    words: tuple[str, ...], name: str, here: Path, call: Call
) -> None:
    (here / "out").mkdir()
    (here / name).write_bytes(OTHERS)
    before = sorted(here.iterdir())
    text = call(*EXPORT, *words, folder=here, exit_code=2).stderr
    assert "is there already, and no export wrote it" in text
    assert (here / name).read_bytes() == OTHERS
    assert sorted(here.iterdir()) == before


@pytest.mark.parametrize("words", [(), ("-o", "model.py"), ("-o", "./model.py")])
def test_the_code_of_the_network_is_never_replaced(
    words: tuple[str, ...], here: Path, call: Call
) -> None:
    text = call(*EXPORT, "--torch", *words, folder=here, exit_code=2).stderr
    assert "model.py is there already, and no export wrote it" in text
    assert "why  the run's network is built from it" in text
    assert (here / "model.py").read_text() == MODEL
    assert not (here / "model.safetensors").exists()


@pytest.mark.slow
def test_what_an_export_wrote_is_replaced_by_the_next(here: Path, call: Call) -> None:
    words = (*EXPORT, "--onnx", "--pt2", "--torch", "-o", "out")
    (here / "out").mkdir()
    (here / "model.fxprune").rename(here / "small.fxprune")
    names = {"small.onnx", "small.pt2", "small.py", "small.safetensors"}
    for _ in range(2):
        call(words[0], "small.fxprune", *words[2:], "--trust", folder=here)
        assert {path.name for path in (here / "out").iterdir() if is_exported(path)} == names
    (here / "out" / "small.onnx").write_bytes(OTHERS)
    call("export", "small.fxprune", "-o", "out/small.onnx", folder=here)  # named
    assert is_exported(here / "out" / "small.onnx")


def test_a_run_that_is_made_anew_has_nothing_of_the_one_before(here: Path, call: Call) -> None:
    for name in ADDED:
        (here / "model.fxprune" / name).write_text("of another network")
    call("instrument", "model.py", folder=here)
    names = {path.name for path in (here / "model.fxprune").iterdir()}
    assert names == {"plan.json", "checkpoint.safetensors"}
