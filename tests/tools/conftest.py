"""What the tests of tools share: the tools' folders on the path, and a small data set."""

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

TOOLS = Path(__file__).parents[2] / "tools"


@pytest.fixture(autouse=True)
def tools(monkeypatch):
    for folder in ("shared", "bench", "paper", "zoo"):
        monkeypatch.syspath_prepend(TOOLS / folder)


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
