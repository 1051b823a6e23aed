"""Channel groups: what they are, what they cost, how tensors and sizes are made narrower."""
