"""Files of lower precision, plain code, and the layout of ONNX files."""

import copy
import importlib.util
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import onnx
import onnxruntime
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

import fxprune
from fxprune.data import own_data
from fxprune.errors import DataError, ExportError, OptionError, ParityError
from fxprune.export import low_precision
from fxprune.export.low_precision import TOLERANCE, write_fp16, write_int8
from fxprune.export.onnx import OnnxOptions
from fxprune.export.plain import export_plain
from fxprune.trainer.low_precision import Lowering, OutputForm, calibration_batches, score_file
from fxprune.trainer.task import Task

EXAMPLE = (torch.zeros(2, 3, 16, 16),)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU())
        self.depth = nn.Conv2d(16, 16, 3, padding=1, groups=16)
        self.head = nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = x + torch.relu(self.depth(x))
        out: Tensor = self.head(x.mean((2, 3)))
        return out


class Keyed(Net):
    def forward(self, x: Tensor) -> Any:
        logits = super().forward(x)
        return {"logits": logits, "largest": logits.amax(1)}


def compact(model: nn.Module | None = None) -> Any:
    torch.manual_seed(0)
    gated = fxprune.instrument(model or Net(), EXAMPLE, "magnitude", "keep=0.5")
    return fxprune.shrink(gated.eval())


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("files") / "net.onnx"
    fxprune.export_onnx(compact(), EXAMPLE, path)
    return path


def trials(size: int = 16) -> list[tuple[Tensor, ...]]:
    draw = torch.Generator().manual_seed(1)
    return [(torch.randn(n, 3, size, size, generator=draw),) for n in (1, 7)]


def meta(path: Path) -> dict[str, str]:
    return {entry.key: entry.value for entry in onnx.load(path).metadata_props}


def test_half_precision(written: Path) -> None:
    found = write_fp16(written, written.with_suffix(".fp16.onnx"), trials())
    assert 0 < found.max_rel_error <= TOLERANCE["fp16"]
    kinds = {entry.data_type for entry in onnx.load(found.path).graph.initializer}
    assert onnx.TensorProto.FLOAT16 in kinds
    assert meta(found.path)["fxprune.precision"] == "fp16"
    assert meta(found.path)["fxprune.version"] == "0.1.0"


def test_int8(written: Path) -> None:
    found = write_int8(written, written.with_suffix(".int8.onnx"), trials(), trials())
    assert found.max_rel_error <= TOLERANCE["int8"]
    assert 0 < found.from_float32 < 0.2
    assert found.calibrated == 8
    graph = onnx.load(found.path).graph
    assert {node.op_type for node in graph.node} >= {"QuantizeLinear", "DequantizeLinear"}
    assert meta(found.path)["fxprune.reference"].startswith("the same file")


def test_what_a_killed_quantising_leaves_is_found_by_the_next_command(
    written: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    seen: set[str] = set()

    class Batches(list[Any]):
        def __iter__(self) -> Any:
            seen.update(path.name for path in tmp_path.iterdir())
            return super().__iter__()

    write_int8(written, written.with_suffix(".left.onnx"), trials(), Batches(trials()))
    assert {name.startswith("fxprune-scratch-") for name in seen} == {True}


@pytest.mark.slow
def test_a_bare_norm_stays_in_float32(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "bare.onnx"
    model = nn.Sequential(nn.ReLU(), nn.BatchNorm2d(3), Net())
    fxprune.export_onnx(compact(model), EXAMPLE, path)
    write_int8(path, tmp_path / "int8.onnx", trials(), trials())
    assert not caplog.records, "the quantiser warned of an axis that a norm lacks"


def test_a_file_that_is_too_far_off_is_not_written(
    written: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(low_precision, "TOLERANCE", {"fp16": 1e-9})
    path = written.with_suffix(".far.onnx")
    with pytest.raises(ParityError, match="the fp16 file would not compute what it has to"):
        write_fp16(written, path, trials())
    assert not path.exists()


@pytest.mark.parametrize(
    ("batches", "message"),
    [
        ([], "no data to calibrate"),
        (trials(8), r"\[1, 3, 8, 8\], the network takes \['batch', 3"),
        ([(torch.full((1, 3, 16, 16), torch.nan),)], "the calibration data are not finite"),
    ],
    ids=["none", "another shape", "not finite"],
)
def test_calibration_data_that_do_not_fit(batches: Any, message: str, written: Path) -> None:
    with pytest.raises(DataError, match=message):
        write_int8(written, written.with_suffix(".no.onnx"), trials(), batches)


def test_files_are_scored_on_the_data_of_the_run(written: Path) -> None:
    images = torch.randn(40, 3, 16, 16)
    with torch.no_grad():
        labels = compact()(images).argmax(1)
    data = own_data((TensorDataset(images, labels),) * 2, "self")
    scores = score_file(written, data.val, Task(), OutputForm())
    assert scores.accuracy == 1.0
    report = fxprune.export_onnx(compact(), EXAMPLE, written)
    lowering = Lowering(("fp16", "int8"), (data, Task()), EXAMPLE, (images[:7],), 20, OutputForm())
    rows = lowering.write(written, report)
    assert [row.kind for row in rows] == ["float32", "fp16", "int8"]
    assert rows[0].accuracy == 1.0
    assert all(row.accuracy is not None and row.accuracy > 0.8 for row in rows)
    assert rows[2].calibrated == 24


@pytest.mark.slow
def test_a_file_of_one_batch_size_scores_a_rest(tmp_path: Path) -> None:
    path = tmp_path / "three.onnx"
    fxprune.export_onnx(compact(), EXAMPLE, path, options=OnnxOptions(batch=3))
    images = torch.randn(7, 3, 16, 16)
    with torch.no_grad():
        labels = compact()(images).argmax(1)
    data = own_data((TensorDataset(images, labels),) * 2, "self")
    assert score_file(path, data.val, Task(), OutputForm(batch=3)).accuracy == 1.0
    assert [len(batch[0]) for batch in calibration_batches(data, 4, 3)] == [3, 3]


@pytest.mark.slow
def test_keys_of_a_dict_name_the_outputs(tmp_path: Path) -> None:
    path = tmp_path / "keyed.onnx"
    fxprune.export_onnx(compact(Keyed()), EXAMPLE, path)
    graph = onnx.load(path).graph
    assert [entry.name for entry in graph.output] == ["logits", "largest"]
    assert any(node.name == "/head/Gemm" for node in graph.node)
    names = [node.name for node in graph.node]
    assert len({*names}) == len(names)


@pytest.mark.slow
def test_names_are_those_that_are_given(tmp_path: Path) -> None:
    path = tmp_path / "named.onnx"
    options = OnnxOptions(input_names=("image",), output_names=("scores",))
    fxprune.export_onnx(compact(), EXAMPLE, path, options=options)
    graph = onnx.load(path).graph
    assert [entry.name for entry in (*graph.input, *graph.output)] == ["image", "scores"]


def test_height_and_width_vary(tmp_path: Path) -> None:
    path = tmp_path / "any.onnx"
    fxprune.export_onnx(compact(), EXAMPLE, path, options=OnnxOptions(dynamic_hw=True))
    session = onnxruntime.InferenceSession(path)
    (name,) = [entry.name for entry in session.get_inputs()]
    x = torch.randn(2, 3, 40, 24)
    (found,) = session.run(None, {name: x.numpy()})
    torch.testing.assert_close(torch.from_numpy(found), compact()(x).detach(), atol=1e-5, rtol=1e-4)


class Fixed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 16, 3), nn.Linear(16 * 14 * 14, 4)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(torch.relu(self.conv(x)).flatten(1))
        return out


@pytest.mark.sampled(1)
@pytest.mark.parametrize(
    ("model", "words", "message"),
    [
        (Net, {"opset": 9}, "cannot be written with opset 9"),
        (Net, {"input_names": ("a", "b")}, "the network has 1 inputs, and 2 input names are given"),
        (Net, {"input_names": ("relu",)}, "the name 'relu' is taken"),
        (Fixed, {"dynamic_hw": True}, "height and width of the network's input cannot vary"),
    ],
)
def test_layouts_that_cannot_be(
    model: type[nn.Module],
    words: dict[str, Any],
    message: str,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    path = tmp_path / "no.onnx"
    with pytest.raises(OptionError, match=message):
        fxprune.export_onnx(compact(model()), EXAMPLE, path, options=OnnxOptions(**words))
    assert not path.exists()
    assert not caplog.records  # the exporter logs a traceback where it fails


@pytest.mark.parametrize(
    "words",
    [
        {"batch": 0},
        {"input_names": ("a", "a")},
        {"input_names": ("a",), "output_names": ("a",)},
    ],
)
def test_options_out_of_range(words: dict[str, Any]) -> None:
    with pytest.raises(OptionError):
        OnnxOptions(**words)


def test_plain_code_loads_without_fxprune_and_trains_on(tmp_path: Path) -> None:
    path, network = tmp_path / "small.py", compact()
    export_plain(network, EXAMPLE, path)
    code = [line for line in path.read_text().splitlines() if not line.startswith("# fxprune.")]
    assert "fxprune" not in "\n".join(code).replace("written by fxprune", "")
    spec = importlib.util.spec_from_file_location("small", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["small"] = module
    spec.loader.exec_module(module)
    plain, x = module.load(), torch.randn(4, 3, 16, 16)
    assert torch.equal(plain(x), network(x))
    plain.train()
    optimizer = torch.optim.SGD(plain.parameters(), lr=0.1)
    before = plain.head.weight.clone()
    plain(x).square().mean().backward()
    optimizer.step()
    assert not torch.equal(before, plain.head.weight)
    again = fxprune.instrument(module.load(), EXAMPLE, "magnitude", "keep=0.5")
    assert again.best().widths == (4,)


def test_plain_code_of_another_function_than_the_reference_is_refused(tmp_path: Path) -> None:
    network = compact()
    changed = copy.deepcopy(network)
    export_plain(changed, EXAMPLE, tmp_path / "same.py", reference=network)
    with torch.no_grad():
        next(changed.parameters()).mul_(2)
    with pytest.raises(ParityError, match="the plain code would not compute what the network"):
        export_plain(changed, EXAMPLE, tmp_path / "no.py", reference=network)
    assert not (tmp_path / "no.py").exists()


def test_plain_code_returns_truth_values(tmp_path: Path) -> None:
    class Mask(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3))

        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            y = self.body(x)
            return y, y > 0

    network = fxprune.shrink(fxprune.instrument(Mask(), EXAMPLE).eval())
    assert export_plain(network, EXAMPLE, tmp_path / "mask.py").max_rel_error <= 1e-6


def test_writing_plain_code_leaves_the_mode(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Conv2d(8, 4, 3))
    network = fxprune.shrink(fxprune.instrument(model, EXAMPLE).eval()).train()
    export_plain(network, EXAMPLE, tmp_path / "compact.py")
    assert all(module.training for module in network.modules())


def test_plain_code_of_a_forward_with_options_is_refused(tmp_path: Path) -> None:
    class Optional(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3))

        def forward(self, x: torch.Tensor, scale: torch.Tensor | None = None) -> torch.Tensor:
            y = self.body(x)
            return y if scale is None else y * scale

    network = fxprune.shrink(fxprune.instrument(Optional(), EXAMPLE).eval())
    with pytest.raises(ExportError, match="its forward has options, or takes or returns lists"):
        export_plain(network, EXAMPLE, tmp_path / "no.py")


def test_what_is_no_layer_of_torch_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="cannot be written as plain code"):
        export_plain(nn.Conv2d(3, 3, 1), EXAMPLE, tmp_path / "no.py")
    assert json.dumps([str(path) for path in tmp_path.iterdir()]) == "[]"
