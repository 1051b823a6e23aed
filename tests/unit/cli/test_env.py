"""What a report of a fault needs is printed, and nothing that names the user."""

import getpass
import json
import platform
import sys
from importlib import metadata

import pytest
import torch

from fxprune.cli import commands
from fxprune.cli.env import record


def printed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: str
) -> str:
    monkeypatch.setattr(sys, "argv", ["fxprune", "env", *arguments])
    with pytest.raises(SystemExit) as left:
        commands.main()
    assert left.value.code == 0
    return capsys.readouterr().out


def test_versions_and_machine_are_printed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    text = printed(monkeypatch, capsys)
    for name in ("fxprune", "torch", "onnxruntime"):
        assert metadata.version(name) in text
    assert platform.python_version() in text
    assert f"CUDA         {torch.version.cuda or 'torch is built without'}" in text
    assert platform.node() not in text


def test_as_json(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    found = json.loads(printed(monkeypatch, capsys, "--json"))
    assert found == record()
    assert found["packages"]["torch"] == metadata.version("torch")
    assert found["threads"] == torch.get_num_threads()
    assert getpass.getuser() not in json.dumps(found["system"])
