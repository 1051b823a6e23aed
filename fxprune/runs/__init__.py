"""Runs: what stands on disk between two commands."""
