"""The state of a training as named tensors, and back.

The names are those on disk and in the bytes of `state_dict()`'s extra state: `dense/NAME`,
`policy/NAME`, `state/KEY/NAME` for what an optimiser keeps of resting channels, `trained/…` and
`settled/…` for the selections, `steps`, `peak_rate`, `share`, and `settings`, a text as its bytes.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass

import safetensors.torch
import torch
from torch import Tensor

from fxprune.bank.exchange import Selection
from fxprune.errors import RunError

Tensors = Mapping[str, Tensor]
NEEDED = {"steps", "peak_rate", "trained/channels", "trained/widths"}


@dataclass(frozen=True, eq=False)
class TrainingState:
    """All that is needed to go on, beside the optimiser's own state dict.

    Attributes:
        dense: the dense network's parameters and buffers by name.
        policy: the policy's tensors.
        states: by parameter and key, the banks of the optimiser's state.
        trained: the selection of training mode, in whose order the optimiser's state lies.
        settled: the selection that is fixed for good, if there is one.
        steps: how many optimiser steps were observed.
        peak_rate: the highest learning rate since the last cut.
        share: of the dense network, what executed in training; None if that is not known.
        settings: policy and budget, by which the policy's tensors mean something.
    """

    dense: Tensors
    policy: Tensors
    states: Mapping[str, Tensors]
    trained: Selection
    settled: Selection | None
    steps: int
    peak_rate: float
    share: float | None
    settings: str

    def tensors(self) -> dict[str, Tensor]:
        """Return one dict of all; copies."""
        named = {f"dense/{name}": tensor for name, tensor in self.dense.items()}
        named |= {f"policy/{name}": tensor for name, tensor in self.policy.items()}
        for name, states in sorted(self.states.items()):  # else in the order of the exchanges
            named |= {f"state/{key}/{name}": tensor for key, tensor in sorted(states.items())}
        for kind, chosen in (("trained", self.trained), ("settled", self.settled)):
            if chosen is not None:
                named[f"{kind}/channels"] = chosen.channels
                named[f"{kind}/widths"] = torch.tensor(chosen.widths, device="cpu")
        named["steps"] = torch.tensor(self.steps, device="cpu")
        named["peak_rate"] = torch.tensor(self.peak_rate, dtype=torch.float64, device="cpu")
        named["settings"] = torch.tensor([*self.settings.encode()], dtype=torch.uint8, device="cpu")
        if self.share is not None:
            named["share"] = torch.tensor(self.share, dtype=torch.float64, device="cpu")
        return {name: tensor.detach().clone() for name, tensor in named.items()}

    @classmethod
    def read(
        cls, named: Tensors, dense: Tensors, device: torch.device, settings: str
    ) -> "TrainingState":
        """Read what `tensors` wrote.

        Args:
            named: what it returned.
            dense: the tensors of the network that is to take it over, by name.
            device: where selections and the policy's tensors go, as copies; the others stay.
            settings: those of that network.

        Raises:
            RunError: it belongs to another network or other settings, or is incomplete.
        """
        kinds: dict[str, dict[str, Tensor]] = {"dense": {}, "policy": {}, "state": {}}
        for key, tensor in named.items():
            kind, _, rest = key.partition("/")
            if kind in kinds:
                kinds[kind][rest] = tensor
        _check(named, kinds["dense"], dense)
        was = bytes(named["settings"].tolist()).decode() if "settings" in named else settings
        if was != settings:
            raise RunError(
                "the saved state belongs to another policy or budget",
                why=f"it was trained with {was}, and this network has {settings}",
                do="instrument with the same ones; or take its dense_state_dict() into the model, "
                "and instrument that",
            )
        states: dict[str, dict[str, Tensor]] = {}
        for rest, tensor in kinds["state"].items():
            key, _, name = rest.partition("/")
            states.setdefault(name, {})[key] = tensor
        trained = _selection_in(named, "trained", device)
        assert trained is not None
        return cls(
            dense=kinds["dense"],
            policy={name: t.to(device, copy=True) for name, t in kinds["policy"].items()},
            states=states,
            trained=trained,
            settled=_selection_in(named, "settled", device),
            steps=int(named["steps"]),
            peak_rate=float(named["peak_rate"]),
            share=float(named["share"]) if "share" in named else None,
            settings=settings,
        )


_DIGEST = hashlib.sha256().digest_size


def to_bytes(state: Tensors) -> Tensor:
    """Pack named tensors into a single one, which savers take that know tensors only.

    Args:
        state: tensors by name, on any devices.

    Returns:
        uint8 [bytes], on the CPU: a SHA-256 digest, and a safetensors file.
    """
    data = safetensors.torch.save({name: t.cpu().contiguous() for name, t in state.items()})
    return torch.frombuffer(bytearray(hashlib.sha256(data).digest() + data), dtype=torch.uint8)


def from_bytes(packed: Tensor) -> dict[str, Tensor]:
    """Unpack what `to_bytes` packed.

    Args:
        packed: what it returned, on any device; as whole numbers of another dtype it will do.

    Raises:
        RunError: the bytes are others by now, as those of an average of state dicts.
    """
    content = packed.cpu().to(torch.uint8).numpy().tobytes()
    digest, data = content[:_DIGEST], content[_DIGEST:]
    if hashlib.sha256(data).digest() != digest:
        raise RunError(
            "the `_extra_state` of a gated network was changed since it was saved",
            why="it holds the resting channels and the policy as bytes, which cannot be averaged, "
            "scaled or cast",
            do="average the network while it trains (fxprune.follow), or average "
            "dense_state_dict() of several networks",
        )
    return safetensors.torch.load(data)


def _selection_in(named: Tensors, kind: str, device: torch.device) -> Selection | None:
    if f"{kind}/channels" not in named:
        return None
    channels = named[f"{kind}/channels"].to(device, copy=True)
    return Selection(channels, tuple(named[f"{kind}/widths"].tolist()))


def _check(named: Tensors, saved: Tensors, dense: Tensors) -> None:
    wrong = sorted(
        name
        for name in {*saved, *dense}
        if name not in saved or name not in dense or saved[name].shape != dense[name].shape
    )
    if wrong or not named.keys() >= NEEDED:
        raise RunError(
            "the saved state belongs to another network",
            why=f"these tensors differ: {', '.join(wrong[:5])}" if wrong else "it is incomplete",
            do="load it into the model it was saved from",
        )
