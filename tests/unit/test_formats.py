import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar

import pytest
import torch
from pydantic import ConfigDict, Field
from safetensors.torch import save_file

from fxprune import formats
from fxprune.errors import RunError
from fxprune.formats import (
    read_json,
    read_record,
    read_tensors,
    write_json,
    write_record,
    write_tensors,
)


def sample():
    torch.manual_seed(0)
    return {
        "weight": torch.randn(4, 3),
        "half": torch.randn(5).to(torch.bfloat16),
        "count": torch.tensor(7),
        "mask": torch.tensor([True, False]),
        "empty": torch.empty(0, 3),
        "channels_last": torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last),
        "transposed": torch.randn(3, 6, dtype=torch.float64).t(),
        "nan": torch.tensor([float("nan"), -0.0]),
    }


def test_tensors_come_back_with_their_bits(tmp_path):
    path = tmp_path / "a.safetensors"
    meta = {"policy": "cucb{c=0.5}", "widths": [3, 5], "nested": {"a": None}}
    write_tensors(path, sample(), meta)
    tensors, found = read_tensors(path)
    assert found == meta
    assert tensors.keys() == sample().keys()
    for name, tensor in sample().items():
        assert tensors[name].dtype == tensor.dtype
        assert tensors[name].shape == tensor.shape
        bits = tensor.contiguous().reshape(-1).view(torch.uint8)
        assert torch.equal(tensors[name].reshape(-1).view(torch.uint8), bits)


def test_tensors_may_share_memory(tmp_path):
    both = torch.arange(6.0)
    write_tensors(tmp_path / "a.safetensors", {"all": both, "part": both[2:4], "same": both}, {})
    tensors, _ = read_tensors(tmp_path / "a.safetensors")
    assert tensors["part"].tolist() == [2, 3]
    assert torch.equal(tensors["all"], tensors["same"])


def test_any_wrong_bit_is_noticed(tmp_path):
    path = tmp_path / "a.safetensors"
    write_tensors(path, {"w": torch.randn(3, 2), "n": torch.arange(3)}, {"policy": "cucb"})
    good = path.read_bytes()
    for place in range(len(good)):
        content = bytearray(good)
        content[place] ^= 1 << place % 8
        path.write_bytes(content)
        with pytest.raises(RunError, match=r"cannot read .*a\.safetensors\n  why  "):
            read_tensors(path)


@pytest.mark.parametrize("keep", [0, 5, 100, -1])
def test_a_short_file_is_noticed(tmp_path, keep):
    path = tmp_path / "a.safetensors"
    write_tensors(path, sample(), {})
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(RunError, match=r"it is damaged: .*\n  do   take an earlier copy of it"):
        read_tensors(path)


def test_a_foreign_file_is_refused(tmp_path):
    path = tmp_path / "a.safetensors"
    save_file(sample() | {"channels_last": torch.zeros(1), "transposed": torch.zeros(1)}, path)
    with pytest.raises(RunError, match="it was not written by fxprune"):
        read_tensors(path)


def test_another_version_is_refused(tmp_path, monkeypatch):
    path = tmp_path / "a.safetensors"
    with monkeypatch.context() as patch:
        patch.setattr(formats, "FORMAT", 999)
        write_tensors(path, sample(), {})
    with pytest.raises(RunError, match="it was written by another version of fxprune"):
        read_tensors(path)


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(RunError, match=r"there is no file .*none\.safetensors"):
        read_tensors(tmp_path / "none.safetensors")
    with pytest.raises(RunError, match="cannot read"):
        read_tensors(tmp_path)


def test_json(tmp_path):
    path = tmp_path / "a.json"
    with pytest.raises(ValueError, match="JSON"):
        write_json(path, float("nan"))
    assert not path.exists()
    path.write_text("{")
    with pytest.raises(RunError, match="cannot read"):
        read_json(path)


@dataclass(frozen=True)
class Record:
    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid", strict=True)
    name: str
    count: Annotated[int, Field(ge=0)] = 0


def test_names_that_are_no_text_are_not_written(tmp_path):
    with pytest.raises(RunError, match="whose name is no text"):
        write_json(tmp_path / "a.json", {"base": "x\udcff"})
    assert list(tmp_path.iterdir()) == []


def test_records(tmp_path):
    path = tmp_path / "a.json"
    write_record(path, {"name": "a", "count": 3})
    assert read_record(path, Record) == Record("a", 3)
    text = path.read_text()
    for old, new in (('"a"', '"b"'), ("3", "4"), ('"format": 2', '"format": 9')):
        path.write_text(text.replace(old, new))
        with pytest.raises(RunError, match=r"cannot read .*a\.json\n  why  "):
            read_record(path, Record)
    for wrong in ({"name": 1}, {"count": 1}, {"name": "a", "count": -1}, {"name": "a", "x": 1}):
        write_record(path, wrong)
        with pytest.raises(RunError, match=r"its content is damaged: (name|count|x): "):
            read_record(path, Record)


@pytest.mark.parametrize(
    "text",
    ["[" * 100_000, '{"a":' * 5000, "1" * 10_000, "NaN", "[Infinity]", '"\\ud800"', "\xff", ""],
    ids=lambda text: text[:8],
)
def test_json_that_is_none(tmp_path, text):
    path = tmp_path / "a.json"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(RunError, match=r"cannot read .*a\.json\n  why  it is damaged: "):
        read_json(path)


def test_only_regular_files_of_a_fair_size_are_read(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with (tmp_path / "sparse").open("wb") as file:
        file.truncate(3 * 2**30)
    for path in (tmp_path / "pipe", Path("/dev/zero"), Path("/dev/tty"), tmp_path):
        with pytest.raises(RunError, match="cannot read"):
            read_json(path)
        with pytest.raises(RunError, match="cannot read"):
            read_tensors(path)
    with pytest.raises(RunError, match="at most 33,554,432 are expected"):
        read_json(tmp_path / "sparse")
    with pytest.raises(RunError, match="at most 1,000 are expected"):
        read_tensors(tmp_path / "sparse", 1000)
    with pytest.raises(RunError, match="its header lists no tensors"):
        read_tensors(tmp_path / "sparse")
    write_tensors(tmp_path / "long", sample(), {})
    os.truncate(tmp_path / "long", 3 * 2**30)
    with pytest.raises(RunError, match="3,221,225,472 bytes, and its header announces"):
        read_tensors(tmp_path / "long")


@pytest.mark.slow
def test_a_file_that_is_replaced_meanwhile_is_read_whole(tmp_path):
    path = tmp_path / "a.safetensors"
    write_tensors(path, {"a": torch.zeros(1000)}, {"i": 0})
    code = """
import sys, torch
from pathlib import Path
from fxprune.formats import write_tensors
for i in range(1, 10**9):
    tensors = {"a": torch.full((1000,), float(i)), "b" * (1 + i % 7): torch.ones(3)}
    write_tensors(Path(sys.argv[1]), tensors, {"i": i})
"""
    writer = subprocess.Popen([sys.executable, "-c", code, str(path)])
    try:
        seen = set()
        end = time.monotonic() + 120
        while len(seen) < 50 and time.monotonic() < end:
            tensors, meta = read_tensors(path)
            assert float(tensors["a"][0]) == meta["i"]
            seen.add(meta["i"])
        assert len(seen) == 50
    finally:
        writer.kill()
        writer.wait()
