"""The command prune."""

import dataclasses
import functools
import itertools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fxprune.cli import console
from fxprune.cli.arguments import (
    Cold,
    Crop,
    Exclude,
    Flip,
    Input,
    Json,
    LatencyCommand,
    Loss,
    Mean,
    Remeasure,
    Resize,
    Spec,
    Std,
    Threads,
    TransformName,
    print_result,
    show_tick,
)
from fxprune.cli.options import NONE_GIVEN, Given, options_of
from fxprune.cli.signals import Ended, ended
from fxprune.errors import OptionError, shell_word
from fxprune.trainer.recipe import OPTIONS

if TYPE_CHECKING:
    from torch import Tensor, nn

    from fxprune.budget.budget import Budget
    from fxprune.budget.layers import Layers
    from fxprune.cli.spec import Source
    from fxprune.data import DataSet
    from fxprune.export.bench import Target
    from fxprune.export.compare import Comparison
    from fxprune.export.latency import Choice
    from fxprune.gated.module import GatedModule
    from fxprune.runs.run import Run
    from fxprune.trainer.job import Job
    from fxprune.trainer.prune import Pruned

TRAINING = (
    "epochs",
    "lr",
    "lr_warmup",
    "optimizer",
    "batch_size",
    "weight_decay",
    "decay_norms",
    "clip",
    "accumulate",
    "freeze",
    "ema",
    "label_smoothing",
    "distil",
    "temperature",
    "augment",
    "randaugment",
    "mixup",
    "cutmix",
    "amp",
    "seed",
    "device",
)


@options_of(OPTIONS, *TRAINING)
def prune(
    spec: Spec,
    data: Annotated[
        str,
        typer.Option(
            help="What the network was trained on: cifar10, cifar100, fashion-mnist, mnist, "
            "digits, folder:DIR with DIR/train and DIR/val and a folder per class in each, or "
            "[bold]data.py:factory[/bold] of your own.",
            show_default=False,
        ),
    ],
    weights: Annotated[
        Path,
        typer.Option(
            metavar="FILE",
            help="The trained weights: .safetensors, or .pt and .pth with a state dict.",
            show_default=False,
        ),
    ],
    speedup: Annotated[
        float | None,
        typer.Option(help="How many times as fast in ONNX Runtime here.", show_default=False),
    ] = None,
    macs: Annotated[
        float | None,
        typer.Option(
            help="The share of the multiply-accumulates that shall stay.", show_default=False
        ),
    ] = None,
    budget: Annotated[
        str | None,
        typer.Option(help="Any budget of fxprune instrument.", show_default=False),
    ] = None,
    max_drop: Annotated[
        float | None,
        typer.Option(
            metavar="POINTS",
            help="The smallest network that loses at most so many points of accuracy: searched by "
            "a few short runs, judged on a tenth of the training images.",
            show_default=False,
        ),
    ] = None,
    exclude: Exclude = None,
    loss: Loss = None,
    given: Given = NONE_GIVEN,
    shape: Input = None,
    mean: Mean = None,
    std: Std = None,
    resize: Resize = None,
    crop: Crop = None,
    flip: Flip = None,
    transform: TransformName = None,
    data_root: Annotated[Path, typer.Option(help="Where data sets are, or are put.")] = Path(
        "data"
    ),
    download: Annotated[bool, typer.Option("--download", help="Fetch missing data.")] = False,
    workers: Annotated[int, typer.Option(min=0, help="Processes that decode folder: images.")] = 0,
    threads: Threads = None,
    cold: Cold = False,
    latency_command: LatencyCommand = "",
    remeasure: Remeasure = False,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            metavar="RUN",
            help="The run directory; by default NAME.fxprune here. NAME.onnx is written beside it.",
            show_default=False,
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Make a trained network smaller in one go: instrument, a short training, ONNX, a table.

    The network falls to its size in the first tenth of ten epochs, while the learning rate starts
    anew and falls to zero. The dense network's own accuracy is printed before anything changes.

    Examples: [bold]fxprune prune model.py --weights w.pt --data cifar10 --speedup 2[/bold],
    [bold]fxprune prune torchvision:resnet18 --weights w.pt --data folder:images --macs .5[/bold],
    [bold]fxprune prune model.py --weights w.pt --data cifar10 --max-drop 1[/bold].
    """
    import torch

    from fxprune.budget.budget import Budget
    from fxprune.budget.layers import Layers
    from fxprune.cli import lines, records, tables
    from fxprune.cli.exporting import real_inputs, refuse_to_replace
    from fxprune.cli.spec import maker, resolve
    from fxprune.data import Preprocess
    from fxprune.export.bench import Target
    from fxprune.report.of_runs import PAGE
    from fxprune.runs.run import SUFFIX, refuse_what_is_there
    from fxprune.runs.weights import load_weights
    from fxprune.trainer.job import Job, absolute
    from fxprune.trainer.prune import prune as prune_model
    from fxprune.trainer.unused import unused

    goal = _goal(speedup, macs, budget, max_drop)
    options = dataclasses.replace(OPTIONS, **given)
    target = Target(threads, cold, latency_command)
    looks = Preprocess.parse(mean, std, resize, crop, flip)
    root = data_root.expanduser().resolve()
    job = Job(absolute(data), root, options, looks, transform or "", loss=loss or None)
    spent = None if goal is None else Budget.parse(goal)
    fitted, layers = None, Layers.parse(exclude or [], [], [], [], [])
    with console.phases(["building the network", "loading the data", "measuring"]) as begin:
        begin()
        torch.manual_seed(options.seed)
        source = resolve(spec, shape)
        load_weights(source.model, weights)
        folder = output or Path(f"{source.name}{SUFFIX}")
        refuse_to_replace([_file_beside(folder)])
        refuse_what_is_there(folder)
        begin()
        make = maker(Path.cwd())  # all of these names were given just now
        own = {kind: make(name, kind) for kind, name in job.code.items()}
        images = job.load(
            source.example_inputs[0].shape, made=own, download=download, workers=workers
        )
        if spent is not None and spent.is_unmeasured:
            begin()
            fitted = _fitted(source, spent, layers, target, remeasure, begin.remark)
            spent = fitted.budget
    remarks = lines.remarks_on_data(images, options), unused(job, images, workers or None)
    for line in (lines.data_line(images), *itertools.chain(*remarks)):
        console.note(line)
    if fitted is not None:
        console.note(lines.latency_line(records.of_latency(fitted)))
    real = real_inputs(images, source.example_inputs)  # it may say something: before the training
    directory = _Directory(folder, spec, shape, weights, job, fitted)
    pruned = _watched(
        functools.partial(
            prune_model,
            source.model,
            source.example_inputs,
            data=images,
            budget=spent,
            loss=own.get("loss"),
            max_drop=max_drop,
            exclude=layers.exclude,
            options=options,
        ),
        directory,
    )
    run = directory.run
    assert run is not None
    compared = _exported(run, pruned, source.model, images, real, target)
    record = records.of_pruned(run, pruned, compared, fitted, max_drop)
    print_result(record, tables.show_pruned, as_json)
    for line in lines.remarks(record):
        console.note(line)
    console.note(f"report: {run.path / PAGE}")


@dataclass
class _Directory:
    """The run directory of the network that is trained.

    Attributes:
        folder: where it is.
        spec: the network, as it was given.
        shape: of its input, as it was given.
        weights: the file whose weights it has.
        job: the data and the options of the training.
        fitted: how the widths of a latency budget were found.
        run: what was made last; None before that.
    """

    folder: Path
    spec: str
    shape: str | None
    weights: Path
    job: "Job"
    fitted: "Choice | None"
    run: "Run | None" = None

    def create(self, gated: "GatedModule") -> Path:
        """Make it, in place of the one of a size that lost too much; returns the folder."""
        from fxprune.runs.history import METRICS
        from fxprune.runs.promise import Promise
        from fxprune.runs.run import CHECKPOINT, Run

        if self.run is not None:
            for name in (CHECKPOINT, METRICS):
                (self.folder / name).unlink(missing_ok=True)
        self.run = Run.create(self.folder, gated, self.spec, self.shape, self.weights)
        self.job.write(self.run)
        self.job.record(self.run, self.job.code)
        Promise.keep(self.run, self.fitted)
        return self.folder

    def keep_job(self) -> None:
        """Write the job once more: now no other process makes a run here."""
        assert self.run is not None
        self.job.keep(self.run)


def _fitted(
    source: "Source",
    budget: "Budget",
    layers: "Layers",
    target: "Target",
    remeasure: bool,
    progress: Callable[[str], None],
) -> "Choice":
    """Find the widths whose ONNX file has the latency that a budget gives."""
    from fxprune import api
    from fxprune.budget.layers import limit

    channels = api.analyze(source.model, source.example_inputs)
    asked = limit(layers, budget, budget, channels, api.names_of(source.model)).budget
    return api.fit_latency(
        source.model,
        source.example_inputs,
        asked,
        target,
        remeasure=remeasure,
        progress=progress,
    )


def _watched(prune_model: "Callable[..., Pruned]", directory: _Directory) -> "Pruned":
    """Prune and train behind a progress bar; the run's directory is made on the way."""
    from fxprune.cli import lines
    from fxprune.trainer.prune import Watcher

    with console.bar("the dense network's accuracy") as bar:
        watcher = Watcher(
            began=bar.rename,
            measured=lambda dense: bar.say(*lines.dense_lines(dense)),
            ticked=lambda tick: show_tick(bar, tick),
            tried=lambda trial: bar.say(lines.trial_line(trial)),
            made=directory.create,
            ready=directory.keep_job,
        )
        try:
            return prune_model(watcher=watcher)
        except Ended:
            if directory.run is None:
                raise
            name = shell_word(directory.folder)
            raise ended(
                f"stopped; fxprune train {name} goes on from the last whole epoch, then "
                f"fxprune export {name}"
            ) from None


def _exported(
    run: "Run",
    pruned: "Pruned",
    dense: "nn.Module",
    images: "DataSet",
    real: "tuple[Tensor, ...]",
    target: "Target",
) -> "Comparison":
    """Write the ONNX file beside the run, checked and timed against the dense network's."""
    from fxprune.cli.exporting import keep_export, notes_of
    from fxprune.export.compare import compact_of, compare_onnx

    try:
        with console.phases(
            ["shrinking it", "writing ONNX", "the dense network", "timing"]
        ) as begin:
            begin()
            compared = compare_onnx(
                pruned.gated,
                compact_of(pruned.gated),
                dense,
                _file_beside(run.path),
                real=real,
                notes=notes_of(run, images),
                target=target,
                begin=begin,
            )
        keep_export(run, pruned.gated, compared)
    except Ended:
        raise ended(
            f"stopped; it is trained, and fxprune export {shell_word(run.path)} writes the file"
        ) from None
    return compared


def _file_beside(folder: Path) -> Path:
    """Return the ONNX file that is written beside a run's folder.

    Raises:
        OptionError: the folder is called as that file.
    """
    file = (folder if folder.name.strip(".") else folder.resolve()).with_suffix(".onnx")
    if file == folder:
        raise OptionError(
            f"-o {folder} is the folder of the run",
            why="the ONNX file is written beside it",
            do=f"give -o {folder.with_suffix('')}.fxprune for both",
        )
    return file


def _goal(
    speedup: float | None, macs: float | None, budget: str | None, max_drop: float | None
) -> str | None:
    """Compose the budget's text; None where the accuracy is the goal.

    Raises:
        OptionError: not exactly one goal is given.
    """
    goals = [
        f"{name}={value}"
        for name, value in (("speedup", speedup), ("macs", macs))
        if value is not None
    ]
    goals += [budget] if budget is not None else []
    dropped = [] if max_drop is None else [f"max_drop={max_drop:g}"]
    if len(goals + dropped) != 1:
        raise OptionError(
            "fxprune prune has one goal",
            why=f"given: {', '.join([*goals, *dropped]) or 'none'}",
            do="give one of --speedup 2, --macs .5, --budget params=.3 and --max-drop 1",
        )
    return goals[0] if goals else None
