"""The zoo sweep: one network all the way, what is expected to fail, and the check of the peer."""

import copy
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from fxprune.errors import TraceError

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_one_network_all_the_way() -> None:
    import zoo_check
    import zoo_models

    (entry,) = (e for e in zoo_models.entries() if e.spec == "torchvision:squeezenet1_1")
    record: dict[str, Any] = {}
    zoo_check.examine(entry, record)
    assert "failed" not in record
    assert record["stages"].keys() == {"build", "analyze", "step", "onnx", "law"}
    assert record["groups"] == 25
    assert len(record["law"]) == 3
    assert 0 < max(*record["law"], record["permuted"]) < 1e-12
    assert 0 < record["onnx"] < 2e-5
    assert record["macs_model"] == 1, "torch's own counter agrees with the cost model"
    assert record["step"] > 0


def test_what_needs_targets_is_held_to_the_law_without_a_step() -> None:
    import zoo_check
    from zoo_entry import LibraryEntry

    class NeedsTargets(nn.Sequential):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            assert not self.training, "targets are missing"
            found: torch.Tensor = super().forward(x)
            return found

    def make() -> nn.Module:
        return NeedsTargets(nn.Conv2d(3, 8, 1), nn.ReLU(), nn.Conv2d(8, 2, 1))

    entry = LibraryEntry("any:net", "", (3, 8, 8), make=make, trains=False)
    record: dict[str, Any] = {}
    zoo_check.examine(entry, record, {"onnx"})
    assert record["step"] is None
    assert len(record["law"]) == 3


def test_what_raises_is_told_with_its_stage() -> None:
    import zoo_check
    import zoo_entry

    record: dict[str, Any] = {}
    with pytest.raises(TraceError):
        zoo_check.examine(zoo_entry.Entry("torchvision:alexnet", "", (3, 8, 8)), record)
    assert record["failed"].startswith("analyze: TraceError: the model does not run on inputs")
    assert str(ROOT) not in record["failed"]


@pytest.mark.slow
def test_a_sweep_leaves_stages_for_another_run(tmp_path: Path) -> None:
    import zoo

    out = tmp_path / "zoo.jsonl"
    command = [
        *(sys.executable, str(ROOT / "tools" / "zoo" / "zoo.py"), "--jobs", "1", "--out", str(out)),
        *("--only", "timm:test_byobnet", "--skip", "onnx", "law", "step"),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "[1/1] fxprune" in done.stdout
    assert "fxprune: 0 of 0 convolutional networks right" in done.stdout
    ((key, record),) = zoo.known(out).items()
    assert key == ("fxprune", "timm:test_byobnet")
    assert record["stages"].keys() == {"build", "analyze"}
    assert zoo.missing(record, [])
    assert not zoo.missing(record, ["onnx", "law", "step"])


def test_only_exact_messages_are_expected(tmp_path: Path) -> None:
    import zoo

    records = [
        {"tool": "fxprune", "spec": "timm:a", "failed": 'law: no "b"'},
        {"tool": "fxprune", "spec": "timm:b"},
        {"tool": "torch-pruning", "spec": "timm:b", "failed": "prune: no"},
    ]
    path = tmp_path / "expected.toml"
    assert len(zoo.surprises(records, zoo.expect(path))) == 1
    zoo.accept(records[:2], path)
    assert zoo.expect(path) == {"timm:a": 'law: no "b"'}
    assert zoo.surprises(records, zoo.expect(path)) == []
    records[0]["failed"] = "law: other"
    assert "law: other" in zoo.surprises(records, zoo.expect(path))[0]
    del records[0]["failed"]
    assert "it passes" in zoo.surprises(records, zoo.expect(path))[0]


def test_every_network_has_a_name_of_its_own_and_exists() -> None:
    import timm
    import ultralytics
    import zoo_models
    from torchvision import models
    from zoo_entry import LibraryEntry

    entries = zoo_models.entries()
    assert len({entry.spec for entry in entries}) == len(entries)
    names = {entry.spec.partition("/")[0] for entry in entries}
    known = {f"torchvision:{name}" for name in models.list_models()}
    known |= {f"timm:{name}" for name in timm.list_models()}
    libraries = {entry.spec: entry for entry in entries if isinstance(entry, LibraryEntry)}
    assert names - libraries.keys() <= known
    folder = Path(ultralytics.__file__).parent / "cfg" / "models"
    yamls = {f"ultralytics:{path.stem}" for path in folder.rglob("*.yaml")}
    found = {spec.partition(":")[0] for spec in libraries}
    assert found == {"ultralytics", "transformers", "monai", "torchvision"}
    assert {spec for spec in libraries if spec.startswith("ultralytics:")} <= yamls


@pytest.mark.slow
def test_every_network_of_another_library_is_built() -> None:
    """Its name is the sweep's own, so that only building it shows that it exists."""
    import zoo_models

    for entry in zoo_models.libraries():
        assert next(entry.make().parameters(), None) is not None, entry.spec


def test_constant_parameters_are_varied() -> None:
    import zoo_entry

    norm = zoo_entry.vary(nn.BatchNorm2d(8))
    for tensor in (norm.weight, norm.bias, norm.running_mean, norm.running_var):
        assert len(tensor.unique()) == 8


def _pruned(dense: nn.Sequential, kept: torch.Tensor, read: torch.Tensor) -> nn.Sequential:
    """Keeps these rows of the first layer, and reads these columns in the last."""
    clone = copy.deepcopy(dense)
    for name in ("weight", "bias"):
        for layer in (clone[0], clone[1]):
            setattr(layer, name, nn.Parameter(getattr(layer, name)[kept]))
    for name in ("running_mean", "running_var"):
        setattr(clone[1], name, getattr(clone[1], name)[kept])
    clone[3].weight = nn.Parameter(clone[3].weight[:, read])
    return clone


@pytest.mark.parametrize(("read", "right"), [((0, 2, 3), True), ((0, 1, 3), False)])
def test_the_peers_check_tells_right_from_wrong(read: tuple[int, ...], right: bool) -> None:
    import zoo_entry
    import zoo_peer

    torch.manual_seed(0)
    layers = nn.Conv2d(3, 5, 3), nn.BatchNorm2d(5), nn.ReLU(), nn.Conv2d(5, 4, 3)
    dense = zoo_peer.distinct(zoo_entry.vary(nn.Sequential(*layers)).double().eval())
    pruned = _pruned(dense, torch.tensor([0, 2, 3]), torch.tensor(read))
    x = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    zoo_peer.zero_removed(dense, pruned)
    with torch.no_grad():
        assert torch.allclose(dense(x), pruned(x), rtol=1e-12, atol=1e-12) == right


def test_the_peers_check_refuses_weights_that_are_not_the_dense_ones() -> None:
    import zoo_peer

    torch.manual_seed(0)
    dense = zoo_peer.distinct(nn.Sequential(nn.Linear(4, 3)))
    other = copy.deepcopy(dense)
    other[0].weight.data += 1
    with pytest.raises(AssertionError, match=r"0\.weight has elements that the dense"):
        zoo_peer.zero_removed(dense, other)


def test_the_page_says_what_failed_and_why(monkeypatch: pytest.MonkeyPatch) -> None:
    import zoo_models
    import zoo_report

    pinned = [{"reason": "it is a test: of a reason", "channels": 3, "macs": 0.6, "node": ""}]
    common = {"tool": "fxprune", "mixing": 0, "pinned": pinned, "pinned_macs": 0.6}
    stages = {"step": 1, "law": 1, "onnx": 1}
    records = [
        {
            **common,
            "spec": "timm:resnet10t",
            "macs_kept": 0.7,
            "stages": stages,
            "law": [1e-15] * 3,
        },
        {**common, "spec": "timm:resnet18d", "macs_kept": 0.7, "failed": "onnx: a|b"},
    ]
    entries = [e for e in zoo_models.entries() if e.spec in {r["spec"] for r in records}]
    monkeypatch.setattr(zoo_models, "entries", lambda: entries)
    page = zoo_report.page(records, "python tools/zoo/zoo.py")
    assert "fxprune: 1 of 2 convolutional networks right, 0 of 0 with attention" in page
    assert "it is a test: 2 networks, 60 % of the macs" in page
    assert "| 60 % it is a test: of a reason | 1e-15 |" in page
    assert r"**onnx: a\|b**" in page


def test_a_network_that_keeps_much_needs_a_named_reason() -> None:
    import zoo_report

    pin = {"reason": "the model returns these channels", "macs": 0.5}
    other = {"reason": "there is no rule for aten.logcumsumexp", "macs": 0.5}
    record = {"tool": "fxprune", "spec": "monai:UNet_2d", "macs_kept": 0.6, "pinned_macs": 0.5}
    assert zoo_report.named({**record, "pinned": [pin]})
    assert not zoo_report.named({**record, "pinned": [other]})
    assert not zoo_report.named({**record, "pinned": [pin], "pinned_macs": 0.01})
    assert zoo_report.named({**record, "spec": "transformers:resnet", "pinned": []})
    assert "for no named reason: monai:UNet_2d" in "".join(
        zoo_report.summary([{**record, "pinned": [other]}])
    )
