"""The result of a training: the network of its last step, an average of weights, or the best.

With `ema` the average is what each epoch evaluates and what is exported. With `best` it is the
network (or the average) of the epoch that scored best among those that ended with the final
channels. A checkpoint holds both beside the network that trains, which goes on as it is.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from fxprune.gated.followers import follow
from fxprune.gated.module import GatedModule
from fxprune.runs.contents import check_gated, check_plain
from fxprune.runs.gated_file import AVERAGE, BEST, under
from fxprune.runs.history import EpochMetrics, best_of
from fxprune.trainer.options import TrainOptions

State = Mapping[str, Tensor]
Tensors = tuple[Tensor, ...] | list[Tensor]


class Outcome:
    """The networks of a training that are evaluated and exported.

    Args:
        model: the network that trains, plain or gated, on its device.
        options: how.

    Attributes:
        best: the state of the best epoch so far, by name; None before the first that counts, and
            where `best` is off.
    """

    def __init__(self, model: nn.Module, options: TrainOptions) -> None:
        self.model, self.options = model, options
        self.best: dict[str, Tensor] | None = None
        self._average: AveragedModel | None = None
        if options.ema:
            self._average = AveragedModel(model, multi_avg_fn=self._mean)
            averaged = self._average.module
            if isinstance(averaged, GatedModule) and isinstance(model, GatedModule):
                follow(averaged, model)

    @property
    def network(self) -> nn.Module:
        """The network that an epoch evaluates."""
        return self.networks[-1]

    @property
    def networks(self) -> list[nn.Module]:
        """The network that trains, and its average if there is one."""
        return [self.model] if self._average is None else [self.model, self._average.module]

    @property
    def averaged(self) -> int | None:
        """How many steps the average has seen; None where there is none."""
        return None if self._average is None else int(self._average.n_averaged)

    def step(self) -> None:
        """Add the weights after an optimiser's step to the average."""
        if self._average is not None:
            self._average.update_parameters(self.model)

    def _mean(self, means: Tensors, new: Tensors, count: Tensor | int) -> None:
        """Average the tensors of a step, with a decay that rises to `ema` in the first steps."""
        done = self.averaged or 0
        decay = min(self.options.ema, (1 + done) / (10 + done))
        make: Any = get_ema_multi_avg_fn  # which has no types
        make(decay)(means, new, count)

    def epoch(self, history: Sequence[EpochMetrics]) -> None:
        """Keep the state of the epoch that has just ended, if it is the best so far."""
        if self.options.keeps_best and best_of(history) is history[-1]:
            self.best = _copied(_exported(self.network))

    def hand_over(self) -> None:
        """Load the average or the best network into the network that trained."""
        state = self.best
        if state is None and self._average is not None:
            state = _copied(_exported(self._average.module))
        if state is None:
            return
        if isinstance(self.model, GatedModule):
            self.model.restore(state)
        else:
            self.model.load_state_dict(state)

    def tensors(self) -> dict[str, Tensor]:
        """Collect what a checkpoint keeps, by its names there."""
        kept = {f"{BEST}{name}": tensor for name, tensor in (self.best or {}).items()}
        if self._average is not None:
            own = _dense(self._average.module)
            kept |= {f"{AVERAGE}{name}": tensor.clone() for name, tensor in own.items()}
        return kept

    @torch.no_grad()
    def restore(self, tensors: State, averaged: int | None, path: Path) -> None:
        """Load what a checkpoint keeps.

        Args:
            tensors: of the checkpoint, by name; the network itself is restored already.
            averaged: as the attribute was.
            path: for messages.

        Raises:
            RunError: a tensor is missing, or of another network.
        """
        self.best = self._checked(under(BEST, tensors), path) or None
        if self._average is None:
            return
        self._average.n_averaged.fill_(averaged or 0)
        average, module = under(AVERAGE, tensors), self._average.module
        if isinstance(module, GatedModule):
            average = {f"dense/{name}": tensor for name, tensor in average.items()}
            module.restore({**module.training_state(), **self._checked(average, path)})
        else:
            module.load_state_dict(self._checked(average, path))

    def _checked(self, state: dict[str, Tensor], path: Path) -> dict[str, Tensor]:
        if isinstance(self.model, GatedModule):
            if state:
                check_gated(path, {**self.model.training_state(), **state}, self.model)
        else:
            check_plain(path, state, self.model.state_dict())
        return state


def stopped_early(options: TrainOptions, history: Sequence[EpochMetrics]) -> bool:
    """Tell whether the last `early_stop` epochs, with the final channels, were not the best."""
    best = best_of(history)
    if options.early_stop is None or best is None:
        return False
    since = [metrics for metrics in history[best.epoch :] if metrics.settled is not False]
    return len(since) >= options.early_stop


def _dense(network: nn.Module) -> State:
    if isinstance(network, GatedModule):
        return network.dense_tensors()
    found: State = network.state_dict()
    return found


def _exported(network: nn.Module) -> State:
    """Collect the state of a network as it is, without what an optimiser keeps."""
    if not isinstance(network, GatedModule):
        found: State = network.state_dict()
        return found
    state = network.training_state()
    return {name: tensor for name, tensor in state.items() if not name.startswith("state/")}


def _copied(state: State) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in state.items()}
