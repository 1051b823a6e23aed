"""Saving: the whole state of a training, except for the optimiser's, also as `state_dict()`."""

from collections.abc import Mapping
from typing import Any, Self

import torch
from torch import Tensor, fx

from fxprune import registry
from fxprune.bank import exchange
from fxprune.channels.resize import resize
from fxprune.errors import GateError, require_kind
from fxprune.gated import loading
from fxprune.gated.averages import Averaging
from fxprune.gated.executing import lasting, whole
from fxprune.gated.state import TrainingState, from_bytes, to_bytes


class Saving(Averaging):
    """A network whose `state_dict()` is complete, the same in any mode, and loads at any widths."""

    @whole
    def training_state(self) -> dict[str, Tensor]:
        """Return copies of all state that training needs, beside the optimiser's state dict.

        The selection in it is that of training mode, in whose order the optimiser's state lies.
        """
        self._catch_up()
        return TrainingState(
            dense=self.dense_tensors(),
            policy=self._selector.state,
            states=self.bank.states,
            trained=self._selection,
            settled=self._settled,
            steps=self._selector.steps,
            peak_rate=self._selector.peak_rate,
            share=self._selector.share,
            settings=self._settings_text(),
        ).tensors()

    @whole
    @lasting
    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Restore what `training_state` returned; the mode stays as it is.

        Raises:
            RunError: it belongs to another network; nothing was changed.
            GateError: its selection does not fit the channel groups; nothing was changed.
            OptionError: it is no mapping.
        """
        require_kind(state, Mapping, "the state", "give what training_state() returned")
        dense, selector = self.dense_tensors(), self._selector
        saved = TrainingState.read(state, dense, self._device(), self._settings_text())
        selector.check(saved.trained)
        if saved.settled is not None:
            selector.check(saved.settled)
        moments = self._residents.optimizers.states(self._selection.widths, ordered=True)
        follow = exchange.taken(moments, self.bank, self._selection, saved.trained)
        for name, tensor in dense.items():
            tensor.copy_(saved.dense[name])
        self.bank.forget_states()  # those of another time that the saved one did not have yet
        for name, states in saved.states.items():
            for key, tensor in states.items():
                self.bank.state(name, key, tensor).copy_(tensor)
        self._residents.load(saved.trained)
        resize(self, self.channels, saved.trained.widths)
        self.recompile()
        for install, tensor in follow:
            install(tensor)
        self._residents.optimizers.correct_entries(None)
        self._selection, self._since = saved.trained, 0
        self._settled = saved.settled
        selector.state |= saved.policy
        selector.steps, selector.peak_rate = saved.steps, saved.peak_rate
        selector.share = self.settings.budget.value if saved.share is None else saved.share
        self._restored()
        self._evaluation.stale = True
        self._apply_widths()
        if not self.training:
            self._prepare()

    def get_extra_state(self) -> Tensor:
        """Complete `state_dict()`: the bank, the policy's state and the selection, as bytes.

        Returns:
            uint8 [bytes]; see `fxprune.gated.state.to_bytes`.
        """
        return to_bytes(self.training_state())

    def set_extra_state(self, state: Tensor | Mapping[str, Tensor]) -> None:
        """Ignore it: what `get_extra_state` returned was loaded before the parameters."""

    @whole
    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """Return the whole state; see `get_extra_state` for what is no parameter or buffer."""
        return super().state_dict(*args, **kwargs)

    def _save_to_state_dict(self, *args: Any, **kwargs: Any) -> None:
        self._finish()
        super()._save_to_state_dict(*args, **kwargs)

    def _load_from_state_dict(
        self, state_dict: Mapping[str, Any], prefix: str, *args: Any, **kwargs: Any
    ) -> None:
        """Load the selection first, so that the parameters have the widths of the saved ones."""
        state = state_dict.get(f"{prefix}_extra_state")
        if isinstance(state, Tensor):
            state = from_bytes(state)
        if isinstance(state, Mapping):
            self.restore(state)
        else:  # also where torch.distributed.checkpoint put an object for what it has not found
            state = None
        here = prefix.rstrip(".")
        if state is not None:
            named = dict(self.named_parameters(here, remove_duplicate=False))
            loading.warn_of_missing(state_dict, named)
        if not self.settled:
            gated = {id(tensor) for tensor in self._residents.tensors().values()}
            own = {name: p for name, p in self.named_parameters(here) if id(p) in gated}
            if state is None:
                loading.refuse_without_selection(state_dict, own)
            else:
                loading.warn_of_others(state_dict, own)
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)

    def __copy__(self) -> Self:
        raise GateError(
            "a gated network cannot be copied without its tensors",
            why="the copy and the network would exchange the channels of the same parameters",
            do="call copy.deepcopy(gated)",
        )

    def __reduce__(self) -> Any:
        raise GateError(
            "a gated network cannot be pickled",
            why="its bank, policy and optimisers belong to one training in one process",
            do="keep gated.state_dict() (torch.save, safetensors), fxprune.save(gated, path), or "
            "fxprune.shrink(gated), which is an ordinary module",
        )

    @property
    def graph(self) -> fx.Graph:
        """The graph of the mode.

        Raises:
            GateError: `torch.export` reads it, to run it on the parameters and past the forward,
                and an evaluation executes other channels than they hold.
        """
        if self._made and not self.training and torch.compiler.is_exporting():
            held, shown = self._selection, self._shown()
            if held.widths != shown.widths or not torch.equal(held.channels, shown.channels):
                raise GateError(
                    "a gated network that still chooses channels cannot be exported",
                    why="the file would hold the channels that train now, not those of eval()",
                    do="export fxprune.shrink(gated), or with fxprune.export_onnx; or call "
                    "gated.settle() before",
                )
        return super().graph

    @graph.setter
    def graph(self, graph: fx.Graph) -> None:
        kind: Any = fx.GraphModule
        kind.graph.fset(self, graph)

    def _settings_text(self) -> str:
        """Format policy and budget as a training state has them."""
        budget = self.settings.budget
        return f"{registry.to_text(self.settings.policy)} {budget} round_to={budget.round_to}"
