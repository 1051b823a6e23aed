"""The gated network: the compact network in training, its selections and its optimisers."""
