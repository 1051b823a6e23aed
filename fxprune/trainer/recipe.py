"""The recipe for a network that is trained already: what `fxprune prune` does by default.

The network falls to its budget within the first tenth of a short run, while utility chooses its
channels; the learning rate starts anew, high, and decays to zero. It is the recipe that did best
in the table of trained starts in results/; change it here, and in no other place.
"""

from fxprune.trainer.options import TrainOptions

POLICY = "utility"
OPTIONS = TrainOptions(epochs=10, lr=0.1, budget_schedule="cubic{begin=0.01,end=0.1}")

SHORT = 3
"""Epochs of the short runs in which the size is searched that keeps the accuracy."""
