"""The scripts of examples/ run: a gated network in the trainers of others, down to its file."""

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnxruntime
import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"
SCRIPTS = sorted(path.stem for path in EXAMPLES.glob("*.py"))
INPUT = {
    "detector": (3, 96, 96),
    "fake_quantisation": (1, 8, 8),
    "segmentation": (1, 32, 32),
    "trainer": (3, 32, 32),
    "yolo": (3, 64, 64),
}

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("script", SCRIPTS)
def test_an_example_ends_in_a_file_that_computes_the_same(script: str, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, EXAMPLES / f"{script}.py", "--out", "out", "--epochs", "2"],
        cwd=tmp_path,
        env={**os.environ, "YOLO_CONFIG_DIR": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert re.search(r"^\d+ parameters, largest difference \d\.\de-0[5-9]$", done.stdout, re.M)
    session = onnxruntime.InferenceSession(tmp_path / "out" / "compact.onnx")
    images = np.random.default_rng(0).random((3, *INPUT[script]), dtype=np.float32)
    outputs = session.run(None, {session.get_inputs()[0].name: images})
    assert all(len(output) == 3 and np.isfinite(output).all() for output in outputs)
