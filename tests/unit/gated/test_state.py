"""TrainingStates: named tensors and back, copies throughout, and what is refused."""

import dataclasses

import pytest
import torch

from fxprune.bank.exchange import Selection
from fxprune.errors import RunError
from fxprune.gated.state import NEEDED, TrainingState

CPU = torch.device("cpu")
DENSE = {"conv.weight": torch.randn(4, 3, 2, 2), "bn.running_mean": torch.randn(4)}
TRAINS = TrainingState(
    dense=DENSE,
    policy={"mean": torch.randn(4), "rounds": torch.tensor(7)},
    states={"conv.weight": {"exp_avg": torch.randn(4, 3, 2, 2)}},
    trained=Selection(torch.tensor([2, 0]), (2,)),
    settled=None,
    steps=3,
    peak_rate=0.1,
    share=0.75,
    settings="cucb keep=0.5 round_to=None",
)
SETTLED = dataclasses.replace(TRAINS, settled=Selection(torch.tensor([3]), (1,)), share=None)


@pytest.mark.parametrize("state", [TRAINS, SETTLED], ids=["trains", "settled"])
def test_what_is_written_is_read(state: TrainingState) -> None:
    named = state.tensors()
    found = TrainingState.read(named, DENSE, CPU, TRAINS.settings)
    assert (found.steps, found.peak_rate, found.share) == (3, 0.1, state.share)
    assert found.trained.widths == (2,)
    assert (found.settled is None) == (state.settled is None)
    assert found.settled is None or found.settled.widths == (1,)
    again = found.tensors()
    assert list(again) == list(named)
    assert all(torch.equal(again[name], named[name]) for name in named)


def test_the_tensors_are_copies() -> None:
    """A step goes on in place; a state dict that was kept must not go along."""
    before = {name: tensor.clone() for name, tensor in SETTLED.tensors().items()}
    for tensor in SETTLED.tensors().values():
        tensor.zero_()
    read = TrainingState.read(named := SETTLED.tensors(), DENSE, CPU, TRAINS.settings)
    for tensor in (*read.policy.values(), read.trained.channels):
        tensor.zero_()
    for found in (named, SETTLED.tensors()):
        assert [name for name in before if not torch.equal(found[name], before[name])] == []


@pytest.mark.parametrize("name", sorted(NEEDED))
def test_an_incomplete_state_is_refused(name: str) -> None:
    named = TRAINS.tensors()
    del named[name]
    with pytest.raises(RunError, match="another network\n  why  it is incomplete\n  do   load it"):
        TrainingState.read(named, DENSE, CPU, TRAINS.settings)


@pytest.mark.parametrize(
    ("dense", "odd"),
    [
        ({**DENSE, "bn.running_mean": torch.zeros(5)}, "bn.running_mean"),
        ({"conv.weight": DENSE["conv.weight"]}, "bn.running_mean"),
        ({**DENSE, "fc.weight": torch.zeros(2, 4)}, "fc.weight"),
    ],
    ids=["another shape", "one less", "one more"],
)
def test_the_state_of_another_network_is_refused(dense: dict[str, torch.Tensor], odd: str) -> None:
    with pytest.raises(RunError, match=f"these tensors differ: {odd}\n"):
        TrainingState.read(TRAINS.tensors(), dense, CPU, TRAINS.settings)


def test_the_state_of_another_policy_is_refused() -> None:
    with pytest.raises(
        RunError, match=r"trained with cucb keep=0\.5 .*, and this network has utility"
    ):
        TrainingState.read(TRAINS.tensors(), DENSE, CPU, "utility keep=0.5 round_to=None")
    named = TRAINS.tensors()
    del named["settings"]  # as older versions wrote it
    assert TrainingState.read(named, DENSE, CPU, "utility").settings == "utility"
