"""ONNX Runtime on the CPU: the content of an ONNX file as a function of its inputs."""

from collections.abc import Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import onnxruntime
import torch

from fxprune.errors import ExportError
from fxprune.export.attempt import reason
from fxprune.export.parity import Runner

VERSION: str = onnxruntime.__version__

PRECISE_INT8 = "session.x64quantprecision"
"""ONNX Runtime's session option that has int8 computed exactly on every processor."""


def runtime(content: bytes, threads: int | None = None, *, optimised: bool = True) -> Runner:
    """Load content into ONNX Runtime on the CPU, as a function of the inputs in their order.

    Args:
        content: of an ONNX file.
        threads: of ONNX Runtime; as many as torch uses, if not given.
        optimised: with its graph optimisations.

    Raises:
        ExportError: ONNX Runtime cannot load the file, or run it when the function is called.
    """
    options = onnxruntime.SessionOptions()
    if not optimised:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 3
    options.intra_op_num_threads = threads or torch.get_num_threads()
    # By default a session's threads go on spinning for milliseconds after a call, on the cores
    # that another session, timed in turns with it, needs: of two ShuffleNets in two threads the
    # quotient was .41, its middle half .28 to .48; without, .31 and .31 to .33.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    # Without it, x64 processors that lack VNNI clip int8's sums of two products to 16 bits.
    options.add_session_config_entry(PRECISE_INT8, "1")
    with _runtime_errors():
        session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    names = [entry.name for entry in session.get_inputs()]

    def run(arrays: Sequence[np.ndarray[Any, Any]]) -> list[np.ndarray[Any, Any]]:
        with _runtime_errors():
            return list(session.run(None, dict(zip(names, arrays))))

    return run


@contextmanager
def _runtime_errors() -> Any:
    try:
        yield
    except Exception as error:  # ONNX Runtime's own errors have no public base class
        raise ExportError(
            "ONNX Runtime cannot run the exported network",
            why=reason(error),
            do="ONNX Runtime's CPU kernels are for float32 above all: try model.float()",
        ) from error
