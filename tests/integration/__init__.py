"""Whole trainings, several processes, compilers."""
