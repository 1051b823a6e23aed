"""Settings for all tests."""

import gc
import os
import tempfile

import torch
from hypothesis import settings

# No deadline: a slow machine, or a first call that imports, is not a failure.
settings.register_profile("fxprune", deadline=None)
settings.load_profile("fxprune")

# The workers share the machine's cores, and small networks are faster on one thread.
torch.set_num_threads(1)

# What runs may execute is recorded in the user's state folder: not in that of whoever tests.
os.environ["XDG_STATE_HOME"] = tempfile.mkdtemp(prefix="fxprune-tests-")


def pytest_collection_finish() -> None:
    """Spares the collector, and the search for bare averages, all that the imports made."""
    gc.collect()
    gc.freeze()
