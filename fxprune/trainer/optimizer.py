"""The optimiser of the built-in trainer, what it may change, and its learning rate over a run."""

import difflib
import inspect
import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from fxprune.errors import OptionError
from fxprune.trainer.options import TrainOptions

OF_TIMM = "timm:"
"""What the name of one of timm's optimisers begins with."""


def learning_rate(options: TrainOptions, share: float) -> float:
    """Return the learning rate after `share` (0 to 1) of the run."""
    if share < options.lr_warmup:
        return options.lr * share / options.lr_warmup
    if options.schedule == "step":
        return options.lr * options.decay ** sum(share >= at for at in options.milestones)
    rest = (share - options.lr_warmup) / max(1 - options.lr_warmup, 1e-12)
    return options.lr * (1 + math.cos(math.pi * rest)) / 2


def make_optimizer(model: nn.Module, options: TrainOptions) -> Optimizer:
    """Make the optimiser over all of the model's parameters that are not frozen.

    Raises:
        OptionError: there is none of this name, it does not take these options, or all is frozen.
    """
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    if not trained:
        raise OptionError(
            "no parameter of the network is left to train",
            why=f"freeze {options.freeze} matches them all" if options.freeze else "",
            do="give fewer or narrower patterns to freeze",
        )
    groups: Any = list(trained.values())
    if not options.decay_norms:
        groups = _by_decay(trained, options.weight_decay)
    try:
        if options.optimizer.startswith(OF_TIMM):
            return _of_timm(groups, options)
        return _of_torch(groups, options)
    except (TypeError, ValueError, RuntimeError) as error:
        raise OptionError(
            f"the optimiser {options.optimizer} does not take this network or these options",
            why=str(error).splitlines()[0],
            do="give another optimizer, such as sgd or adamw",
        ) from error


@contextmanager
def frozen(model: nn.Module, freeze: str) -> Iterator[None]:
    """Freeze the parameters that patterns name, as long as the context lasts.

    Args:
        model: the network.
        freeze: shell patterns, commas between them, of names of modules or parameters.

    Raises:
        OptionError: a pattern matches nothing.
    """
    found: dict[str, nn.Parameter] = {}
    parameters = dict(model.named_parameters())
    for pattern in filter(None, freeze.split(",")):
        matched = {n: p for n, p in parameters.items() if any(_matches(n, pattern))}
        if not matched:
            names = {name for full in parameters for name in _around(full)}
            near = difflib.get_close_matches(pattern, sorted(names), n=3, cutoff=0.4)
            raise OptionError(
                f"freeze {pattern!r} matches no layer",
                why=f"the nearest names are {', '.join(near)}" if near else "",
                do="give names as in named_modules(), * and ? allowed",
            )
        found |= matched
    still = [parameter for parameter in found.values() if parameter.requires_grad]
    try:
        for parameter in still:
            parameter.requires_grad_(False)
        yield
    finally:
        for parameter in still:
            parameter.requires_grad_(True)


def _around(name: str) -> Iterable[str]:
    """Yield a parameter's name, and those of the modules around it."""
    while name:
        yield name
        name = name.rpartition(".")[0]


def _matches(name: str, pattern: str) -> Iterable[bool]:
    return (fnmatchcase(part, pattern) for part in _around(name))


def _by_decay(trained: Mapping[str, nn.Parameter], decay: float) -> list[dict[str, Any]]:
    """Split parameters in two groups: norms and biases, of one dimension at most, do not decay."""
    low = [p for name, p in trained.items() if p.dim() <= 1 or name.endswith(".bias")]
    kept = {id(parameter) for parameter in low}
    high = [parameter for parameter in trained.values() if id(parameter) not in kept]
    both = ({"params": high, "weight_decay": decay}, {"params": low, "weight_decay": 0.0})
    return [group for group in both if group["params"]]


def takes(options: TrainOptions, name: str) -> bool:
    """Tell whether the optimiser has an option of this name; one of timm's is taken to have it."""
    kind = _torchs().get(options.optimizer)
    return kind is None or name in inspect.signature(kind).parameters


def _torchs() -> dict[str, type[Optimizer]]:
    """Return the optimisers of torch.optim, by their names in small letters."""
    return {
        name.lower(): value
        for name, value in vars(torch.optim).items()
        if isinstance(value, type) and issubclass(value, Optimizer) and value is not Optimizer
    }


def _of_torch(groups: Any, options: TrainOptions) -> Optimizer:
    known, name = _torchs(), options.optimizer
    if name not in known:
        do = f"give a name of torch.optim, or {OF_TIMM}NAME for one of timm's"
        raise _unknown("torch.optim", name, known, do)
    if name in ("lbfgs", "sparseadam"):
        raise OptionError(
            f"the built-in trainer cannot step {options.optimizer}",
            why="it evaluates the loss several times a step"
            if name == "lbfgs"
            else "it takes sparse gradients",
            do="give another optimizer, or train in a loop of your own",
        )
    wanted: dict[str, Any] = {
        "lr": options.lr,
        "momentum": options.momentum,
        "weight_decay": options.weight_decay,
    }
    return known[name](groups, **{k: v for k, v in wanted.items() if takes(options, k)})


def _of_timm(groups: Any, options: TrainOptions) -> Optimizer:
    try:
        from timm import optim
    except ImportError as error:
        raise OptionError(
            f"{options.optimizer} needs timm", do="pip install 'fxprune[timm]'"
        ) from error
    name = options.optimizer.removeprefix(OF_TIMM)
    timm_optim: Any = optim  # it says of no name that it exports it
    known = timm_optim.list_optimizers()
    if name not in known:
        do = f"give a name that timm.optim.list_optimizers() has, such as {OF_TIMM}lamb"
        raise _unknown("timm.optim", name, known, do)
    made: Optimizer = timm_optim.create_optimizer_v2(
        groups,
        opt=name,
        lr=options.lr,
        weight_decay=options.weight_decay,
        momentum=options.momentum,
    )
    return made


def _unknown(library: str, name: str, known: Iterable[str], do: str) -> OptionError:
    if not name:
        return OptionError(f"the name of an optimiser of {library} is missing", do=do)
    near = difflib.get_close_matches(name, sorted(known), n=3, cutoff=0.4)
    why = f"the nearest names are {', '.join(near)}" if near else ""
    return OptionError(f"{library} has no {name}", why=why, do=do)
