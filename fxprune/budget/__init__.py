"""Budgets: how much of a network may execute, and when."""
