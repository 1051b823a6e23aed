"""Networks of torchvision and timm, by their names in the libraries' registries."""

import inspect
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from fxprune.cli.user_code import nearest
from fxprune.errors import SpecError

BATCH = 2  # rows of made-up example inputs; one row would not do for a batch norm behind a pooling


@dataclass(frozen=True)
class Factory:
    """A network that has yet to be built, and what is known of its inputs."""

    name: str
    build: Callable[[], Any]
    inputs: Callable[[], tuple[torch.Tensor, ...] | None]


def _from_torchvision(name: str, options: dict[str, Any]) -> Factory:
    from torchvision import models

    if name not in models.list_models():
        raise SpecError(
            f"torchvision has no network {name!r}",
            do=nearest(name, models.list_models()) or "see torchvision.models.list_models()",
        )

    def build() -> Any:
        builder = models.get_model_builder(name)
        # A detection network would otherwise fetch the weights of its backbone.
        untrained = {"weights": None, "weights_backbone": None}
        known = inspect.signature(builder).parameters
        defaults = {key: value for key, value in untrained.items() if key in known}
        return builder(**{**defaults, **options})

    def inputs() -> tuple[torch.Tensor, ...]:
        kind = models.get_model_builder(name).__module__
        if "optical_flow" in kind:
            return made_up(((3, 128, 128), (3, 128, 128)))
        preset = models.get_model_weights(name).DEFAULT.transforms()
        size = getattr(preset, "crop_size", [224])
        frames = (16,) if ".video." in kind else ()
        return made_up(((3, *frames, size[0], size[-1]),))

    return Factory(name, build, inputs)


def _from_timm(name: str, options: dict[str, Any]) -> Factory:
    try:
        import timm
    except ImportError as error:
        raise SpecError("timm is not installed", do="pip install timm") from error
    if not timm.is_model(name.split(".")[0]):
        raise SpecError(
            f"timm has no network {name!r}",
            do=nearest(name, timm.list_models()) or "see timm.list_models()",
        )

    def inputs() -> tuple[torch.Tensor, ...]:
        config = timm.get_pretrained_cfg(name)
        return made_up(((3, 224, 224) if config is None else tuple(config.input_size),))

    safe = re.sub(r"[^\w.-]", "_", name)
    return Factory(safe, lambda: timm.create_model(name, pretrained=False, **options), inputs)


FROM_LIBRARY = {"torchvision": _from_torchvision, "timm": _from_timm}


def made_up(shapes: tuple[tuple[int, ...], ...]) -> tuple[torch.Tensor, ...]:
    """Draw an input for each shape, BATCH examples of normal numbers."""
    draw = torch.Generator().manual_seed(0)
    try:
        return tuple(torch.randn(BATCH, *shape, generator=draw) for shape in shapes)
    except (RuntimeError, TypeError, OverflowError, MemoryError) as error:
        raise SpecError(
            f"an input of shape {' and '.join('x'.join(map(str, shape)) for shape in shapes)} "
            "does not fit into memory",
            do="give a smaller shape with --input",
        ) from error
