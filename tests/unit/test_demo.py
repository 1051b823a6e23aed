"""The demo, with one epoch instead of all."""

import dataclasses
import json
from pathlib import Path

import pytest
import torch

from fxprune import analyze, demo, instrument
from fxprune.cli import records
from fxprune.cli.spec import resolve
from fxprune.data import from_tensors
from fxprune.errors import RunError
from fxprune.runs.run import Run
from fxprune.trainer.job import Job

SHORT = dataclasses.replace(demo.OPTIONS, epochs=1)


def test_all_channels_of_its_network_are_free() -> None:
    graph = analyze(demo.build_model(), demo.example_inputs)
    width = demo.WIDTH
    assert sum(group.size for group in graph.groups) == 2 * width + 2 * 2 * width + 2 * 4 * width
    assert sum(pin.channels for pin in graph.pinned) == 10  # the classes


def test_steps_are_timed_on_copies(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo, "TURNS", 3)
    dense = demo.build_model()
    gated = instrument(dense, demo.example_inputs, demo.POLICY, demo.BUDGET)
    kept = {name: value.clone() for name, value in gated.state_dict().items()}
    split = torch.zeros(16, 1, 8, 8, dtype=torch.uint8), torch.arange(16) % 10
    data = from_tensors("sixteen", split, split, tuple("0123456789"))
    full, narrow = demo.steps_in_turns(dense, gated, data, dataclasses.replace(SHORT, batch_size=8))
    assert full > 0
    assert narrow > 0
    assert all(torch.equal(value, kept[name]) for name, value in gated.state_dict().items())


@pytest.mark.slow
def test_the_demo_trains_both_and_exports_both(tmp_path: Path) -> None:
    phases: list[str] = []
    ticks = []
    shown = demo.run(tmp_path / "out", options=SHORT, begin=phases.append, progress=ticks.append)
    assert phases[-3:] == [
        "training the dense network",
        "training the gated network",
        "writing and checking ONNX",
    ]
    assert len(ticks) == 2 * (ticks[0].steps + 1)
    exported = shown.exported
    assert exported.dense is not None
    assert exported.compact.macs < 0.3 * exported.dense.macs
    assert exported.compact.params < 0.3 * exported.dense.params
    assert exported.report.max_rel_error <= exported.report.tolerance
    assert exported.report.real_examples == 10
    assert all(0.1 < share <= 1 for share in shown.accuracy)

    record = records.of_demo(shown)
    assert json.loads(json.dumps(record))["accuracy"] == record["accuracy"]
    assert all(Path(path).exists() for path in record["wrote"])

    run = Run.open(shown.run)
    assert len(run.metrics()) == 1
    assert run.load(resolve(run.spec).model).steps == ticks[0].steps
    job = Job.read(run)
    assert job is not None
    assert (job.data, job.options) == ("digits", SHORT)

    demo.prepare(tmp_path / "out")  # a second demo begins anew
    assert not shown.run.exists()


def test_the_demo_leaves_other_folders_alone(tmp_path: Path) -> None:
    (tmp_path / "dense").mkdir()
    (tmp_path / "dense" / "thesis.txt").write_text("years of work")
    with pytest.raises(RunError, match="it is not empty, and no demo wrote it"):
        demo.prepare(tmp_path)
    with pytest.raises(RunError, match="cannot write to"):
        demo.prepare(tmp_path / "dense" / "thesis.txt")
    assert (tmp_path / "dense" / "thesis.txt").exists()
