"""A compiler for channel pruning during training."""

__version__ = "0.1.0"
