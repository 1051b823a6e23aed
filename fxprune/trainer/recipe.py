"""What `fxprune prune` and `fxprune.prune` do by default with a trained network.

The network falls to its budget within the first tenth of a short run, while the policy utility
chooses its channels; the learning rate starts anew and decays to zero. The help of the command
shows these values too: change them here alone, and only by a better measurement. The fall is that
of `fxprune train` too, where the network was instrumented with `--weights`.
"""

from fxprune.trainer.options import TrainOptions

POLICY = "utility"
OPTIONS = TrainOptions(epochs=10, lr=0.05, budget_schedule="quick")

SHORT = 3
"""Epochs of each short run of the search for the smallest network that keeps the accuracy."""
