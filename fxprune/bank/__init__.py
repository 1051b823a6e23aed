"""The bank: full-size storage of the channels that do not execute, and its exchange."""
