"""Summarise runs as plain values: what the report draws, and what its page holds as JSON."""

import math
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from typing import Any

import torch

import fxprune
from fxprune.budget.budget import Budget
from fxprune.channels.graph import ChannelGraph, Widths, layers_of
from fxprune.gated.module import GatedModule
from fxprune.user_lines import shorten

Record = dict[str, Any]
History = Sequence[Mapping[str, Any]]
"""The lines of metrics.jsonl; see `fxprune.trainer.loop.EpochMetrics`."""

VERSION = 1
"""Of the form of the records."""


@dataclass(frozen=True)
class Subject:
    """What one column of a report is about.

    Attributes:
        title: what to call it, such as the name of its run directory.
        policy: in its text form.
        budget: in its text form.
        history: the epochs of its training.
        dense_history: the epochs of the dense network's training; empty where there was none.
        export: what `fxprune export` found, as `--json` prints it; empty where it was not run.
        commands: the commands that repeat it.
        latency: what was measured for a latency budget, seconds: "asked", "dense", "compact".
        network: which network it is: the "epoch" of its figures, whether that is the "best", its
            weights an "average", or the training was "stopped" since; the last epoch's if absent.
        of_epochs: how many epochs the training was to have; None if that is not known.
    """

    title: str
    policy: str
    budget: str
    history: History = ()
    dense_history: History = ()
    export: Mapping[str, Any] | None = None
    commands: Sequence[str] = ()
    latency: Mapping[str, Any] | None = None
    network: Mapping[str, Any] | None = None
    of_epochs: int | None = None


def summarize(subject: Subject, gated: GatedModule) -> Record:
    """Summarise a gated network and its training.

    Args:
        subject: the run.
        gated: its network, as the run left it; it does not change.

    Returns:
        Values that JSON can hold: the run's names, versions, epochs, groups, layers, pinned
        channels and proof. macs are multiply-accumulates of one example; times are in seconds;
        accuracies and shares are from 0 to 1.
    """
    graph, cost, widths = gated.channels, gated.cost, gated.best().widths
    return {
        "version": VERSION,
        "title": subject.title,
        "policy": subject.policy,
        "budget": Budget.parse(subject.budget).asked,
        "steps": gated.steps,
        "commands": list(subject.commands),
        "versions": versions(),
        "macs": {"dense": cost.dense_macs, "compact": cost.macs(widths)},
        "params": {"dense": cost.dense_params, "compact": cost.params(widths)},
        "epochs": [_epoch(line) for line in subject.history],
        "dense_epochs": [_epoch(line) for line in subject.dense_history],
        "groups": _groups(gated, widths),
        "layers": _layers(gated, widths),
        "pinned": _pinned(graph, cost.dense_macs),
        "mixing": [_short_node(text) for text in graph.mixing],
        "export": dict(subject.export) if subject.export else None,
        "latency": dict(subject.latency) if subject.latency else None,
        "network": dict(subject.network) if subject.network else None,
        "of_epochs": subject.of_epochs,
    }


def versions() -> Record:
    """Name the versions and the machine that figures depend on."""
    return {
        "fxprune": fxprune.__version__,
        "torch": torch.__version__,
        "onnx": metadata.version("onnx"),
        "onnxruntime": metadata.version("onnxruntime"),
        "python": platform.python_version(),
        "machine": f"{platform.system()} {platform.machine()}",
    }


_SHOWN = (
    *("epoch", "lr", "train_loss", "train_accuracy", "val_loss", "val_accuracy", "macs"),
    *("run_macs", "run_macs_dense", "step_seconds", "seconds", "widths", "churn"),
    *("metric", "val_metric"),
)


def _epoch(line: Mapping[str, Any]) -> Record:
    return {key: _short(line.get(key)) for key in _SHOWN}


def _short(value: Any) -> Any:
    """Round to six significant digits: the page holds hundreds of epochs. None for no number."""
    if not isinstance(value, float):
        return value
    return float(f"{value:.6g}") if math.isfinite(value) else None


def _groups(gated: GatedModule, widths: Widths) -> list[Record]:
    graph = gated.channels
    score = gated.settings.policy.score(gated.policy_state, graph.layout, explore=False).cpu()
    kept = torch.zeros(graph.layout.total, dtype=torch.bool)
    kept[gated.best().channels.cpu()] = True
    records = []
    for group, offset, width in zip(graph.groups, graph.layout.offsets, widths, strict=True):
        own = slice(offset, offset + group.size)
        records.append(
            {
                "index": group.index,
                "name": group.name,
                "size": group.size,
                "width": width,
                "macs": group.macs,
                "makes": layers_of(member.parameter for member in group.producers),
                "consumes": layers_of(member.parameter for member in group.consumers),
                "saliency": {
                    "kept": _quartiles(score[own][kept[own]]),
                    "removed": _quartiles(score[own][~kept[own]]),
                },
            }
        )
    return records


def _quartiles(values: torch.Tensor) -> list[float] | None:
    """Return the least, quartiles and greatest of the finite values; None without any."""
    values = values[values.isfinite()].double()
    if not len(values):
        return None
    at = torch.tensor([0, 0.25, 0.5, 0.75, 1], dtype=values.dtype)
    return [float(f"{value:.4g}") for value in torch.quantile(values, at).tolist()]


def _layers(gated: GatedModule, widths: Widths) -> list[Record]:
    """List each node that has macs, in the order of the graph, with its output channels."""
    graph = gated.channels
    targets = {node.name: str(node.target) for node in gated.graph.find_nodes(op="call_module")}
    params: dict[str, list[int]] = {}
    for term in graph.params_terms:
        both = params.setdefault(term.name.rpartition(".")[0], [0, 0])
        both[0] += term.at(graph.layout.sizes)
        both[1] += term.at(widths)
    layers = []
    for term in graph.macs_terms:
        name = targets.get(term.name, term.name)
        weight = f"{name}.weight"
        shape = graph.shapes.get(weight)
        dense_width = kept_width = None
        if shape:
            dim = 1 if _is_transposed(gated, name) else 0
            axis = graph.axes.get(weight, {}).get(dim)
            dense_width = shape[dim]
            kept_width = shape[dim] if axis is None else axis.length(widths)
        layers.append(
            {
                "name": name,
                "macs": [term.at(graph.layout.sizes), term.at(widths)],
                "params": params.get(name, [0, 0]),
                "width": [dense_width, kept_width],
            }
        )
    return layers


def _is_transposed(gated: GatedModule, name: str) -> bool:
    try:
        return bool(getattr(gated.get_submodule(name), "transposed", False))
    except AttributeError:
        return False


def _short_node(text: str) -> str:
    """Shorten the line of `node   line`."""
    node, gap, where = text.partition("   ")
    return f"{node}{gap}{shorten(where)}"


def _pinned(graph: ChannelGraph, macs: int) -> list[Record]:
    return [
        {
            "channels": pin.channels,
            "reason": pin.reason,
            "where": shorten(pin.where),
            "share": _short(pin.macs / max(macs, 1)),
            "layers": layers_of(pin.parameters),
        }
        for pin in graph.pinned
    ]
