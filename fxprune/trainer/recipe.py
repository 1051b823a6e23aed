"""The recipe for a network that is trained already: what `fxprune prune` does by default.

The network falls to its budget within the first tenth of a short run, while utility chooses its
channels; the learning rate starts anew and decays to zero. The commands, `fxprune.prune` and their
help take it from here: change it in no other place, and only by a better measurement.
"""

from fxprune.trainer.options import TrainOptions

POLICY = "utility"
OPTIONS = TrainOptions(epochs=10, lr=0.05, budget_schedule="cubic{begin=0.01,end=0.1}")

SHORT = 3
"""Epochs of the short runs in which the size is searched that keeps the accuracy."""
