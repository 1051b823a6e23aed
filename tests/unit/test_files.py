import os

import pytest
import torch
from safetensors.torch import save_file

from fxprune import files
from fxprune.errors import RunError
from fxprune.files import read_json, read_tensors, write_bytes, write_json, write_tensors


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
    with pytest.raises(RunError, match="it is damaged"):
        read_tensors(path)


def test_a_foreign_file_is_refused(tmp_path):
    path = tmp_path / "a.safetensors"
    save_file(sample() | {"channels_last": torch.zeros(1), "transposed": torch.zeros(1)}, path)
    with pytest.raises(RunError, match="it was not written by fxprune"):
        read_tensors(path)


def test_another_version_is_refused(tmp_path, monkeypatch):
    path = tmp_path / "a.safetensors"
    with monkeypatch.context() as patch:
        patch.setattr(files, "FORMAT", 999)
        write_tensors(path, sample(), {})
    with pytest.raises(RunError, match="it was written by another version of fxprune"):
        read_tensors(path)


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(RunError, match=r"there is no file .*none\.safetensors"):
        read_tensors(tmp_path / "none.safetensors")
    with pytest.raises(RunError, match="cannot read"):
        read_tensors(tmp_path)


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    path = tmp_path / "a.json"
    write_json(path, {"a": 1})

    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(RunError, match=r"cannot write .*\n  why  .*No space left"):
        write_json(path, {"a": 2})
    assert read_json(path) == {"a": 1}
    assert list(tmp_path.iterdir()) == [path]


def test_files_have_the_rights_that_the_user_asks_for(tmp_path):
    before = os.umask(0o027)
    try:
        write_bytes(tmp_path / "a", b"x")
    finally:
        os.umask(before)
    assert (tmp_path / "a").stat().st_mode & 0o777 == 0o640


def test_json(tmp_path):
    path = tmp_path / "a.json"
    with pytest.raises(ValueError, match="JSON"):
        write_json(path, float("nan"))
    assert not path.exists()
    path.write_text("{")
    with pytest.raises(RunError, match="cannot read"):
        read_json(path)
