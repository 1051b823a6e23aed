"""Where a network trains, in which precision and memory format."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from fxprune.errors import OptionError
from fxprune.trainer.options import TrainOptions
from fxprune.trainer.task import call


@dataclass(frozen=True)
class Placement:
    """The device, precision and memory format of a training, "auto" options resolved."""

    device: torch.device
    amp: torch.dtype | None
    channels_last: bool

    @staticmethod
    def of(options: TrainOptions) -> "Placement":
        """Settle the "auto" options on this machine.

        Raises:
            OptionError: the device is unknown or not there.
        """
        gpu = torch.cuda.is_available()
        try:
            device = torch.device(
                options.device if options.device != "auto" else "cuda" if gpu else "cpu"
            )
        except (RuntimeError, TypeError) as error:
            raise OptionError(
                f"unknown device {options.device!r}", do="give auto, cpu or cuda"
            ) from error
        if device.type not in ("cpu", "cuda"):
            raise OptionError(
                f"cannot train on the device {options.device!r}",
                why="the built-in trainer runs on cpu and cuda",
                do="give one of these, or train in a loop of your own",
            )
        try:
            torch.empty(0, device=device)
        except (RuntimeError, AssertionError) as error:  # the latter where torch is built without
            raise OptionError(
                f"there is no device {options.device!r}",
                do="give cpu, or a torch that supports the device",
            ) from error
        amp = {"off": None, "bfloat16": torch.bfloat16, "float16": torch.float16}.get(options.amp)
        if options.amp == "auto" and device.type == "cuda":
            amp = torch.bfloat16 if torch.cuda.is_bf16_supported(False) else torch.float16
        automatic = device.type != "cuda" or amp is not None
        channels_last = {"off": False, "on": True, "auto": automatic}[options.channels_last]
        return Placement(device, amp, channels_last)

    def prepare(self, inputs: Any) -> Any:
        """Put images [B, C, H, W] among the inputs into the wanted memory format."""
        if not self.channels_last:
            return inputs

        def placed(tensor: Tensor) -> Tensor:
            if tensor.dim() != 4:
                return tensor
            return tensor.contiguous(memory_format=torch.channels_last)

        return pytree.tree_map_only(Tensor, placed, inputs)

    def forward(self, model: nn.Module, inputs: Any) -> Any:
        """Run the network on the inputs of a batch; its outputs are in float32."""
        with torch.autocast(self.device.type, self.amp, enabled=self.amp is not None):
            outputs = call(model, self.prepare(inputs))
        if self.amp is None:
            return outputs
        return pytree.tree_map_only(
            Tensor, lambda found: found.float() if found.is_floating_point() else found, outputs
        )
