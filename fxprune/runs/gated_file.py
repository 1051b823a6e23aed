"""Gated files: a gated network's state, and in the metadata the plan that makes it again."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from fxprune.errors import GateError, RunError, described
from fxprune.files import as_path, damaged
from fxprune.formats import read_tensors, write_tensors
from fxprune.gated.module import GatedModule
from fxprune.runs.contents import check_gated, most_bytes
from fxprune.runs.plan import Plan
from fxprune.tracing.module import require_module

GATED = "gated/"
"""What the names of the gated network's tensors begin with in a gated file."""

AVERAGE, BEST = "average/", "best/"
"""Likewise of the average of its weights, and of the best epoch's network, in a checkpoint."""


def save(gated: GatedModule, path: str | Path) -> None:
    """Write a gated network to one file: its state and the plan, but not its code.

    The optimiser's own state is not in it; that of resting channels is.

    Args:
        gated: the network; it does not change.
        path: where to, conventionally `*.safetensors`.

    Raises:
        GateError: it is no gated network.
        OptionError: the path is no path.
        RunError: the file cannot be written.
    """
    network: nn.Module = gated  # a caller may have no types
    if not isinstance(network, GatedModule):
        raise GateError(
            f"cannot save {described(network)}",
            why="a file of fxprune.save holds the selection of a gated network",
            do="save what fxprune.instrument returned; any other module by torch's own means",
        )
    write_tensors(as_path(path), *gated_state(gated))


def load(path: str | Path, model: nn.Module) -> GatedModule:
    """Read what `save` wrote.

    Args:
        path: the file.
        model: the original model, with any values in its parameters; it does not change.

    Returns:
        A gated network with the saved state, on the model's device and in training mode.

    Raises:
        OptionError: the path is no path.
        RunError: the file is missing, damaged or foreign, or belongs to another model.
        TraceError: the model is no nn.Module.
    """
    path = as_path(path)
    require_module(model)
    tensors, meta = read_tensors(path, most_bytes([*model.parameters(), *model.buffers()]))
    gated = plan_of(meta, path).instrument(model, path)
    take_over(gated, handed_over(tensors), path)
    return gated


def plan_of(meta: Mapping[str, Any], path: Path) -> Plan:
    """Read the plan in the meta of a gated file; `path` is for the message.

    Raises:
        RunError: there is none, or it is damaged.
    """
    if "plan" not in meta:
        raise RunError(
            f"{path} holds no gated network",
            why="it has no plan of how one was instrumented",
            do="give a file that fxprune.save wrote, or the folder of a run",
        )
    return Plan.from_json(meta["plan"], path)


def take_over(gated: GatedModule, tensors: Mapping[str, Tensor], path: Path) -> None:
    """Give a gated network the state that a gated file holds, and training mode.

    Args:
        gated: the network.
        tensors: the file's, by name.
        path: for the message.

    Raises:
        RunError: the tensors are damaged, or of another network.
    """
    state = under(GATED, tensors)
    check_gated(path, state, gated)
    gated.train()
    try:
        gated.restore(state)
    except (GateError, RuntimeError, ValueError, KeyError, UnicodeDecodeError) as error:
        raise damaged(path, str(error)) from error


def gated_state(gated: GatedModule) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Collect the tensors and the meta of a gated file."""
    tensors = {f"{GATED}{name}": value for name, value in gated.training_state().items()}
    return tensors, {"plan": dataclasses.asdict(Plan.of(gated))}


def handed_over(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Select the tensors of a checkpoint that are exported, by their names in a gated file.

    It is the best epoch's network, else the average of the weights, else the network that trains.
    """
    best, average = under(BEST, tensors), under(AVERAGE, tensors)
    found = best or {
        **under(GATED, tensors),
        **{f"dense/{name}": value for name, value in average.items()},
    }
    return {f"{GATED}{name}": value for name, value in found.items()}


def under(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Select the tensors whose names begin with `prefix`, and drop it from their names."""
    return {key[len(prefix) :]: value for key, value in tensors.items() if key.startswith(prefix)}
