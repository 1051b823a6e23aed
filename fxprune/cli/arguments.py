"""What several commands share: their arguments, and how a result is printed."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from fxprune.cli import console
from fxprune.errors import without_controls

if TYPE_CHECKING:
    from fxprune.runs.run import Run
    from fxprune.trainer.loop import Tick


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


Mean = Annotated[
    str | None,
    typer.Option(
        metavar="0.5,0.5,0.5",
        help="Mean of each channel that the network was trained with, of pixels in 0 to 1; one "
        "number for all.",
        show_default="ImageNet's for folder:, else that of the training split",
    ),
]
Std = Annotated[
    str | None,
    typer.Option(metavar="0.5,0.5,0.5", help="Standard deviation, likewise.", show_default=False),
]
Resize = Annotated[
    str | None,
    typer.Option(
        metavar="256",
        help="Images of folder: are resized to this before the central crop: 256 is the shorter "
        "side, 256x256 both, whatever their shape.",
        show_default="8/7 of the input, both sides",
    ),
]
Crop = Annotated[
    Literal["resized", "shift", "center"] | None,
    typer.Option(
        help="What training sees of an image of folder:, a random resized part, a random crop of "
        "the resized image, or the central crop.",
        show_default="resized",
    ),
]
Flip = Annotated[
    bool | None,
    typer.Option(
        "--flip/--no-flip", help="Training mirrors images at random.", show_default="as the data"
    ),
]
TransformName = Annotated[
    str | None,
    typer.Option(
        "--transform",
        metavar="pkg:factory",
        help="Your own transform of folder: images instead, pkg.mod:factory or file.py:factory; "
        "it returns a function from an image of Pillow to a float tensor \\[C, H, W], or two of "
        "them, for evaluation and for training. The run keeps the name; one that somebody else "
        "wrote is imported with --trust alone.",
        show_default=False,
    ),
]


Exclude = Annotated[
    list[str] | None,
    typer.Option(
        metavar="PATTERN",
        help="Layers that keep all channels that they make, by their names, * and ? allowed; "
        "may be repeated: --exclude 'stem.*' --exclude head.",
        show_default=False,
    ),
]
Loss = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        help="Your own loss, losses.py:dice or pkg.mod:Dice, called with what the network "
        "returns and the target; by default the cross-entropy.",
        show_default=False,
    ),
]
Threads = Annotated[
    int | None,
    typer.Option(
        help="Threads of ONNX Runtime in which the latency is measured.",
        show_default="as many as torch uses",
    ),
]


Cold = Annotated[
    bool,
    typer.Option(
        "--cold",
        help="The latency budget binds a call right after another network's, as on a server with "
        "several networks; without it a call in a loop.",
    ),
]


LatencyCommand = Annotated[
    str,
    typer.Option(
        metavar="COMMAND",
        help="Measures the latency elsewhere: 'ssh board run {model}' is run with the ONNX file's "
        "name for {model}, and prints milliseconds as its last word.",
        show_default=False,
    ),
]


Remeasure = Annotated[
    bool, typer.Option("--remeasure", help="Forget what the cache holds of the latency.")
]


RunFolder = Annotated[
    Path | None,
    typer.Argument(
        metavar="RUN",
        help="The run directory that [bold]fxprune instrument[/bold] wrote; by default the one "
        "in the current directory, the newest if there are several.",
        show_default=False,
    ),
]


Trust = Annotated[
    bool,
    typer.Option(
        "--trust",
        help="Let the run import and call the code that it names, from now on. Runs that were "
        "made here need no such word; in those of others read that code first.",
    ),
]


def run_of(folder: Path | None, *, trust: bool = False) -> "Run":
    """Open the run that is meant, with a note if there was a choice.

    Raises:
        RunError: there is none, or the user neither named its SPEC nor trusts it.
    """
    from fxprune.runs.run import Run

    if folder is not None:
        run, remark = Run.open(folder, trust=trust), ""
    else:
        run, remark = Run.find(Path(), trust=trust)
    if remark:
        console.note(remark)
    run.require("spec", run.spec)
    return run


def print_result(
    record: dict[str, Any], show: Callable[[dict[str, Any]], Any], as_json: bool
) -> None:
    """Print a record as JSON, or as the table that `show` makes of it."""
    with console.result():
        if as_json:
            typer.echo(json.dumps(record, indent=2))
        else:
            console.stdout().print(show(_shown(record)))


def _shown(value: Any) -> Any:
    """Write out the control characters in the texts of a record, which may be a stranger's."""
    if isinstance(value, str):
        return without_controls(value)
    if isinstance(value, dict):
        return {_shown(key): _shown(part) for key, part in value.items()}
    return [_shown(part) for part in value] if isinstance(value, list | tuple) else value


def show_tick(bar: console.Bar, tick: "Tick") -> None:
    """Move a progress bar, and print a line at the end of an epoch."""
    from fxprune.cli import lines

    bar.moved(tick.steps_done, tick.steps)
    if tick.metrics is not None:
        bar.say(lines.epoch_line(tick.metrics, tick.fall_ends))
        bar.seen.append(tick.metrics)
        bar.below(lines.live_parts(bar.seen))
