"""What a run starts from: weights that fit exactly, or a message that says which do not."""

import contextlib
import random
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import fxprune
from fxprune.errors import RunError
from fxprune.runs.run import Run
from fxprune.runs.weights import load_weights


def net(width: int = 4) -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, width, 3), nn.BatchNorm2d(width), nn.Conv2d(width, 2, 3))


def write(path: Path, state: object) -> Path:
    if path.suffix == ".safetensors":
        assert isinstance(state, dict)
        save_file(state, path)
    else:
        torch.save(state, path)  # noqa: TID251 - a file of somebody else
    return path


def wrapped(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {f"module.{name}": value for name, value in state.items()}


FORMS = {
    "dense.safetensors": lambda state: state,
    "dense.pt": lambda state: state,
    "dense.pth": lambda state: {"epoch": 3, "state_dict": state, "note": "made by hand"},
    "model.pt": lambda state: {"model": state},
    "wrapped.pt": lambda state: {"model_state_dict": wrapped(state)},
    "wrapped.safetensors": wrapped,
}


@pytest.mark.parametrize("name", FORMS)
def test_every_tensor_is_taken_over(name: str, tmp_path: Path) -> None:
    trained, fresh = net(), net()
    with torch.no_grad():
        trained(torch.randn(8, 1, 9, 9))  # running statistics of its own
    state = dict(trained.state_dict())
    load_weights(fresh, write(tmp_path / name, FORMS[name](state)))
    assert all(torch.equal(value, state[key]) for key, value in fresh.state_dict().items())


def test_norms_of_old_files_count_no_batches(tmp_path: Path) -> None:
    state = {k: v for k, v in net().state_dict().items() if not k.endswith("num_batches_tracked")}
    load_weights(net(), write(tmp_path / "old.safetensors", state))


def test_which_keys_do_not_fit(tmp_path: Path) -> None:
    state = dict(net().state_dict())
    state["head.weight"] = state.pop("2.weight")
    del state["0.bias"]
    path = write(tmp_path / "dense.safetensors", state)
    with pytest.raises(RunError) as caught:
        load_weights(net(), path)
    assert str(caught.value) == (
        f"the weights in {path} do not fit the network\n"
        "  why  2 missing: 0.bias, 2.weight\n"
        "       1 unexpected: head.weight\n"
        "  do   build the network that the weights are of; options of its factory go into the "
        "SPEC: model.py:Net{width=64}"
    )
    assert caught.value.exit_code == 2


def test_which_shapes_do_not_fit(tmp_path: Path) -> None:
    path = write(tmp_path / "dense.pt", net(8).state_dict())
    with pytest.raises(RunError) as caught:
        load_weights(net(), path)
    assert (
        "why  7 of another shape: 0.weight is 8 x 1 x 3 x 3, the network's is 4 x 1 x 3 x 3, "
        "0.bias is 8, the network's is 4, 1.weight is 8, the network's is 4 and 4 more\n"
    ) in str(caught.value)


def test_files_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="there is no file"):
        load_weights(net(), tmp_path / "dense.pt")
    with pytest.raises(RunError, match=r"ends in \.safetensors, \.pt, \.pth"):
        load_weights(net(), tmp_path / "dense.h5")
    for name in ("dense.safetensors", "dense.pt"):
        path = write(tmp_path / name, dict(net().state_dict()))
        path.write_bytes(path.read_bytes()[:-200])
        with pytest.raises(RunError, match="it is damaged"):
            load_weights(net(), path)
        path.write_bytes(b"")
        with pytest.raises(RunError, match="it is damaged"):
            load_weights(net(), path)
        path.write_bytes(b"no weights \0 at all")
        with pytest.raises(RunError, match="it is damaged"):
            load_weights(net(), path)
        path.write_text("no weights at all")
        with pytest.raises(RunError, match=r"there are no weights in .*\n  why  it is a text file"):
            load_weights(net(), path)
    with pytest.raises(RunError, match="there are no weights in"):
        load_weights(net(), write(tmp_path / "list.pt", [torch.ones(2)]))
    with pytest.raises(RunError, match="there are no weights in"):
        load_weights(net(), write(tmp_path / "more.pt", {"epoch": 3}))


def test_checkpoints_of_runs(tmp_path: Path) -> None:
    gated = fxprune.instrument(net(), (torch.zeros(2, 1, 9, 9),))
    run = Run.create(tmp_path / "a run", gated, "model.py:net", "1x9x9")
    with pytest.raises(RunError, match="is the checkpoint of a run"):
        load_weights(net(), run.checkpoint)


def test_code_in_a_file_is_never_run(tmp_path: Path) -> None:
    path = write(tmp_path / "whole.pt", net())
    with pytest.raises(RunError, match="code is never run from it"):
        load_weights(net(), path)


@pytest.mark.parametrize("name", ["a.pt", "old.pt", "a.safetensors"])
def test_any_damage_is_refused_or_harmless(name: str, tmp_path: Path) -> None:
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4))
    path = tmp_path / name
    if name == "old.pt":
        torch.save(model.state_dict(), path, _use_new_zipfile_serialization=False)  # noqa: TID251 - a file of somebody else
    else:
        write(path, model.state_dict())
    whole, draw = path.read_bytes(), random.Random(18)
    for _ in range(150):
        damaged = bytearray(whole[: draw.choice([len(whole), draw.randrange(len(whole))])])
        for _ in range(min(draw.choice([0, 1, 20]), len(damaged))):
            damaged[draw.randrange(len(damaged))] = draw.randrange(256)
        path.write_bytes(damaged)
        with contextlib.suppress(RunError):
            load_weights(model, path)
        assert all(bool(tensor.isfinite().all()) for tensor in model.state_dict().values())


def test_negative_variances(tmp_path: Path) -> None:
    state = nn.BatchNorm2d(4).state_dict()
    state["running_var"][2] = -1.0
    with pytest.raises(RunError, match=r"running_var in .* holds numbers below 0"):
        load_weights(nn.BatchNorm2d(4), write(tmp_path / "a.pt", state))


@pytest.mark.parametrize(
    ("spoil", "expected"),
    [
        (lambda w: w * float("nan"), "0.weight in .* holds NaN"),
        (lambda w: w / 0.0, "0.weight in .* holds (NaN|infinity)"),
        (
            lambda w: w.to(torch.int8),
            r"0.weight is int8, the network's is float32\n  do   save model.state_dict\(\) of",
        ),
        (
            lambda w: w > 0,
            r"0.weight is bool, the network's is float32\n  do   save model.state_dict\(\) of",
        ),
        (
            lambda w: w.to(torch.complex64),
            r"0.weight is complex64, the network's is float32\n  do   save model.state_dict\(\) of",
        ),
        (
            lambda w: w.flatten(1).to_sparse(),
            r"0.weight in .* is sparse\n  why  its layout is sparse",
        ),
        (lambda w: w.to("meta"), "0.weight in .* is a meta tensor"),
        (
            lambda w: torch.quantize_per_tensor(w, 0.1, 0, torch.qint8),
            "0.weight in .* is quantised",
        ),
    ],
)
@pytest.mark.filterwarnings(
    "ignore:.*quantiz", "ignore:TypedStorage is deprecated", "ignore:Validating sparse tensor"
)
def test_tensors_that_are_no_weights(spoil: object, expected: str, tmp_path: Path) -> None:
    state = dict(net().state_dict())
    state["0.weight"] = spoil(state["0.weight"])  # type: ignore[operator]
    with pytest.raises(RunError, match=expected):
        load_weights(net(), write(tmp_path / "dense.pt", state))


@pytest.mark.parametrize("name", ["0.weight", "surprise"])
def test_a_few_numbers_that_claim_to_be_many(name: str, tmp_path: Path) -> None:
    state = dict(net().state_dict()) | {name: torch.zeros(1).expand(2**50)}
    with pytest.raises(RunError, match=r"of another shape: 0|unexpected: surprise"):
        load_weights(net(), write(tmp_path / "dense.pt", state))


def test_masks_are_taken_over(tmp_path: Path) -> None:
    """What the network itself holds as infinity is no sign of a training that diverged."""
    masked = net()
    masked.register_buffer("mask", torch.full((3, 3), -torch.inf).triu(1))
    state = {name: value.clone() for name, value in masked.state_dict().items()}
    load_weights(masked, write(tmp_path / "dense.pt", state))


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions_are_taken_over(kind: torch.dtype, tmp_path: Path) -> None:
    state = {key: value.to(kind) for key, value in net().state_dict().items()}
    load_weights(net(), write(tmp_path / "dense.pt", state))
