"""What a network of the zoo is, and how its parameters are drawn."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

SIDE = 96
"""Height and width of the input where the network does not ask for more."""

Loss = Callable[[nn.Module, nn.Module, Tensor], Tensor]
"""The library's own loss of (the model, the gated network, a batch of images)."""


@dataclass(frozen=True)
class Entry:
    """One network of the zoo.

    Attributes:
        spec: `torchvision:NAME` or `timm:NAME`; a part of the network follows a slash.
        collection: a heading of the table.
        shape: of the input, without the batch.
        attention: whether it has attention, so that "all CNNs" does not include it.
        outputs: modules that make the outputs, beside those with as many channels as classes;
            only the peer has to be told.
        options: for the factory.
        millions: of parameters, roughly.
        trains: whether it trains without targets, which are no example inputs.
    """

    spec: str
    collection: str
    shape: tuple[int, ...] = (3, SIDE, SIDE)
    attention: bool = False
    outputs: tuple[str, ...] = ()
    options: tuple[tuple[str, object], ...] = ()
    millions: float = 10.0
    trains: bool = True

    @property
    def name(self) -> str:
        """The part of the spec behind the colon."""
        return self.spec.partition(":")[2]

    def build(self) -> nn.Module:
        """The untrained network, in evaluation mode, with parameters that hide no mistake."""
        library, _, name = self.spec.partition(":")
        name, _, part = name.partition("/")
        options = dict(self.options)
        torch.manual_seed(0)
        if library == "timm":
            import timm

            model = timm.create_model(name, pretrained=False, **options)
        else:
            from torchvision import models

            if name in models.list_models(models.detection):
                options["weights_backbone"] = None
            model = models.get_model(name, weights=None, **options)
        return vary(model.get_submodule(part) if part else model).eval()

    def input(self, batch: int, dtype: torch.dtype, seed: int = 0) -> Tensor:
        """A normal input: [batch, *shape]."""
        generator = torch.Generator().manual_seed(seed)
        return torch.randn(batch, *self.shape, generator=generator, dtype=torch.float64).to(dtype)


@dataclass(frozen=True)
class LibraryEntry(Entry):
    """One network of another library.

    Attributes:
        make: builds it.
        loss: the library's own loss; the mean square of all outputs where there is none.
        kwargs: example inputs by keyword, of a batch of images.
    """

    make: Callable[[], nn.Module] = nn.Identity
    loss: Loss | None = None
    kwargs: Callable[[Tensor], Mapping[str, Any]] = field(default=lambda _: {})

    def build(self) -> nn.Module:
        """The untrained network, in evaluation mode, with parameters that hide no mistake."""
        torch.manual_seed(0)
        return vary(self.make()).eval()


@torch.no_grad()
def vary(model: nn.Module) -> nn.Module:
    """Draws the parameters and statistics that start as constants.

    A scale of 0 or 1e-6 at the end of a block would hide whatever happens inside the block, and
    equal scales would hide that two of them were mistaken for each other.
    """
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if not tensor.is_floating_point() or tensor.numel() == 0:
            continue
        if tensor.numel() > 1 and not bool((tensor == tensor.flatten()[0]).all()):
            continue
        if name.endswith(("running_var", "weight", "gamma", "scale", "gain")):
            tensor.uniform_(0.5, 1.5)
        elif isinstance(tensor, nn.Parameter) or name.endswith("running_mean"):
            tensor.normal_(0.0, 0.2)
    return model
