"""Analysis: finds the channel groups of a traced network by label propagation."""
