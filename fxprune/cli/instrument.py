"""The commands inspect and instrument."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fxprune.cli import console
from fxprune.cli.arguments import (
    Cold,
    Exclude,
    Input,
    Json,
    LatencyCommand,
    Remeasure,
    Spec,
    Threads,
    print_result,
)
from fxprune.errors import OptionError, shell_word

if TYPE_CHECKING:
    from fxprune.gated.module import GatedModule


def inspect(
    spec: Spec,
    shape: Input = None,
    latency: Annotated[
        bool,
        typer.Option(
            "--latency",
            help="Measure what each group costs in ONNX Runtime here: the time that goes with "
            "half of its channels. Takes some seconds a group.",
        ),
    ] = False,
    threads: Threads = None,
    cold: Annotated[
        bool, typer.Option("--cold", help="Measure calls right after another network's.")
    ] = False,
    latency_command: LatencyCommand = "",
    remeasure: Remeasure = False,
    as_json: Json = False,
) -> None:
    """Show what can be pruned: channel groups, and what is pinned, with reason and source line.

    Examples: [bold]fxprune inspect torchvision:resnet18[/bold],
    [bold]fxprune inspect model.py --input 3x32x32 --json[/bold],
    [bold]fxprune inspect model.py --latency --threads 1[/bold].
    """
    from fxprune.api import analyze, group_latencies
    from fxprune.cli import records, tables
    from fxprune.cli.spec import resolve
    from fxprune.export.bench import Target

    if not latency and (threads is not None or cold or latency_command or remeasure):
        raise OptionError("nothing is measured", do="give --latency as well")
    target = Target(threads, cold, latency_command).settled()
    phases = ["building the network", "following its channels"]
    with console.phases([*phases, *(["measuring the groups"] if latency else [])]) as begin:
        begin()
        source = resolve(spec, shape)
        begin()
        record = records.of_graph(source, analyze(source.model, source.example_inputs))
        if latency:
            begin()
            found = group_latencies(
                source.model,
                source.example_inputs,
                target,
                remeasure=remeasure,
                progress=begin.remark,
            )
            record["latency"] = records.of_group_latencies(found, target)
    print_result(record, tables.show_graph, as_json)


def instrument(
    spec: Spec,
    policy: Annotated[
        str | None,
        typer.Option(
            help="How channels are chosen: balance, utility, cucb, magnitude, bn_scale, random, "
            "fixed; with options in braces: 'cucb{c=0.5}'.",
            show_default="balance, with --weights utility",
        ),
    ] = None,
    budget: Annotated[
        str | None,
        typer.Option(
            help="How much may execute, as a share of the dense network: keep=0.5 (channels), "
            "macs=0.25, params=0.11, latency=0.4 (time in ONNX Runtime, measured here), "
            "speedup=2.5 (the same); several hold at once: macs=0.5,params=0.3.",
            show_default="macs=0.25, with --keep what that comes to",
        ),
    ] = None,
    exclude: Exclude = None,
    exclude_inputs: Annotated[
        list[str] | None,
        typer.Option(
            metavar="PATTERN",
            help="Layers that keep all channels that they consume.",
            show_default=False,
        ),
    ] = None,
    keep: Annotated[
        list[str] | None,
        typer.Option(
            metavar="PATTERN=SHARE",
            help="The share of their channels that layers keep; the first pattern that matches "
            "decides: --keep 'layer4.*=0.3' --keep '*=0.6'.",
            show_default=False,
        ),
    ] = None,
    floor: Annotated[
        list[str] | None,
        typer.Option(
            metavar="PATTERN=SHARE", help="The smallest share that layers keep.", show_default=False
        ),
    ] = None,
    ceiling: Annotated[
        list[str] | None,
        typer.Option(
            metavar="PATTERN=SHARE", help="The largest share that layers keep.", show_default=False
        ),
    ] = None,
    round_to: Annotated[
        int | None,
        typer.Option(
            help="Widths are multiples of this.",
            show_default="8, less in groups of fewer than 32",
        ),
    ] = None,
    every: Annotated[int, typer.Option(help="Optimiser steps between two selections.")] = 1,
    weights: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Trained weights of the dense network to start from: .safetensors, or .pt and "
            ".pth with a state dict.",
            show_default=False,
        ),
    ] = None,
    shape: Input = None,
    seed: Annotated[
        int,
        typer.Option(
            min=0, max=2**62, help="Seed of the initial weights, and of policies that draw."
        ),
    ] = 0,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            metavar="RUN",
            help="The run directory; by default NAME.fxprune here.",
            show_default=False,
        ),
    ] = None,
    threads: Threads = None,
    cold: Cold = False,
    latency_command: LatencyCommand = "",
    remeasure: Remeasure = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show widths and costs, and write nothing.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Rewrite a network so that each training step executes only a chosen subset of channels.

    Writes a run directory that [bold]fxprune train[/bold] and [bold]fxprune export[/bold] take; a
    training loop of your own takes it with [bold]fxprune.load[/bold].

    Examples: [bold]fxprune instrument model.py[/bold],
    [bold]fxprune instrument 'torchvision:resnet18{num_classes=10}' --input 3x32x32 --budget
    macs=0.25[/bold],
    [bold]fxprune instrument model.py --weights dense.safetensors[/bold].
    """
    import torch

    from fxprune import api, registry
    from fxprune.budget.budget import Budget
    from fxprune.budget.layers import Layers, limit
    from fxprune.cli import records, tables
    from fxprune.cli.spec import resolve
    from fxprune.export.bench import Target
    from fxprune.policies import known, parse
    from fxprune.runs.promise import Promise
    from fxprune.runs.run import SUFFIX, Run, refuse_what_is_there
    from fxprune.runs.weights import load_weights

    policy = ("balance" if weights is None else "utility") if policy is None else policy
    chosen = parse(policy) if registry.read(policy, "policy")[0] in known() else None
    default = Budget.parse("macs=0.25", round_to)
    given = None if budget is None else Budget.parse(budget, round_to)
    layers = Layers.parse(
        exclude or [], exclude_inputs or [], keep or [], floor or [], ceiling or []
    )
    spent = given or default
    target = Target(threads, cold, latency_command)
    limited = layers != Layers()
    phases = ["building the network", *(["matching the patterns"] if limited else [])]
    phases += ["measuring latencies"] if spent.is_unmeasured else []
    phases += ["instrumenting it", "trying its export", *([] if dry_run else ["writing the run"])]
    fitted, run = None, None
    notes: tuple[str, ...] = ()
    with console.phases(phases) as begin:
        begin()
        torch.manual_seed(seed)
        source = resolve(spec, shape)
        model, inputs = source.model, source.example_inputs
        chosen = chosen or parse(policy)  # one of the user's own, which that may have imported
        folder = output or Path(f"{source.name}{SUFFIX}")
        if not dry_run:
            refuse_what_is_there(folder)
        if weights is not None:
            load_weights(model, weights)
        if limited:
            begin()
            found = limit(layers, given, default, api.analyze(model, inputs), api.names_of(model))
            spent, notes = found.budget, found.notes
        if spent.is_unmeasured:
            begin()
            fitted = api.fit_latency(
                model, inputs, spent, target, remeasure=remeasure, progress=begin.remark
            )
            spent = fitted.budget
        begin()
        gated = api.instrument(model, inputs, chosen, spent, every=every, seed=seed)
        begin()
        exported, refusals = _exported(gated)
        if not dry_run:
            begin()
            run = Run.create(folder, gated, spec, shape, weights)
            Promise.keep(run, fitted)
    record = {
        "run": None if run is None else str(run.path),
        "policy": registry.to_text(chosen),
        "budget": str(spent),
        "round_to": spent.round_to,
        **records.of_widths(gated.channels, gated.cost, gated.best().widths),
        **({} if fitted is None else {"latency": records.of_latency(fitted)}),
        "export": exported,
    }
    print_result(record, tables.show_widths, as_json)
    for note in (*notes, *refusals):
        console.note(note)
    widths = gated.best().widths
    if spent.kind == "keep" and not spent.fits(widths, gated.cost):
        console.note(
            f"{console.share(spent.share(widths, gated.cost))} of the channels stay, more than "
            f"{spent.asked}: some groups cannot be so narrow; "
            "--round-to 1 leaves them the most freedom"
        )
    if run is None:
        console.note("nothing was written: --dry-run")
        return
    name = shell_word(run.path)
    console.note(f"next: fxprune train {name} --data …, then fxprune export {name} --onnx")


def _exported(gated: "GatedModule") -> tuple[dict[str, Any], tuple[str, ...]]:
    """Return the inputs that an exported file has, or why there is none, and notes to print."""
    from fxprune.errors import ExportError
    from fxprune.export.attempt import try_export

    try:
        sizes = try_export(gated)
    except ExportError as error:
        return {"refused": error.why}, (
            f"as it is, it cannot be exported to ONNX: {error.why}; {error.do}",
        )
    fixed = not any("batch" in shape for shape in sizes)
    said = "forward computes with the batch size: export takes a single one, given by --batch"
    return {"inputs": [list(shape) for shape in sizes]}, (said,) if fixed else ()
