"""Records of what the commands found and did: plain values, for --json and for the tables."""

from dataclasses import asdict
from itertools import pairwise
from statistics import median
from typing import Any

from fxprune.channels.cost import CostModel
from fxprune.channels.graph import ChannelGraph, Member, Widths
from fxprune.cli.spec import Source
from fxprune.demo import Demo
from fxprune.export.bench import Target, timing_record
from fxprune.export.compare import Comparison
from fxprune.export.group_latency import GroupLatency
from fxprune.export.latency import Choice
from fxprune.export.plain import PlainReport
from fxprune.export.pt2 import Pt2Report
from fxprune.gated.module import GatedModule
from fxprune.runs.run import Run
from fxprune.trainer.job import Job
from fxprune.trainer.loop import EpochMetrics
from fxprune.trainer.low_precision import Scored
from fxprune.trainer.outcome import stopped_early
from fxprune.trainer.prune import Pruned

Record = dict[str, Any]


STEP = 3
"""Forward, gradient of the activations and gradient of the weights cost about the same macs."""


def of_graph(source: Source, graph: ChannelGraph) -> Record:
    """Make the record of `fxprune inspect`."""
    cost = CostModel(graph.macs_terms, graph.params_terms, graph.layout.sizes)
    macs = max(cost.dense_macs, 1)
    return {
        "spec": source.spec,
        "inputs": [list(tensor.shape) for tensor in source.example_inputs],
        "traced": True,
        "params": cost.dense_params,
        "macs": cost.dense_macs,
        "channels": graph.layout.total,
        "groups": [
            {
                "name": group.name,
                "size": group.size,
                "members": [_of_member(member) for member in group.members],
                "producers": [member.parameter for member in group.producers],
                "consumers": [member.parameter for member in group.consumers],
                "macs": group.macs,
                "macs_share": group.macs / macs,
            }
            for group in graph.groups
        ],
        "pinned": _of_pinned(graph, macs),
        "mixing": list(graph.mixing),
    }


def _of_pinned(graph: ChannelGraph, macs: int) -> list[Record]:
    trained = {term.name for term in graph.params_terms}  # the others are buffers
    return [
        {
            "channels": pinned.channels,
            "reason": pinned.reason,
            "node": pinned.node,
            "where": pinned.where,
            "parameters": [name for name in pinned.parameters if name in trained],
            "macs": pinned.macs,
            "macs_share": pinned.macs / macs,
        }
        for pinned in graph.pinned
    ]


def of_widths(graph: ChannelGraph, cost: CostModel, widths: Widths) -> Record:
    """Make the record of what `fxprune instrument` made of the groups."""
    return {
        "groups": [
            {"name": group.name, "dense": group.size, "gated": width}
            for group, width in zip(graph.groups, widths, strict=True)
        ],
        "dense": {"params": cost.dense_params, "macs": cost.dense_macs},
        "gated": {"params": cost.params(widths), "macs": cost.macs(widths)},
        "pinned": _of_pinned(graph, max(cost.dense_macs, 1)),
    }


def of_latency(choice: Choice) -> Record:
    """Make the record of a latency budget; shares are of the dense network's time."""
    return {
        **timing_record(choice.known.timing, choice.target),
        "asked": choice.budget.value,
        "share": choice.share,
        "met": choice.met,
        "date": choice.known.date,
        "cached": not choice.known.fresh,
        "measured": {
            "/".join(map(str, widths)): share for widths, share in choice.measured.items()
        },
        "slower": [["/".join(map(str, widths)) for widths in pair] for pair in choice.slower],
    }


def of_group_latencies(found: list[GroupLatency], target: Target) -> Record:
    """Make the record of `fxprune inspect --latency`; seconds are of one example."""
    return {
        "threads": target.threads,
        "command": target.command,
        "binds": "cold" if target.cold else "hot",
        "dense": median([each.known.timing.dense[each.cold] for each in found]) if found else None,
        "groups": {
            each.name: {
                "width": each.width,
                "saved": each.saved,
                "share": 1 - each.known.timing.bound(each.cold).median,
                "error": each.error,
                "date": each.known.date,
            }
            for each in found
        },
    }


def of_training(run: Run, job: Job, gated: GatedModule, history: list[EpochMetrics]) -> Record:
    """Make the record of `fxprune train`."""
    return {
        **of_run(run, gated),
        "data": job.data,
        "epochs": len(history),
        "of_epochs": job.options.epochs,
        "stopped_early": stopped_early(job.options, history),
        "run_macs": {
            "dense": history[-1].run_macs_dense,
            "planned": history[-1].run_macs_planned,
            "spent": history[-1].run_macs,
        },
        "step_seconds": median(metrics.step_seconds for metrics in history),
        "step_seconds_of": step_seconds(history, gated.cost.dense_macs),
        "seconds": sum(metrics.seconds for metrics in history),
        "history": [asdict(metrics) for metrics in history],
    }


def step_seconds(history: list[EpochMetrics], dense: int) -> Record:
    """Compute median step seconds of the epochs with all channels, and of those with the fewest.

    An epoch counts if all of its steps were such, going by its last one and the one before it.
    """
    executed = [metrics.macs or dense for metrics in history]
    few = min(1.05 * min(executed), dense - 1)  # widths that follow scores vary a little
    whole = [m.step_seconds for m, macs in zip(history, executed) if macs == dense]
    chosen = [
        m.step_seconds for m, macs in zip(history[1:], pairwise(executed)) if max(macs) <= few
    ]
    return {"all": median(whole) if whole else None, "chosen": median(chosen) if chosen else None}


def of_run(run: Run, gated: GatedModule) -> Record:
    """Make the record of a run, and of what its network costs as export would take it now."""
    best, cost = gated.best().widths, gated.cost
    stands = run.standing()
    last, stopped = stands.metrics, stands.stopped
    return {
        "run": str(run.path),
        "spec": run.spec,
        "policy": run.plan.policy,
        "budget": run.plan.budget,
        "steps": gated.steps,
        "val_accuracy": None if last is None or stopped else last.val_accuracy,
        "stopped_in_epoch": (last.epoch if last else 0) + 1 if stopped else None,
        "epoch": None if last is None or stopped else last.epoch,
        "of_best": stands.best,
        "average": stands.average,
        "params": {"dense": cost.dense_params, "compact": cost.params(best)},
        "macs": {"dense": cost.dense_macs, "compact": cost.macs(best)},
    }


def of_pruned(
    run: Run,
    pruned: Pruned,
    compared: Comparison,
    fitted: Choice | None,
    max_drop: float | None,
) -> Record:
    """Make the record of `fxprune prune`."""
    return {
        **of_run(run, pruned.gated),
        "accuracy": {"dense": pruned.dense.accuracy, "compact": pruned.compact.accuracy},
        "images": len(pruned.dense.labels),
        "drop": asdict(pruned.drop),
        "max_drop": max_drop,
        "held_out": pruned.held_out and asdict(pruned.held_out),
        "trials": [asdict(trial) for trial in pruned.trials],
        "asked": None if fitted is None else fitted.budget.value,
        "latency": None if fitted is None else of_latency(fitted),
        "onnx": compared.record(),
        "seconds": sum(metrics.seconds for metrics in pruned.history),
        "history": [asdict(metrics) for metrics in pruned.history],
    }


def of_file(report: Scored | PlainReport | Pt2Report) -> Record:
    """Make the record of a file of one of the other formats."""
    return {**asdict(report), "path": str(report.path)}


def of_demo(demo: Demo) -> Record:
    """Make the record of `fxprune demo`."""
    onnx = demo.exported.record()
    files = (demo.run, demo.run_of_dense, demo.exported.report.path, demo.dense_onnx, demo.report)
    both = {
        "accuracy": demo.accuracy,
        "step_seconds": demo.step_seconds,
        "train_seconds": demo.train_seconds,
    }
    return {
        "onnx": onnx,
        **{key: {"dense": full, "compact": narrow} for key, (full, narrow) in both.items()},
        "wrote": [str(path) for path in files],
    }


def _of_member(member: Member) -> Record:
    return {
        "parameter": member.parameter,
        "dim": member.dim,
        "role": member.role.name.lower(),
        "positions_per_channel": int(member.positions.shape[1]),
    }
