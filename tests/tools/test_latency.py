"""The tools that hold latency budgets to their promise."""

import sys
from pathlib import Path

import pytest
from torch import nn, zeros

from fxprune.export.onnx import onnx_content

sys.path.insert(0, str(Path(__file__).parents[2] / "tools" / "bench"))

import latency_promise
import time_onnx


@pytest.mark.slow
def test_files_are_timed_beside_each_other(tmp_path: Path) -> None:
    for name, width in (("dense", 64), ("compact", 8)):
        net = nn.Sequential(nn.Conv2d(3, width, 3), nn.ReLU(), nn.Conv2d(width, 8, 3))
        (tmp_path / f"{name}.onnx").write_bytes(onnx_content(net, (zeros(2, 3, 32, 32),)))
    found = time_onnx.compare(
        str(tmp_path / "dense.onnx"), str(tmp_path / "compact.onnx"), threads=1, rounds=3
    )
    assert found["hot by processor"]["median"] < 0.8, "an eighth of the macs is faster"
    assert found["rounds"] == 3
    assert all(found[f"{kind} by wall"]["low"] > 0 for kind in ("hot", "in turn"))


@pytest.mark.parametrize(("median", "within"), [(0.5, 1), (0.524, 1), (0.53, 0), (0.47, 0)])
def test_promises_are_counted(median: float, within: int) -> None:
    found = {"hot by processor": {"median": median}, "hot by wall": {"median": 0.9}}
    records = [
        {"asked": 0.5, "threads": 1, "found": found},
        {"asked": 0.35, "threads": 1, "refused": "the budget latency=0.35 cannot be met"},
        {"asked": 0.35, "threads": 1, "refused": "the latency cannot be measured"},
    ]
    assert latency_promise.summary(records) == {
        "promises": 3,
        "refused": 2,
        "of which impossible": 1,
        "within 5 %": within,
        "measured": 1,
    }
