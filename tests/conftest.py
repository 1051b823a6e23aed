"""Settings for all tests."""

import functools
import gc
import os
import random
import tempfile
from collections import defaultdict

import pytest
import torch
from hypothesis import settings
from onnxscript.values import TracedOnnxFunction
from torch.onnx._internal.exporter._registration import ONNXRegistry

# No deadline: a slow machine, or a first call that imports, is not a failure.
settings.register_profile("fxprune", deadline=None)
settings.load_profile("fxprune")

# The workers share the machine's cores, and small networks are faster on one thread.
torch.set_num_threads(1)

# What runs may execute is recorded in the user's state folder: not in that of whoever tests.
os.environ["XDG_STATE_HOME"] = tempfile.mkdtemp(prefix="fxprune-tests-")


# torch parses the source of all its ONNX translations at every export, a second each time, and
# looks each of them up again; they stay as they are, so once is enough.
parsed = TracedOnnxFunction.function_ir.fget
TracedOnnxFunction.function_ir = property(functools.cache(parsed))
ONNXRegistry.from_torchlib = staticmethod(functools.cache(ONNXRegistry.from_torchlib))


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks the cases of a `sampled(n)` test as slow, but for `n` that its name draws.

    So each topology has some of the tests of `make test`, and all of them in `make test-all`.
    """
    tests: dict[str, list[pytest.Item]] = defaultdict(list)
    for item in items:
        if item.get_closest_marker("sampled") and not item.get_closest_marker("slow"):
            tests[item.nodeid.split("[")[0]].append(item)
    for name, cases in tests.items():
        (n,) = cases[0].get_closest_marker("sampled").args
        drawn = random.Random(name.split("::")[1]).sample(range(len(cases)), min(n, len(cases)))
        for position, item in enumerate(cases):
            if position not in drawn:
                item.add_marker(pytest.mark.slow)


def pytest_collection_finish() -> None:
    """Spares the collector, and the search for bare averages, all that the imports made."""
    gc.collect()
    gc.freeze()
