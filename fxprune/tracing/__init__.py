"""Tracing: a model becomes a graph that computes the same."""
