"""What `fxprune prune` and `fxprune.prune` do by default with a trained network.

The network falls to its budget within the first tenth of a short run, while the policy utility
chooses its channels; the learning rate starts anew and decays to zero. The help of the command
shows these values too: change them here alone, and only by a better measurement. The fall is that
of `fxprune train` too, if the network was instrumented with `--weights`.
"""

import dataclasses

from fxprune.trainer.options import TrainOptions

POLICY = "utility"
OPTIONS = TrainOptions(epochs=10, lr=0.05, budget_schedule="cubic{begin=0.01,end=0.1}")

SHORT = 3
"""Epochs of each short run of the search for the smallest network that keeps the accuracy."""


def falling_quickly(options: TrainOptions) -> TrainOptions:
    """Return the options of a trained network's training: an "auto" schedule falls as `OPTIONS`'s.

    It ends earlier where the channels settle earlier.
    """
    if options.budget_schedule != "auto":
        return options
    end = min(0.1, 1 - options.settled_share(falls=True))
    return dataclasses.replace(options, budget_schedule=f"cubic{{begin={end / 10},end={end}}}")
