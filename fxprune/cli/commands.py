"""The command line: inspect, instrument, train, export, demo.

Commands import what they need when they run, so that --help and --version need no torch.
"""

import json
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from fxprune import __version__
from fxprune.cli import console
from fxprune.errors import DataError, FxpruneError, OptionError

if TYPE_CHECKING:
    from torch import Tensor

    from fxprune.runs.run import Run
    from fxprune.trainer.loop import Tick

FORMATS = (".onnx", ".pt2")

app = typer.Typer(
    name="fxprune",
    help="Channel pruning during training: from model.py to a compact ONNX file.\n\n"
    "Three steps: [bold]fxprune instrument model.py[/bold] writes a run directory, "
    "[bold]fxprune train[/bold] trains it at the narrow network's cost (or your own loop does), "
    "[bold]fxprune export --onnx[/bold] writes the compact network, checked against the trained "
    "one.\n\n[bold]fxprune demo[/bold] shows all three in under two minutes.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

Spec = Annotated[
    str,
    typer.Argument(
        metavar="SPEC",
        help="Where the network comes from: [bold]model.py[/bold] (with a build_model() or a "
        "model, and perhaps example_inputs), [bold]model.py:factory[/bold], "
        "[bold]pkg.mod:factory[/bold], [bold]torchvision:resnet18[/bold], "
        "[bold]timm:resnet10t[/bold]. Options for the factory go in braces: "
        "'torchvision:resnet18{num_classes=10}'.",
        show_default=False,
    ),
]
Input = Annotated[
    str | None,
    typer.Option(
        "--input",
        metavar="3x32x32",
        help="Shape of the input without the batch; several inputs with commas. Needed for files "
        "without example_inputs.",
        show_default=False,
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
RunFolder = Annotated[
    Path | None,
    typer.Argument(
        metavar="[RUN]",
        help="The run directory that [bold]fxprune instrument[/bold] wrote; by default the one "
        "in the current directory, the newest if there are several.",
        show_default=False,
    ),
]


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"fxprune {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool,
        typer.Option("--version", help="Print the version.", callback=_version, is_eager=True),
    ] = False,
) -> None:
    pass


@app.command()
def inspect(spec: Spec, shape: Input = None, as_json: Json = False) -> None:
    """Show what can be pruned: channel groups, and what is pinned, with reason and source line.

    Examples: [bold]fxprune inspect torchvision:resnet18[/bold],
    [bold]fxprune inspect model.py --input 3x32x32 --json[/bold].
    """
    from fxprune.api import analyze
    from fxprune.cli import tables
    from fxprune.cli.spec import resolve

    with console.phases(["building the network", "following its channels"]) as begin:
        begin()
        source = resolve(spec, shape)
        begin()
        graph = analyze(source.model, source.example_inputs)
    _print(tables.of_graph(source, graph), tables.show_graph, as_json)


@app.command()
def instrument(
    spec: Spec,
    policy: Annotated[
        str | None,
        typer.Option(
            help="How channels are chosen: balance, utility, cucb, magnitude, bn_scale, random, "
            "fixed; with options in braces: 'cucb{c=0.5}'.  [default: balance, with --weights "
            "utility]",
            show_default=False,
        ),
    ] = None,
    budget: Annotated[
        str,
        typer.Option(
            help="How much may execute, as a share of the dense network: keep=0.5 (channels), "
            "macs=0.25, params=0.11, latency=0.4 (time in ONNX Runtime, measured here)."
        ),
    ] = "macs=0.25",
    round_to: Annotated[
        int | None,
        typer.Option(
            help="Widths are multiples of this.  [default: 8, less in groups of fewer than 32]",
            show_default=False,
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
        typer.Option(min=0, max=2**62, help="Of the initial weights, and of policies that draw."),
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

    from fxprune import api
    from fxprune.budget.budget import Budget
    from fxprune.cli import tables
    from fxprune.cli.spec import resolve
    from fxprune.gated.module import Settings
    from fxprune.policies import parse
    from fxprune.runs.run import SUFFIX, Run
    from fxprune.runs.weights import load_weights

    policy = ("balance" if weights is None else "utility") if policy is None else policy
    chosen, spent = parse(policy), Budget.parse(budget, round_to)  # refused before any work
    Settings(chosen, spent)  # likewise
    measures = spent.kind == "latency" and not spent.widths
    phases = ["building the network", *(["measuring latencies"] if measures else [])]
    phases += ["instrumenting it", "writing the run"]
    fitted = None
    with console.phases(phases) as begin:
        begin()
        torch.manual_seed(seed)
        source = resolve(spec, shape)
        if weights is not None:
            load_weights(source.model, weights)
        if measures:
            begin()
            fitted = api.fit_latency(source.model, source.example_inputs, spent)
            spent = fitted.budget
        begin()
        gated = api.instrument(
            source.model, source.example_inputs, chosen, spent, every=every, seed=seed
        )
        begin()
        run = Run.create(output or Path(f"{source.name}{SUFFIX}"), gated, spec, shape)
    record = {
        "run": str(run.path),
        "policy": run.plan.policy,
        "budget": run.plan.budget,
        "round_to": run.plan.round_to,
        **tables.of_widths(gated.channels, gated.cost, gated.best().widths),
        **({} if fitted is None else {"latency": tables.of_latency(fitted)}),
    }
    _print(record, tables.show_widths, as_json)
    widths = gated.best().widths
    if spent.kind == "keep" and not spent.fits(widths, gated.cost):
        console.note(
            f"{console.share(spent.share(widths, gated.cost))} of the channels stay, more than "
            f"{spent}: some groups cannot be so narrow; --round-to 1 leaves them the most freedom"
        )
    console.note(f"next: fxprune train {run.path} --data …, then fxprune export {run.path} --onnx")


@app.command()
def train(
    folder: RunFolder = None,
    data: Annotated[
        str | None,
        typer.Option(
            help="cifar10, cifar100, fashion-mnist, mnist, digits, or folder:DIR with DIR/train "
            "and DIR/val and a folder per class in each.",
            show_default=False,
        ),
    ] = None,
    epochs: Annotated[
        int | None, typer.Option(help="Passes over the training split.", show_default="20")
    ] = None,
    lr: Annotated[
        float | None, typer.Option(help="The largest learning rate.", show_default="0.1")
    ] = None,
    optimizer: Annotated[Literal["sgd", "adamw"] | None, typer.Option(show_default="sgd")] = None,
    schedule: Annotated[
        Literal["cosine", "step"] | None,
        typer.Option(
            help="cosine falls to 0; step divides by 10 after 50, 75 and 95 %.",
            show_default="cosine",
        ),
    ] = None,
    lr_warmup: Annotated[
        float | None,
        typer.Option(help="Share of the run in which the rate rises from 0.", show_default="0"),
    ] = None,
    batch_size: Annotated[
        int | None, typer.Option(help="Examples per step.", show_default="128")
    ] = None,
    momentum: Annotated[float | None, typer.Option(help="Of SGD.", show_default="0.9")] = None,
    weight_decay: Annotated[
        float | None, typer.Option(help="On all parameters.", show_default="0.0005")
    ] = None,
    label_smoothing: Annotated[
        float | None,
        typer.Option(help="Share of the target spread over all classes.", show_default="0"),
    ] = None,
    augment: Annotated[
        bool | None,
        typer.Option("--augment/--no-augment", help="Random crops and flips.", show_default="on"),
    ] = None,
    amp: Annotated[
        Literal["auto", "off", "bfloat16", "float16"] | None,
        typer.Option(help="Mixed precision; auto is on for a GPU.", show_default="auto"),
    ] = None,
    channels_last: Annotated[
        Literal["auto", "off", "on"] | None,
        typer.Option(help="NHWC memory; auto where it helps.", show_default="auto"),
    ] = None,
    budget_schedule: Annotated[
        str | None,
        typer.Option(
            help="How the network falls from all channels to its budget: constant (the budget "
            "from the first step on), linear or cubic, with options in braces: "
            "'linear{begin=0.2,end=0.5}'. auto is constant for the policy balance, and for others "
            "cubic{begin=0.1,end=0.4}, or an earlier end where the channels settle earlier.",
            show_default="auto",
        ),
    ] = None,
    train_macs: Annotated[
        float | None,
        typer.Option(
            metavar="SHARE",
            help="What the whole run may cost, as a share of the dense run's forward macs; plans "
            "how long the network takes to fall to its budget.",
            show_default=False,
        ),
    ] = None,
    settle: Annotated[
        float | None,
        typer.Option(
            help="Last share of the run, in which only the channels that are exported train; by "
            "default 0.75 where auto gives the budget from the first step on, else 0.5.",
            show_default=False,
        ),
    ] = None,
    seed: Annotated[
        int | None,
        typer.Option(min=0, max=2**40, help="Of order and augmentation.", show_default="0"),
    ] = None,
    device: Annotated[
        str | None, typer.Option(help="auto, cpu, cuda, cuda:1 …", show_default="auto")
    ] = None,
    data_root: Annotated[
        Path | None,
        typer.Option(help="Where data sets are, or are put.", show_default="data"),
    ] = None,
    download: Annotated[bool, typer.Option("--download", help="Fetch missing data.")] = False,
    workers: Annotated[int, typer.Option(min=0, help="Processes that decode folder: images.")] = 0,
    minutes: Annotated[
        float | None,
        typer.Option(
            help="Begin no epoch that would end after so long; the same command goes on later.",
            show_default=False,
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Train a run; called again, go on from its last epoch.

    Each epoch ends with the accuracy that the exported network would have now. Options that are
    not given are those of the last call for this run. Ctrl-C loses the current epoch only. The
    processes of torchrun share each batch.

    Examples: [bold]fxprune train model.fxprune --data cifar10 --download --epochs 30[/bold],
    [bold]torchrun --nproc-per-node 2 -m fxprune train model.fxprune --data cifar10[/bold].
    """
    from fxprune.cli import tables
    from fxprune.cli.spec import resolve
    from fxprune.gated.ddp import first_alone, launched
    from fxprune.trainer.job import Job
    from fxprune.trainer.loop import fit

    run = _run(folder)
    given = {
        "epochs": epochs,
        "lr": lr,
        "optimizer": optimizer,
        "schedule": schedule,
        "lr_warmup": lr_warmup,
        "batch_size": batch_size,
        "momentum": momentum,
        "weight_decay": weight_decay,
        "label_smoothing": label_smoothing,
        "augment": augment,
        "amp": amp,
        "channels_last": channels_last,
        "budget_schedule": budget_schedule,
        "train_macs": train_macs,
        "settle": settle,
        "seed": seed,
        "device": device,
    }
    with launched() as rank, console.heard(rank == 0):
        job = Job.of(run, data, data_root, given)
        with console.phases(["loading the data", "building the network"]) as begin:
            begin()
            with first_alone(rank, wanted=download):
                images = job.load(run, download=download, workers=workers)
            begin()
            gated = run.load(resolve(run.spec, run.input, base=run.base).model)

        def keep() -> None:
            """For the next call; not what was refused."""
            if rank == 0:
                job.write(run)

        try:
            with console.bar("training") as bar:
                history = fit(
                    gated,
                    images,
                    job.options,
                    run=run.path,
                    ready=keep,
                    progress=lambda tick: _show(bar, tick),
                    minutes=minutes,
                )
        except KeyboardInterrupt:
            console.note(f"stopped; fxprune train {run.path} goes on from the last whole epoch")
            raise typer.Exit(130) from None
        if not history:
            raise OptionError("no epoch was trained", why=f"--minutes {minutes} is over")
        record = tables.of_training(run, job, gated, history)
        _print(record, tables.show_training, as_json)
        for line in tables.remarks_on_training(record):
            console.note(line)
        console.note(f"next: fxprune export {run.path} --onnx")


def _show(bar: console.Bar, tick: "Tick") -> None:
    """Moves the bar; says how an epoch ended."""
    from fxprune.cli import tables

    bar.moved(tick.steps_done, tick.steps)
    if tick.metrics is not None:
        bar.say(tables.epoch_line(tick.metrics))


@app.command()
def export(
    targets: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[RUN] [FILE]",
            help="The run directory, by default the one in the current directory, the newest if "
            "there are several; and the file to write, like --output.",
            show_default=False,
        ),
    ] = None,
    onnx: Annotated[bool, typer.Option("--onnx", help="Write ONNX; the default.")] = False,
    pt2: Annotated[
        bool, typer.Option("--pt2", help="Write torch.export's format, which needs torch only.")
    ] = False,
    fold: Annotated[
        bool, typer.Option("--fold", help="Make batch norms part of the layers before them.")
    ] = False,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            metavar="PATH",
            help="The file or folder to write to; by default NAME.onnx here.",
            show_default=False,
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Write the compact network, checked against the trained one before it gets its name.

    The file is run at batch sizes 1, 2 and 7 on fresh random inputs, and on real ones if the data
    of the training are at hand. If an output differs, no file is written and the exit code is 1.

    Examples: [bold]fxprune export --onnx[/bold],
    [bold]fxprune export model.fxprune --onnx --pt2 -o build/[/bold].
    """
    import torch

    from fxprune.cli import tables
    from fxprune.cli.spec import resolve
    from fxprune.export.compare import compact_of, compare_onnx, reference_of
    from fxprune.export.pt2 import export_pt2

    folder, named = _targets(targets or [])
    run = _run(folder)
    paths = _places(output or named, run.path.resolve().stem, onnx=onnx, pt2=pt2)
    phases = ["building the network", "shrinking it", "reading the data"]
    phases += ["writing .pt2"] if ".pt2" in paths else []
    phases += ["writing .onnx", "exporting the dense twin", "timing"] if ".onnx" in paths else []
    with console.phases(phases) as begin:
        begin()
        dense = resolve(run.spec, run.input, base=run.base).model
        gated = run.load(dense)
        begin()
        compact = compact_of(gated, fold=fold)
        record = tables.of_run(run, gated)
        begin()
        real = _real_inputs(run)
        if ".pt2" in paths:
            begin()
            example = tuple(torch.zeros(shape, dtype=dtype) for shape, dtype in gated.inputs)
            record["pt2"] = tables.of_pt2(
                export_pt2(compact, example, paths[".pt2"], reference=reference_of(gated, dense))
            )
        if ".onnx" in paths:
            notes = {"spec": run.spec, "policy": run.plan.policy, "budget": run.plan.budget}
            dense.load_state_dict(gated.dense_state_dict())
            compared = compare_onnx(
                gated, compact, dense, paths[".onnx"], real=real, notes=notes, begin=begin
            )
            record["onnx"] = tables.of_onnx(compared)
    _print(record, tables.show_export, as_json)
    for line in tables.remarks(record):
        console.note(line)


def _targets(targets: list[str]) -> tuple[Path | None, Path | None]:
    """Tells the run from the file to write, by the file's ending."""
    files = [Path(target) for target in targets if Path(target).suffix in FORMATS]
    folders = [Path(target) for target in targets if Path(target).suffix not in FORMATS]
    if len(files) > 1 or len(folders) > 1:
        raise OptionError(
            f"cannot read {' '.join(targets)!r}", do="name one run and at most one file to write"
        )
    return next(iter(folders), None), next(iter(files), None)


def _places(wanted: Path | None, name: str, *, onnx: bool, pt2: bool) -> dict[str, Path]:
    """The file to write for each format that is asked for; ONNX if none is."""
    ending = wanted.suffix if wanted is not None and wanted.suffix in FORMATS else None
    kinds = [kind for kind, asked in ((".onnx", onnx), (".pt2", pt2)) if asked]
    kinds = kinds or [ending or ".onnx"]
    if ending is not None and ending not in kinds:
        raise OptionError(
            f"{wanted} ends in {ending}", why=f"what is asked for is {' and '.join(kinds)}"
        )
    if ending is None:
        folder = wanted or Path()
        if wanted is not None and not folder.is_dir():
            raise OptionError(
                f"there is no folder {folder}", do=f"give a folder, or a file ending in {kinds[0]}"
            )
        return {kind: folder / f"{name}{kind}" for kind in kinds}
    assert wanted is not None
    return {kind: wanted.with_suffix(kind) for kind in kinds}


def _real_inputs(run: "Run") -> "tuple[Tensor, ...]":
    """A few inputs of the data that the run was trained on; none if they are not at hand."""
    from fxprune.export.onnx import BATCHES
    from fxprune.trainer.job import Job

    job = Job.read(run)
    if job is None:
        return ()
    try:
        images, _ = next(job.load(run).val.batches(max(BATCHES)))
    except DataError as error:
        console.note(f"checked on random inputs only: {error.what}")
        return ()
    return (images,)


@app.command()
def demo(
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="DIR", help="Folder for what it writes.")
    ] = Path("fxprune-demo"),
    as_json: Json = False,
) -> None:
    """The whole way in one go: a small residual CNN learns digits, dense and gated, side by side.

    Under two minutes on two cores. Needs scikit-learn, which the extra "demo" brings.
    """
    from fxprune import demo as demonstration
    from fxprune.cli import tables

    with console.bar("reading the digits") as bar:

        def begin(what: str) -> None:
            bar.rename(what)
            bar.say(what)

        shown = demonstration.run(output, begin=begin, progress=lambda tick: _show(bar, tick))
    _print(tables.of_demo(shown), tables.show_demo, as_json)


def _run(folder: Path | None) -> "Run":
    """The run that is meant, with a note if there was a choice."""
    from fxprune.runs.run import Run

    if folder is not None:
        return Run.open(folder)
    run, remark = Run.find(Path())
    if remark:
        console.note(remark)
    return run


def _print(record: dict[str, Any], show: Callable[[dict[str, Any]], Any], as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps(record, indent=2))
    else:
        console.stdout().print(show(record))


def main() -> None:
    """Runs the command line; a refusal is one message on stderr and its error's exit code."""
    if not sys.warnoptions:
        warnings.simplefilter("ignore")  # of torch and its exporter; -W brings them back
    try:
        app()
    except FxpruneError as error:
        typer.echo(f"error: {error}", err=True)
        sys.exit(error.exit_code)
