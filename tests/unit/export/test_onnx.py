import dataclasses
import gc
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import nn

from fxprune.errors import ExportError, ParityError, RunError
from fxprune.export import onnx as our_onnx
from fxprune.export.onnx import BATCHES, export_onnx, onnx_content
from fxprune.export.parity import TOLERANCE, gaps
from fxprune.export.runtime import runtime


class Residual(nn.Module):
    def __init__(self, width=6):
        super().__init__()
        self.stem = nn.Conv2d(3, width, 3, padding=1)
        self.bn = nn.BatchNorm2d(width)
        self.conv = nn.Conv2d(width, width, 3, padding=1)
        self.fc = nn.Linear(width, 5)

    def forward(self, x):
        x = torch.relu(self.bn(self.stem(x)))
        x = torch.relu(x + self.conv(x))
        return self.fc(x.mean((2, 3)))


def make_net():
    torch.manual_seed(0)
    net = Residual()
    net(torch.randn(8, 3, 8, 8))  # running statistics that are not 0 and 1
    return net.train()


@pytest.fixture
def net():
    return make_net()


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    net, path = make_net(), tmp_path_factory.mktemp("onnx") / "net.onnx"
    return net, path, export_onnx(net, (torch.randn(1, 3, 8, 8),), path, notes={"macs": 123})


def test_the_report_of_an_export_shows_itself_in_a_notebook(exported):
    report = exported[2]
    shown = dataclasses.replace(report, path=Path("<b>.onnx"))._repr_html_()
    assert shown.count("<tr>") == len(vars(report))
    assert f"<td>{report.bytes}</td>" in shown
    assert "&lt;b&gt;.onnx" in shown


@pytest.mark.slow
def test_exports_leave_no_traced_tensors_behind(net, tmp_path):
    def left():
        gc.collect()
        return sum(type(thing).__name__ == "_DispatchCacheKey" for thing in gc.get_objects())

    example = (torch.randn(1, 3, 8, 8),)
    export_onnx(net, example, tmp_path / "net.onnx")
    before = left()
    for _ in range(2):
        export_onnx(net, example, tmp_path / "net.onnx")
    assert left() <= before


def test_the_file_computes_what_the_network_computes(exported):
    net, path, report = exported
    assert net.training, "the network is left as it was"
    assert report.path == path
    assert report.bytes == path.stat().st_size
    assert report.params == sum(p.numel() for p in net.parameters())
    assert 0 < report.max_rel_error <= report.tolerance == TOLERANCE[torch.float32]

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    clone = make_net().eval()
    for size in (1, 3, 11):
        x = torch.randn(size, 3, 8, 8)
        (found,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
        with torch.no_grad():
            torch.testing.assert_close(torch.from_numpy(found), clone(x), rtol=1e-5, atol=1e-6)


def test_an_export_inside_autocast_is_that_outside(tmp_path):
    net, example = make_net(), (torch.randn(4, 3, 8, 8),)
    for name in ("outside", "inside"):
        with torch.autocast("cpu", torch.bfloat16, enabled=name == "inside"):
            export_onnx(net, example, tmp_path / name, reference=net)
            assert torch.is_autocast_enabled("cpu") == (name == "inside")
    nodes = [onnx.load(tmp_path / name).graph.node for name in ("outside", "inside")]
    assert [node.op_type for node in nodes[0]] == [node.op_type for node in nodes[1]]


def test_the_figures_stand_in_the_file(exported):
    _, path, report = exported
    found = {entry.key: entry.value for entry in onnx.load(path).metadata_props}
    assert float(found["fxprune.max_abs_error"]) == report.max_abs_error
    assert float(found["fxprune.max_rel_error"]) == report.max_rel_error
    assert found["fxprune.batches"] == str(BATCHES)
    assert found["fxprune.macs"] == "123"


def test_nothing_of_this_machine_stands_in_the_file(exported):
    _, path, _ = exported
    content = path.read_bytes()
    assert b".py" not in content
    assert str(path.parent).encode() not in content


def test_an_unchecked_file_computes_the_same(exported):
    net, path, _ = exported
    example = (torch.randn(2, 3, 8, 8),)
    arrays = [tensor.numpy() for tensor in example]
    (found,) = runtime(onnx_content(net, example))(arrays)
    (expected,) = runtime(path.read_bytes())(arrays)
    assert (found == expected).all()
    with pytest.raises(ExportError, match="ONNX Runtime cannot run"):
        runtime(b"nothing")


def test_real_inputs_are_compared_as_well(net, tmp_path):
    example = (torch.zeros(1, 3, 8, 8),)
    real = (torch.randn(5, 3, 8, 8),)
    first = export_onnx(net, example, tmp_path / "net.onnx", inputs=real)
    assert first.real_examples == 1 + 2, "7 are not there"

    class Rare(nn.Module):
        """Differs from `net` on bright images only."""

        def __init__(self):
            super().__init__()
            self.net = net

        def forward(self, x):
            return self.net(x) + (x > 1000).any()

    bright = (torch.full((2, 3, 8, 8), 2000.0),)
    with pytest.raises(ParityError):
        export_onnx(net, example, tmp_path / "rare.onnx", inputs=bright, reference=Rare())
    assert not (tmp_path / "rare.onnx").exists()
    second = export_onnx(net, example, tmp_path / "rare.onnx", reference=Rare())
    assert first.seed != second.seed, "every export draws other inputs"


def test_a_failed_check_writes_no_file_and_keeps_the_old_one(net, tmp_path):
    other = Residual()
    other.load_state_dict(net.state_dict())
    with torch.no_grad():
        other.fc.weight[2, 3] *= 1.01
    path = tmp_path / "net.onnx"
    with pytest.raises(ParityError, match=r"net\.onnx is not written\n  why  .* more than 2e-05"):
        export_onnx(net, (torch.randn(2, 3, 8, 8),), path, reference=other)
    assert list(tmp_path.iterdir()) == []
    path.write_text("old")
    with pytest.raises(ParityError):
        export_onnx(net, (torch.randn(2, 3, 8, 8),), path, reference=other)
    assert path.read_text() == "old"
    assert ParityError.exit_code == 1


@pytest.mark.sampled(1)
@pytest.mark.parametrize(
    "how",
    [{}, {"padding": (2, 1), "stride": (1, 2)}, {"padding": 2, "dilation": 2, "groups": 4}],
    ids=str,
)
def test_a_kernel_for_each_example(how, tmp_path):
    class Conditional(nn.Module):
        """A convolution whose kernel depends on the example, as a group for each."""

        def __init__(self):
            super().__init__()
            self.groups = how.get("groups", 1)
            self.kernels = nn.Parameter(torch.randn(3, 8 * (4 // self.groups) * 9))
            self.biases = nn.Parameter(torch.randn(3, 8))

        def forward(self, x):
            n, c, h, w = x.shape
            share = x.mean((2, 3))[:, :3].softmax(1)
            kernel = (share @ self.kernels).view(n * 8, c // self.groups, 3, 3)
            options = {**how, "groups": self.groups * n}
            x = x.reshape(1, n * c, h, w)
            y = nn.functional.conv2d(x, kernel, (share @ self.biases).flatten(), **options)
            return y.view(n, 8, y.shape[2], y.shape[3])

    example = (torch.randn(2, 4, 9, 7),)
    export_onnx(Conditional(), example, tmp_path / "net.onnx")  # which compares batches of 1 to 7


@pytest.mark.slow
def test_a_network_that_amplifies_rounding_is_told_so(tmp_path):
    class Cancelling(nn.Module):
        """The difference of two convolutions that are nearly the same."""

        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.conv = nn.Conv2d(16, 8, 3, bias=False)
            with torch.no_grad():
                self.conv.weight[4:] = self.conv.weight[:4] * (1 + 1e-4 * torch.rand(4, 16, 3, 3))

        def forward(self, x):
            one, other = self.conv(x).chunk(2, dim=1)
            return one - other

    said = r"rounding alone makes .* in the network itself"
    with pytest.raises(ParityError, match=said) as caught:
        export_onnx(Cancelling(), (torch.randn(2, 16, 8, 8),), tmp_path / "net.onnx")
    assert "report it" not in str(caught.value), "it is no fault of the file"
    assert list(tmp_path.iterdir()) == []


def test_an_output_that_is_not_finite(net, tmp_path):
    with torch.no_grad():
        net.fc.bias[1] = float("nan")
    with pytest.raises(ParityError, match="output 0 of the network is not finite"):
        export_onnx(net, (torch.randn(2, 3, 8, 8),), tmp_path / "net.onnx")
    assert list(tmp_path.iterdir()) == []


def test_a_file_whose_output_is_not_finite_is_blamed_and_not_the_network():
    endless = [np.full((2, 5), np.inf, np.float32)]
    with pytest.raises(ParityError, match="output 0 of the ONNX file is not finite"):
        gaps(nn.Linear(3, 5), lambda _: endless, (torch.zeros(2, 3),))


def test_a_folder_that_is_not_there(net, tmp_path):
    with pytest.raises(RunError, match="cannot write"):
        export_onnx(net, (torch.randn(2, 3, 8, 8),), tmp_path / "no" / "net.onnx")


def test_several_inputs_and_outputs(tmp_path):
    class Pair(nn.Module):
        def forward(self, x, y, scale):
            return {"sum": x + y, "more": (x.argmax(1), y * scale)}

    example = torch.randn(3, 4), torch.randn(3, 4), torch.randn(())
    report = export_onnx(Pair(), example, tmp_path / "pair.onnx")
    session = onnxruntime.InferenceSession(report.path, providers=["CPUExecutionProvider"])
    assert [entry.shape for entry in session.get_inputs()] == [["batch", 4], ["batch", 4], []]
    assert len(session.get_outputs()) == 3


@pytest.mark.slow
def test_a_network_that_takes_one_batch_size(tmp_path):
    class Fixed(nn.Module):
        def forward(self, x):
            return x.reshape(2, 12) * 2

    with pytest.raises(ExportError, match=r"cannot export|one batch size only") as caught:
        export_onnx(Fixed(), (torch.randn(2, 3, 4),), tmp_path / "fixed.onnx")
    assert caught.value.exit_code == 1
    assert list(tmp_path.iterdir()) == []


def test_a_reference_that_runs_with_some_batch_sizes_only(net, tmp_path):
    class Pairs(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = net

        def forward(self, x):
            return self.net(x.unflatten(0, (-1, 2)).flatten(0, 1))

    images = torch.randn(2, 3, 8, 8)
    with pytest.raises(ExportError, match="does not run on inputs of shape") as error:
        export_onnx(net, (images,), tmp_path / "net.onnx", reference=Pairs())
    assert "OnnxOptions(batch=…)" in str(error.value)
    one = our_onnx.OnnxOptions(batch=2)
    export_onnx(net, (images,), tmp_path / "net.onnx", reference=Pairs(), options=one)


def test_an_operator_that_onnx_does_not_have(tmp_path):
    class Odd(nn.Module):
        def forward(self, x):
            return torch.linalg.eigvals(x).real

    with pytest.raises(ExportError, match="torch cannot export the network to ONNX\n  why  "):
        export_onnx(Odd(), (torch.randn(2, 3, 3),), tmp_path / "odd.onnx")


def test_a_dtype_that_onnx_runtime_does_not_compute(tmp_path):
    net = nn.Conv2d(3, 4, 3).to(torch.bfloat16)
    with pytest.raises(ExportError, match=r"model\.float\(\)"):
        export_onnx(net, (torch.randn(2, 3, 8, 8, dtype=torch.bfloat16),), tmp_path / "net.onnx")


def test_a_runtime_that_changes_the_network_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # as 1.31.1 did, which took zeros in front of a max pooling for the pooling's own padding
    real = our_onnx.runtime

    def faulty(content: bytes, threads: int | None = None, *, optimised: bool = True) -> Any:
        run = real(content, threads, optimised=optimised)
        return lambda arrays: [array * (1.01 if optimised else 1) for array in run(arrays)]

    monkeypatch.setattr(our_onnx, "runtime", faulty)
    path = tmp_path / "net.onnx"
    with pytest.raises(ParityError, match="without ONNX Runtime's graph optimisations") as caught:
        export_onnx(nn.Conv2d(3, 8, 3).eval(), (torch.zeros(2, 3, 6, 6),), path)
    assert onnxruntime.__version__ in caught.value.do
    assert not path.exists()
