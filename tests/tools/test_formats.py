"""The tool that measures what each export format costs."""

import math
from pathlib import Path

import pytest
import torch
from torch import nn

from fxprune.export.timing import Effort
from fxprune.trainer.options import TrainOptions

SIZE = 16


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 32, 3, padding=1),
        nn.BatchNorm2d(32),
        nn.ReLU(),
        nn.Conv2d(32, 64, 3, stride=2, padding=1),
        nn.BatchNorm2d(64),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(64, 10),
    )


@pytest.mark.slow
@pytest.mark.parametrize("trained", [False, True])
def test_each_format_is_measured(tmp_path: Path, trained: bool) -> None:
    import formats

    data = formats.enlarged_digits(SIZE) if trained else None
    rows = formats.table(
        network(),
        (torch.zeros(2, 3, SIZE, SIZE),),
        tmp_path,
        data,
        TrainOptions(epochs=4, lr=0.05, batch_size=16, augment=False),
        Effort(precision=1.0, noisy=math.inf, patience=0.1),
    )
    dense, float32, fp16, int8, pt2, code = rows
    assert not any(row.refused for row in rows)
    assert dense.bytes == pytest.approx(1.0, rel=1e-3), "the seed in its metadata differs"
    assert dense.bytes > float32.bytes > fp16.bytes > int8.bytes, "narrower, then fewer bits"
    assert max(row.error for row in (dense, float32, pt2, code)) < 2e-5
    assert 0 < fp16.from_float32 < int8.from_float32
    assert all(row.latency.low > 0 for row in rows[:4])
    assert pt2.latency is code.latency is None, "ONNX Runtime cannot run them"
    if trained:
        assert dense.accuracy is None, "only the gated network was trained"
        others = [pt2.accuracy, code.accuracy, fp16.accuracy]
        assert others == pytest.approx([float32.accuracy] * 3, abs=0.01)
        assert min(float32.accuracy, int8.accuracy) > 0.3, "chance is 0.1"
    else:
        assert {row.accuracy for row in rows} == {None}
    assert all(str(row).count("|") == formats.HEAD.splitlines()[0].count("|") for row in rows)


def test_a_format_that_is_refused_says_why() -> None:
    import formats

    row = str(formats.Row("ONNX, int8", refused="the file cannot be quantised"))
    assert "refused: the file cannot be quantised" in row
    assert row.count("|") == formats.HEAD.splitlines()[0].count("|")
