"""Distillation: a narrow network learns from the dense one that it was made of.

The loss of a batch is (1 - d) * loss + d * T^2 * KL(teacher / T || network / T), with the share d
and the temperature T, the divergence of softened classes (Hinton, Vinyals and Dean, "Distilling the
knowledge in a neural network", 2015, section 2).
"""

import copy
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from fxprune import api
from fxprune.bank.exchange import Selection
from fxprune.errors import ModelError, OptionError
from fxprune.formats import read_tensors, write_tensors
from fxprune.gated.module import GatedModule
from fxprune.runs.contents import check_gated, most_bytes
from fxprune.runs.gated_file import under
from fxprune.trainer.options import TrainOptions
from fxprune.trainer.placement import Placement
from fxprune.trainer.task import shapes

FILE = "teacher.safetensors"
DENSE = "dense/"


class Teacher:
    """The dense network as it was before the training, and the loss of learning from it.

    Args:
        dense: the network, in evaluation mode.
        options: how the other one is trained.
        placement: where both run.
    """

    def __init__(self, dense: nn.Module, options: TrainOptions, placement: Placement) -> None:
        self.dense, self.options, self.placement = dense, options, placement

    @staticmethod
    def of(
        model: nn.Module, options: TrainOptions, placement: Placement, run: Path | None
    ) -> "Teacher | None":
        """Take the teacher of a training from its run, or from a network that is not trained yet.

        Args:
            model: the network that is trained.
            options: how.
            placement: where it runs.
            run: the folder of a training that goes on; None where it begins.

        Returns:
            The teacher; None where nothing is distilled.

        Raises:
            OptionError: the network is not gated, so that there is no other dense one.
            RunError: the file is damaged, or of another network.
        """
        if not options.distil:
            return None
        if not isinstance(model, GatedModule):
            raise OptionError(
                "distil is for gated networks",
                why="a plain network is the dense one itself",
                do="give what fxprune.instrument returned, or leave distil out",
            )
        gated = copy.deepcopy(model)
        if run is not None:
            _load(gated, run / FILE)
        sizes = gated.channels.layout.sizes
        whole = torch.arange(gated.channels.layout.total, device=placement.device)
        gated.settle(Selection(whole, sizes))
        return Teacher(api.shrink(gated.eval()).requires_grad_(False), options, placement)

    @torch.no_grad()
    def says(self, inputs: Any) -> Any:
        """Return what the dense network returns for the inputs of a batch."""
        return self.placement.forward(self.dense, inputs)

    def loss(self, loss: Tensor, outputs: Any, said: Any) -> Tensor:
        """Join the loss of a batch with what the teacher said of it.

        Args:
            loss: [].
            outputs: of the network that is trained, [B, classes, ...].
            said: the teacher's.

        Raises:
            ModelError: they are no logits.
        """
        if not (isinstance(outputs, Tensor) and isinstance(said, Tensor) and outputs.dim() > 1):
            raise ModelError(
                "there are no classes to distil",
                why=f"the network returns {shapes(outputs)}",
                do="leave distil out, or make forward return one tensor of logits",
            )
        share, temperature = self.options.distil, self.options.temperature
        divergence = functional.kl_div(
            functional.log_softmax(outputs / temperature, 1),
            functional.log_softmax(said / temperature, 1),
            reduction="none",
            log_target=True,
        )
        soft = divergence.sum(1).mean()
        return (1 - share) * loss + share * temperature**2 * soft


def keep(model: nn.Module, run: Path) -> None:
    """Write the dense tensors of a network that is not trained yet into its run.

    Raises:
        RunError: the folder cannot be written to.
    """
    assert isinstance(model, GatedModule)
    run.mkdir(parents=True, exist_ok=True)
    write_tensors(run / FILE, under(DENSE, model.training_state()), {})


def _load(gated: GatedModule, path: Path) -> None:
    tensors, _ = read_tensors(path, most_bytes(gated.dense_tensors().values()))
    state = {**gated.training_state(), **{f"{DENSE}{k}": t for k, t in tensors.items()}}
    check_gated(path, state, gated)
    gated.restore(state)
