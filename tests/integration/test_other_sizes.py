"""A network that takes images of any size, trained on others than it was instrumented with."""

import json
from pathlib import Path

import onnx
import pytest

from tests.support.cli import Call

DATA = """

def data(train=12, val=12):
    from torch.utils.data import TensorDataset

    def part(size):
        return TensorDataset(torch.randn(32, 1, size, size), torch.arange(32) % 10)

    return part(train), part(val)
"""


@pytest.mark.slow
@pytest.mark.parametrize("sizes", ["{}", "{train=8}", "{val=8}"])
def test_an_export_says_so_and_goes_on(sizes: str, here: Path, call: Call) -> None:
    with (here / "model.py").open("a") as file:
        file.write(DATA)
    data = f"model.py:data{sizes}"
    call("train", "--data", data, "--epochs", "1", "--batch-size", "16", folder=here)
    shown = call("export", "-o", "a.onnx", "--fp16", "--json", folder=here)
    found = json.loads(shown.stdout)
    said = "an example of the data is [1, 12, 12], the file takes [1, 8, 8]; give --input"
    assert (said in shown.stderr) == (sizes != "{val=8}")
    assert found["onnx"]["real_examples"] == (10 if sizes == "{val=8}" else 0)
    assert (found["files"][1]["accuracy"] is None) == (sizes != "{val=8}")
    told = call("export", "-o", "b.onnx", "--int8", folder=here, exit_code=2).stderr
    assert "the calibration data do not fit the network's 1 inputs" in told
    assert "--dynamic-hw" in told
    assert not (here / "b.onnx").exists()
    call("export", "-o", "c.onnx", "--int8", "--dynamic-hw", folder=here)
    shape = onnx.load(here / "c.onnx").graph.input[0].type.tensor_type.shape
    assert [size.dim_param for size in shape.dim][2:] == ["height", "width"]
