"""The one law: gated, shrunk, exported and zeroed networks compute the same."""
