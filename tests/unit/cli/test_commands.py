"""The command line, as a user meets it: through a process of its own."""

import importlib.metadata
import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import onnx
import onnxruntime
import pytest
import safetensors.torch
import torch

import fxprune
from fxprune.cli import commands
from fxprune.data import load
from fxprune.trainer.loop import fit
from fxprune.trainer.options import TrainOptions
from tests.support.cli import MODEL, Call, run


def test_the_installed_command_says_its_version(tmp_path: Path) -> None:
    command = Path(sys.executable).with_name("fxprune")
    done = subprocess.run([command, "--version"], capture_output=True, text=True, cwd=tmp_path)
    assert done.stdout == f"fxprune {importlib.metadata.version('fxprune')}\n"


def test_help_names_every_command_and_the_way_through_them(tmp_path: Path) -> None:
    text = run("--help", folder=tmp_path).stdout
    for word in ("inspect", "instrument", "train", "export", "demo"):
        assert f" {word} " in text
    assert "fxprune instrument model.py" in text


def test_inspect_shows_groups_and_why_the_rest_is_pinned(folder: Path, call: Call) -> None:
    text = call("inspect", "model.py", folder=folder).stdout
    assert "traced yes" in text
    lines = [line.split() for line in text.splitlines()]
    assert ["conv1", "16", "7"] in [line[:3] for line in lines]
    assert any(line[0] == "10" and "output" in line for line in lines if line)


def test_inspect_as_json(folder: Path, call: Call) -> None:
    done = call("inspect", "model.py", "--json", folder=folder)
    found = json.loads(done.stdout)
    first, second = found["groups"]
    assert (first["name"], first["size"], first["producers"]) == ("conv1", 16, ["conv1.weight"])
    assert (second["size"], second["consumers"]) == (32, ["fc.weight"])
    assert found["params"] == sum(p.numel() for p in _net().parameters())
    assert found["macs"] == 64 * 9 * 16 + 16 * 9 * 16 * 32 + 32 * 10
    assert sum(group["macs_share"] for group in found["groups"]) == pytest.approx(
        (found["macs"] - 320) / found["macs"]
    )
    assert [pinned["channels"] for pinned in found["pinned"]] == [10]
    assert found["pinned"][0]["reason"] == "the model returns these channels"


def test_instrument_writes_a_run_without_pickles(folder: Path) -> None:
    names = {path.name for path in (folder / "model.fxprune").iterdir()}
    assert names == {"plan.json", "checkpoint.safetensors"}


def test_instrument_names_what_keeps_the_macs_up(here: Path, call: Call) -> None:
    source = (
        "import torch.nn as nn\nmodel = nn.Sequential(nn.Conv2d(3, 16, 3), nn.Conv2d(16, 99, 3))\n"
    )
    (here / "wide.py").write_text(source)
    half = ("--budget", "keep=0.5")
    text = call("instrument", "wide.py", "--input", "3x8x8", *half, folder=here).stdout
    _, _, told = text.partition("Pinned channels that keep the macs up")
    assert re.search(r"^ +99 ", told, re.M)
    other = call("instrument", "model.py", "-o", "other.fxprune", *half, folder=here).stdout
    assert "keep the macs up" not in other


def test_instrument_says_where_channels_stay_above_the_budget(here: Path, call: Call) -> None:
    options = ("instrument", "model.py", "--policy", "cucb", "--budget", "keep=0.1")
    told = call(*options, "-o", "a.fxprune", folder=here)
    assert "25.0 % of the channels stay, more than keep=0.1" in told.stderr
    told = call(*options, "--round-to", "1", "-o", "b.fxprune", folder=here)
    assert "channels stay" not in told.stderr


def test_instrument_with_options(here: Path, call: Call) -> None:
    done = call(
        *("instrument", "model.py:Net", "--policy", "utility{decay=0.7}", "--budget", "macs=0.4"),
        *("--round-to", "4", "--input", "1x10x10", "-o", "other.fxprune", "--json"),
        folder=here,
    )
    found = json.loads(done.stdout)
    assert found["run"] == "other.fxprune"
    assert found["policy"].startswith("utility")
    assert found["gated"]["macs"] <= 0.4 * found["dense"]["macs"]
    assert all(group["gated"] % 4 == 0 for group in found["groups"])
    assert (here / "other.fxprune" / "plan.json").exists()


def test_instrument_takes_patterns_and_writes_nothing_on_a_dry_run(here: Path, call: Call) -> None:
    options = ("--keep", "conv2=0.25", "--keep", "*=0.5", "--dry-run")
    done = call("instrument", "model.py", *options, "-o", "dry", "--json", folder=here)
    record = json.loads(done.stdout)
    assert [group["gated"] for group in record["groups"]] == [8, 8]
    assert record["run"] is None
    assert not (here / "dry").exists()
    assert "nothing was written" in done.stderr
    options = ("--keep", "*=0.5", "--keep", "conv2=0.25", "--exclude", "conv1")
    done = call("instrument", "model.py", *options, "-o", "two", folder=here)
    assert "keep 'conv2' decides nothing" in done.stderr
    assert "budget keep=0.6666666666666666" in done.stdout
    assert [line.split()[1:3] for line in done.stdout.splitlines() if "conv" in line][:2] == [
        ["16", "16"],
        ["32", "16"],
    ]


def test_instrument_refuses_patterns_that_match_nothing(here: Path, call: Call) -> None:
    done = call("instrument", "model.py", "--exclude", "cnv1", "-o", "a", folder=here, exit_code=2)
    assert "did you mean conv1" in done.stderr
    assert not (here / "a").exists()


@pytest.mark.slow
def test_instrument_says_what_was_measured(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(here / "cache"))
    measure = ("instrument", "model.py", "--budget", "latency=1")
    found = json.loads(run(*measure, "--json", folder=here).stdout)
    assert found["budget"] == "latency=1.0,widths=16/32"
    assert found["latency"]["share"] == pytest.approx(1, abs=0.1)
    assert found["latency"]["measured"] == {"16/32": found["latency"]["share"]}
    assert found["latency"]["asked"] == 1
    text = " ".join(run(*measure, "--threads", "1", "--cold", folder=here).stdout.split())
    assert "asked 100 % of the dense network's time, is" in text
    assert "ONNX Runtime, one example, 1 thread, measured at 1 choice of widths" in text
    assert "hot (in a loop): dense" in text
    assert "cold (after another network, what the budget binds): dense" in text
    record = json.loads(run("export", "-o", "net.onnx", "--json", folder=here).stdout)
    assert record["asked"] == 1
    assert record["onnx"]["timing"]["binds"] == "cold"
    assert record["onnx"]["timing"]["threads"] == 1
    (here / "model.fxprune" / "latency.json").write_text('{"asked": 2}')
    assert (
        "cannot read model.fxprune/latency.json" in run("export", folder=here, exit_code=2).stderr
    )
    (here / "model.fxprune" / "latency.json").unlink()
    train = ("train", "--data", "digits", "--epochs", "1", "--train-macs", "1", "--json")
    trained = json.loads(run(*train, folder=here).stdout)
    assert trained["run_macs"]["spent"] == trained["run_macs"]["dense"]


def test_instrument_starts_from_trained_weights(here: Path, call: Call) -> None:
    net = _net()
    with torch.no_grad():
        net(torch.randn(9, 1, 8, 8))
    safetensors.torch.save_file(net.state_dict(), here / "dense.safetensors")
    done = call("instrument", "model.py", "--weights", "dense.safetensors", "--json", folder=here)
    assert json.loads(done.stdout)["policy"].startswith("utility")
    fresh = call("instrument", "model.py", "-o", "fresh.fxprune", "--json", folder=here)
    assert json.loads(fresh.stdout)["policy"].startswith("balance")
    gated = fxprune.load(here / "model.fxprune" / "checkpoint.safetensors", _net())
    found = gated.dense_state_dict()
    assert all(torch.equal(found[name], value) for name, value in net.state_dict().items())

    del (state := net.state_dict())["bn2.bias"]
    torch.save(state, here / "part.pt")  # noqa: TID251 - a file of somebody else
    refused = call("instrument", "model.py", "--weights", "part.pt", folder=here, exit_code=2)
    assert "error: the weights in part.pt do not fit the network\n" in refused.stderr
    assert "why  1 missing: bn2.bias\n" in refused.stderr


def test_export_before_training_works_with_a_note(here: Path, call: Call) -> None:
    done = call("export", "--onnx", folder=here)
    assert "never trained" in done.stderr
    assert "wrote model.onnx" in done.stdout
    gated = fxprune.load(here / "model.fxprune" / "checkpoint.safetensors", _net())
    image = torch.randn(3, 1, 8, 8)
    session = onnxruntime.InferenceSession(here / "model.onnx")
    (found,) = session.run(None, {session.get_inputs()[0].name: image.numpy()})
    expected = gated.eval()(image)
    torch.testing.assert_close(torch.from_numpy(found), expected, rtol=1e-5, atol=1e-6)


def test_train_goes_on_and_export_takes_the_newest_state(here: Path, call: Call) -> None:
    train = ("train", "--data", "digits", "--lr", "0.05", "--batch-size", "64", "--json")
    first = json.loads(call(*train, "--epochs", "2", folder=here).stdout)
    assert first["epochs"] == 2
    again = call("train", "--epochs", "3", "--json", folder=here)
    second = json.loads(again.stdout)
    assert second["history"][:2] == first["history"]
    assert again.stderr.count("epoch ") == 1
    losses = [epoch["train_loss"] for epoch in second["history"]]
    assert losses[2] < losses[0]
    lines = (here / "model.fxprune" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["epoch"] for line in lines] == [1, 2, 3]

    done = call(
        "export", "model.fxprune", "small.onnx", "--pt2", "--fold", "--onnx", "--json", folder=here
    )
    found = json.loads(done.stdout)
    assert found["val_accuracy"] == second["history"][2]["val_accuracy"]
    assert found["onnx"]["real_examples"] == 1 + 2 + 7
    assert found["onnx"]["max_rel_error"] <= found["onnx"]["tolerance"]
    assert found["onnx"]["compact"]["macs"] < 0.5 * found["onnx"]["dense"]["macs"]
    image = torch.randn(5, 1, 8, 8)
    session = onnxruntime.InferenceSession(here / "small.onnx")
    (onnx,) = session.run(None, {session.get_inputs()[0].name: image.numpy()})
    pt2 = torch.export.load(here / "small.pt2").module()(image)
    torch.testing.assert_close(torch.from_numpy(onnx), pt2, rtol=1e-5, atol=1e-5)


def test_train_spends_what_it_may(here: Path, call: Call) -> None:
    call("instrument", "model.py", "--policy", "cucb", "--budget", "keep=0.5", folder=here)
    train = ("train", "--data", "digits", "--batch-size", "64", "--epochs", "2", "--train-macs")
    refused = call(*train, "0.1", folder=here, exit_code=2)
    assert "\nerror: the run cannot cost 0.1 of the dense run's macs" in refused.stderr
    assert not (here / "model.fxprune" / "train.json").exists(), "the next call need not know"
    call(*train, "0.35", "--budget-schedule", "linear", "--minutes", "0", folder=here)
    text = call("train", folder=here).stdout
    (row,) = (line for line in text.splitlines() if "forward macs of the run" in line)
    last = json.loads((here / "model.fxprune" / "metrics.jsonl").read_text().splitlines()[-1])
    assert last["run_macs"] == last["run_macs_planned"]
    assert 0.33 < last["run_macs"] / last["run_macs_dense"] <= 0.35
    share = f"{100 * last['run_macs'] / last['run_macs_dense']:.1f} %"
    assert f"{share} of dense, planned {share}" in row
    assert json.loads(call("train", "--json", folder=here).stdout)["run_macs"] == {
        "dense": last["run_macs_dense"],
        "planned": last["run_macs_planned"],
        "spent": last["run_macs"],
    }


def test_what_is_refused_is_not_kept_for_the_next_call(here: Path, call: Call) -> None:
    train = ("train", "model.fxprune")
    call(*train, "--data", "digits", "--epochs", "2", folder=here)
    kept = (here / "model.fxprune" / "train.json").read_bytes()
    refused = call(*train, "--lr", "0.3", "--epochs", "1", folder=here, exit_code=2)
    assert "lr 0.1 (now 0.3), epochs 2 (now 1)" in refused.stderr
    assert (here / "model.fxprune" / "train.json").read_bytes() == kept
    call(*train, folder=here)


def test_a_trained_run_is_not_overwritten(here: Path, call: Call) -> None:
    call("instrument", "model.py", folder=here)  # never trained: may be written anew
    (here / "model.fxprune" / "metrics.jsonl").write_text("{}\n")
    refused = call("instrument", "model.py", folder=here, exit_code=2)
    assert "error: there is a trained run in model.fxprune" in refused.stderr


def _net() -> torch.nn.Module:
    space: dict[str, object] = {"__name__": "net"}
    exec(MODEL, space)
    net = space["Net"]()  # type: ignore[operator]
    assert isinstance(net, torch.nn.Module)
    return net


PASSES = """\
import copy
import dataclasses
from dataclasses import dataclass

import torch

from fxprune.passes import Pass


@dataclass(frozen=True)
class Scale(Pass):
    by: float = 1.0

    def requires(self, program):
        pass

    def run(self, program):
        module = copy.deepcopy(program.graph_module)
        with torch.no_grad():
            module.get_parameter("fc.weight").mul_(self.by)
        return dataclasses.replace(program, module=module)

    def ensures(self, before, after):
        assert not any(parameter.isnan().any() for parameter in after.module.parameters())
"""


def test_export_runs_a_pass_of_the_users_own(here: Path, call: Call) -> None:
    (here / "mine.py").write_text(PASSES)
    call("export", "model.fxprune", "--passes", "fold,mine:Scale{by=1}", folder=here)
    names = {node.op_type for node in onnx.load(here / "model.onnx").graph.node}
    assert "BatchNormalization" not in names
    (here / "model.onnx").unlink()
    done = call("export", "--passes", "mine:Scale{by=2}", folder=here, exit_code=1)
    # the file is checked, whatever a pass promises
    assert "would not compute what the network computes" in done.stderr
    assert not (here / "model.onnx").exists()
    done = call("export", "--passes", "mine:Scale{by=nan}", folder=here, exit_code=1)
    assert "the result of the pass Scale is not what it promises" in done.stderr


@pytest.mark.parametrize(
    ("passes", "said"),
    [
        ("flod", "unknown pass 'flod'"),
        ("my_passes:Other", "my_passes has no Other"),
        ("my_passes:Scale{to=1}", "the pass 'Scale' has no option 'to'"),
    ],
)
def test_a_pass_that_is_not_there_is_refused(
    here: Path, passes: str, said: str, call: Call
) -> None:
    (here / "my_passes.py").write_text(PASSES)
    done = call("export", "model.fxprune", "--passes", passes, folder=here, exit_code=2)
    assert said in done.stderr


@pytest.mark.parametrize("command", ["--version", pytest.param("env", marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    ("streams", "code", "said"),
    [
        ("> /dev/full", 2, "error: the operating system refused a call"),
        ("> /dev/full 2>&1", 2, ""),
        (">&-", 0, ""),
        ("2>&-", 0, ""),
        ("<&- >&- 2>&-", 0, ""),
    ],
)
def test_streams_that_take_nothing(
    command: str, streams: str, code: int, said: str, tmp_path: Path
) -> None:
    words = shlex.join([sys.executable, "-c", "from fxprune.__main__ import main; main()"])
    done = subprocess.run(
        f"{words} {command} {streams}",
        shell=True,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == code
    assert done.stderr.startswith(said)
    assert "Traceback" not in done.stderr
    assert "Exception" not in done.stderr


def test_a_current_folder_that_is_gone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    tmp_path.rmdir()
    monkeypatch.setattr(sys, "argv", ["fxprune", "env"])
    with pytest.raises(SystemExit) as caught:
        commands.main()
    assert caught.value.code == 2
    assert "error: the current folder is gone" in capsys.readouterr().err


PRUNE = ("prune", "model.py", "--weights", "w.safetensors", "--data", "digits")
SHORT = ("--epochs", "2", "--batch-size", "64")


@pytest.fixture
def trained(here: Path) -> Path:
    """The folder, with trained weights in w.safetensors."""
    net = _net()
    fit(net, load("digits"), TrainOptions(epochs=3, lr=0.1, batch_size=64, device="cpu"))
    safetensors.torch.save_file(net.state_dict(), here / "w.safetensors")
    return here


def test_prune_goes_the_whole_way(trained: Path, call: Call) -> None:
    digits = load("digits")
    done = call(*PRUNE, "--macs", ".5", *SHORT, "-o", "half.fxprune", folder=trained)
    assert "the dense network is right on" in done.stderr
    text = " ".join(done.stdout.split())
    assert "before after share" in text
    assert "right on 359 validation images" in text
    assert "wrote half.onnx" in text
    held = {entry.key: entry.value for entry in onnx.load(trained / "half.onnx").metadata_props}
    assert json.loads(held["fxprune.classes"]) == list(digits.classes)
    assert json.loads(held["fxprune.preprocessing"]) == dict(digits.preprocessing)
    again = call(*PRUNE, "--macs", ".5", "-o", "half.fxprune", folder=trained, exit_code=2)
    assert "there is a trained run in half.fxprune" in again.stderr
    call("export", "half.fxprune", "-o", "again.onnx", folder=trained)


@pytest.mark.slow
def test_prune_finds_the_smallest_network_within_a_drop(trained: Path, call: Call) -> None:
    goals = call(*PRUNE, "--macs", ".5", "--max-drop", "1", folder=trained, exit_code=2)
    assert "fxprune prune has one goal" in goals.stderr
    drop = call(*PRUNE, "--max-drop", "40", *SHORT, "-o", "drop.fxprune", "--json", folder=trained)
    record = json.loads(drop.stdout)
    assert len(record["trials"]) == 4
    assert record["max_drop"] == 40
    assert record["drop"]["low"] <= record["drop"]["points"] <= record["drop"]["high"]
    wrong = call(*PRUNE, "--macs", ".5", "--mean", "9", "--epochs", "1", folder=trained)
    assert "near chance" in wrong.stderr
