"""The data that the trainer's tests train on."""

import pytest

from fxprune.data import DataSet, load


@pytest.fixture(scope="session")
def digits() -> DataSet:
    return load("digits")
