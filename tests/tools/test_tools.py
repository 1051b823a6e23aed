"""The tables come out of their tool, on data of the right form but of no meaning."""

import io
import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

ROOT = Path(__file__).parents[2]


def command(data_file, folder, *arguments):
    return [
        *(sys.executable, ROOT / "tools" / "paper" / "reproduce.py", "--data", data_file),
        *("--recipe", "trial", "--seeds", "1", "--threads", "1", "--jobs", "2"),
        *("--results", folder / "results", "--work", folder / "work", *arguments),
    ]


def reproduce(data_file, folder, *arguments):
    line = command(data_file, folder, *arguments)
    return subprocess.run(line, cwd=ROOT, capture_output=True, text=True, check=False)


@pytest.mark.slow
def test_a_table_goes_on_where_it_stopped(data_file, tmp_path):
    stopped = reproduce(data_file, tmp_path, "peers", "--budget-minutes", "0")
    assert stopped.returncode == 1
    assert "call it again" in stopped.stderr
    done = reproduce(data_file, tmp_path, "peers", "--networks", "vgg_small")
    assert done.returncode == 0, done.stderr
    records = json.loads((tmp_path / "results" / "peers.json").read_text())["runs"]
    by_arm = {record["arm"]: record for record in records}
    assert len(by_arm) == len(records) == 8
    for arm, record in by_arm.items():
        assert record["macs"] <= (1 if arm == "dense" else 0.27), arm
        spent = [epoch["run_macs"] for epoch in record["curve"]]
        assert spent == sorted(spent), arm
        assert spent[-1] == pytest.approx(record["run_macs"]), arm
        assert len(spent) == record["epochs"], arm
    found = by_arm["narrow, widths found, equal epochs"]
    assert found["widths"] == by_arm["utility, cubic"]["widths"]
    assert found["run_macs"] == pytest.approx(found["macs"])
    text = (tmp_path / "results" / "appendix.md").read_text()
    assert all(f"| {arm} (1) |" in text for arm in by_arm)
    again = reproduce(data_file, tmp_path, "peers", "--networks", "vgg_small")
    assert again.returncode == 0
    assert again.stdout == "", "nothing is trained twice"
    reproduce(data_file, tmp_path, "peers", "--networks", "resnet8", "--budget-minutes", "0")
    kept = json.loads((tmp_path / "results" / "peers.json").read_text())["runs"]
    assert kept == records, "what was not asked for stays in the table"


def test_a_peak_of_memory_outlives_its_process(tmp_path):
    from memory import KeptPeak

    first = KeptPeak(torch.device("cpu"), tmp_path / "run" / "peak")
    held = torch.zeros(2**26)  # too large for the heap
    peak = first.bytes()
    first.keep()  # a little later: a peak only grows
    del held
    again = KeptPeak(torch.device("cpu"), tmp_path / "run" / "peak")
    assert again.here.bytes() < 2**27 < peak
    assert peak <= again.bytes() < peak + 2**20


@pytest.mark.slow
def test_no_training_goes_on_without_the_tool(data_file, tmp_path):
    """A hundred epochs are left when it is stopped; its output ends with its last process."""
    line = command(data_file, tmp_path, "cost", "--recipe", "papers", "--networks", "resnet32")
    tool = subprocess.Popen(line, cwd=ROOT, stdout=subprocess.PIPE)
    try:
        while not list((tmp_path / "work").rglob("metrics.jsonl")):
            assert tool.poll() is None
            time.sleep(0.1)
    finally:
        tool.terminate()
    tool.communicate(timeout=20)


def test_the_images_are_decoded_in_order(data_file):
    import cifar

    images = cifar.load(data_file, None, torch.device("cpu"))
    assert images.train.images.shape == (64, 3, 32, 32)
    assert images.val.images.dtype == torch.uint8
    arrays = np.load(data_file)
    assert images.val.labels.tolist() == arrays["test_labels"].tolist()
    begin, end = arrays["test_offsets"][5:7]
    one = np.asarray(Image.open(io.BytesIO(arrays["test_jpeg"][begin:end].tobytes())))
    assert torch.equal(images.val.images[5], torch.from_numpy(one.copy()).permute(2, 0, 1))
