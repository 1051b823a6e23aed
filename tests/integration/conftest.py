"""Fixtures for the command line and the trainer."""

from tests.support.fitting import digits
from tests.support.run_folder import call, folder, here

__all__ = ["call", "digits", "folder", "here"]
