"""A run has a report after its training, with the export's figures after its export."""

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from fxprune.cli.commands import app
from tests.support.cli import PLAIN_MODEL

pytestmark = pytest.mark.slow


def call(*arguments: str) -> str:
    result = CliRunner().invoke(app, list(arguments), catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def records(path: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(
        path.read_text().split('id="data">')[1].split("</script>")[0]
    )
    return found


def test_train_export_and_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("model.py").write_text(PLAIN_MODEL)
    for name, policy in (("a", "cucb"), ("b", "fixed")):
        run = f"{name}.fxprune"
        call(
            *("instrument", "model.py", "--input", "1x8x8", "--policy", policy),
            *("--budget", "macs=0.5", "-o", run),
        )
        call("train", run, "--data", "digits", "--epochs", "2", "--log", "csv")
    page = Path("a.fxprune/report.html")
    (record,) = records(page)
    assert [epoch["epoch"] for epoch in record["epochs"]] == [1, 2]
    assert len(record["epochs"][0]["widths"]) == len(record["groups"])
    assert record["export"] is None
    assert len(Path("a.fxprune/metrics.csv").read_text().splitlines()) == 1 + 2

    call("export", "a.fxprune", "--onnx")
    (record,) = records(page)
    onnx = record["export"]["onnx"]
    assert onnx["max_rel_error"] <= onnx["tolerance"]
    assert onnx["compact"]["params"] == record["params"]["compact"]

    page.unlink()
    assert "does not say what the checkpoint does" not in call("report", "a.fxprune")
    assert records(page) == [record]
    lines = Path("a.fxprune/metrics.jsonl").read_text()
    for damaged in (lines[:100], "", lines.replace("{", '{"mine": 1, ', 1), "\0"):
        Path("a.fxprune/metrics.jsonl").write_text(damaged)
        assert "does not say what the checkpoint does" in call("report", "a.fxprune")
        assert records(page) == [record]
    call("report", "a.fxprune", "b.fxprune", "-o", "both.html")
    assert [one["title"] for one in records(Path("both.html"))] == ["a.fxprune", "b.fxprune"]
    result = CliRunner().invoke(app, ["report", "a.fxprune", "--dense", "b.fxprune"])
    assert "b.fxprune is no dense network's training" in str(result.exception)


def test_a_file_that_is_no_report_is_not_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("model.py").write_text(PLAIN_MODEL)
    for run in ("a.fxprune", "b.fxprune"):
        call("instrument", "model.py", "--input", "1x8x8", "-o", run)
    Path("report.html").write_text("my own page")
    both = ("report", "a.fxprune", "b.fxprune")
    for arguments, name in (
        ((*both, "-o", "model.py"), "model.py"),
        ((*both, "-o", "a.fxprune/plan.json"), "a.fxprune/plan.json"),
        (both, "report.html"),
    ):
        before = Path(name).read_text()
        result = CliRunner().invoke(app, arguments)
        assert f"{name} is there already, and is no report" in str(result.exception)
        assert Path(name).read_text() == before
    for _ in range(2):
        call(*both, "-o", "both.html")  # a report is replaced


def test_figures_that_someone_wrote_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("model.py").write_text(PLAIN_MODEL)
    call("instrument", "model.py", "--input", "1x8x8", "-o", "a.fxprune")
    Path("a.fxprune/export.json").write_text('{"onnx": {"batches": [1], "bytes": "many"}}')
    result = CliRunner().invoke(app, ["report", "a.fxprune"])
    assert "cannot read a.fxprune/export.json" in str(result.exception)
    result = CliRunner().invoke(app, ["report", "a.fxprune", "--dense", "nowhere"])
    assert "nowhere has no epoch to draw" in str(result.exception)
