"""Fixtures for the tests of the command line."""

from tests.support.run_folder import call, folder, here

__all__ = ["call", "folder", "here"]
