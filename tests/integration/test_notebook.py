"""The notebook of examples/ runs from its first cell to its last."""

from pathlib import Path

import nbformat
import pytest
from nbconvert.preprocessors import ExecutePreprocessor

ROOT = Path(__file__).parents[2]

# Jupyter's client warns about its own event loop and its own deprecations
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]


def test_the_quickstart_runs(tmp_path: Path) -> None:
    notebook = nbformat.read(ROOT / "examples" / "quickstart.ipynb", as_version=4)
    runner = ExecutePreprocessor(timeout=250, kernel_name="python3")
    runner.preprocess(notebook, {"metadata": {"path": str(tmp_path)}})
    shown = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    html = [output.data["text/html"] for output in shown if "text/html" in output.get("data", {})]
    assert any("channel groups" in text for text in html)
    assert any("gated network, training" in text for text in html)
    assert any("image/png" in output.get("data", {}) for output in shown)
    said = "".join(output.text for output in shown if output.output_type == "stream")
    right = float(said.split(" %")[0])
    assert right > 80
    assert (tmp_path / "compact.onnx").exists()
