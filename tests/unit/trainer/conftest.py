"""The data that the trainer's tests train on."""

from tests.support.fitting import digits

__all__ = ["digits"]
