"""The benchmarks run, on data of the right form but of no meaning."""

import io
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def data_file(tmp_path_factory):
    """64 and 32 noisy images, each a JPEG file, laid end to end."""
    random = np.random.default_rng(0)
    arrays = {}
    for name, count in (("train", 64), ("test", 32)):
        files = []
        for _ in range(count):
            file = io.BytesIO()
            Image.fromarray(random.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(file, "jpeg")
            files.append(file.getvalue())
        arrays[f"{name}_jpeg"] = np.frombuffer(b"".join(files), dtype=np.uint8)
        arrays[f"{name}_offsets"] = np.cumsum([0, *map(len, files)])
        arrays[f"{name}_labels"] = random.integers(0, 10, count, dtype=np.uint8)
    path = tmp_path_factory.mktemp("data") / "images.npz"
    np.savez(path, **arrays)
    return path


def test_cifar_run(data_file, tmp_path):
    command = [
        *(sys.executable, ROOT / "tools" / "cifar_run.py", "--data-file", data_file),
        *("--policy", "cucb", "--batch-size", "32", "--threads", "1", "--run", tmp_path / "run"),
    ]
    for epochs in ("1", "2"):  # the second call goes on from the first
        done = subprocess.run(
            [*command, "--epochs", epochs], cwd=ROOT, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
    assert "epoch   1" not in done.stdout
    assert "epoch   2" in done.stdout
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert result["epochs"] == 2
    assert result["macs"] == 10248512, "a quarter of ResNet-20's 40.6 million, for keep=0.5"
    assert result["onnx_max_rel_error"] < 2e-5
    assert 0 <= result["accuracy"] <= 1


def test_the_images_are_decoded_in_order(data_file, monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "tools")
    import cifar_run

    images = cifar_run.load_npz(data_file)
    assert images.train.images.shape == (64, 3, 32, 32)
    assert images.val.images.dtype == torch.uint8
    arrays = np.load(data_file)
    assert images.val.labels.tolist() == arrays["test_labels"].tolist()
    begin, end = arrays["test_offsets"][5:7]
    one = np.asarray(Image.open(io.BytesIO(arrays["test_jpeg"][begin:end].tobytes())))
    assert torch.equal(images.val.images[5], torch.from_numpy(one.copy()).permute(2, 0, 1))
