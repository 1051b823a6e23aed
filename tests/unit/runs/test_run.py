import json
import os

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import fxprune
from fxprune.errors import FxpruneWarning, RunError
from fxprune.formats import write_tensors
from fxprune.runs.gated_file import gated_state, save
from fxprune.runs.history import METRICS
from fxprune.runs.plan import Plan, fingerprint
from fxprune.runs.run import CHECKPOINT, PLAN, Run


class Net(nn.Module):
    def __init__(self, width=12, kernel=3):
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, kernel, padding=1)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, 8, 3, padding=1)
        self.fc = nn.Linear(8, 5)

    def forward(self, x):
        x = torch.relu(self.bn1(self.conv1(x)))
        return self.fc(torch.relu(self.conv2(x)).mean((2, 3)))


EXAMPLE = (torch.zeros(2, 3, 8, 8),)


def make(model=None, **settings):
    return fxprune.instrument(model or Net(), EXAMPLE, **settings)


def trained(optimizer=None, steps=5, **settings):
    gated = make(**settings)
    optimizer = optimizer or torch.optim.SGD(gated.parameters(), lr=0.1, momentum=0.9)
    fxprune.attach(gated, optimizer)
    for _ in range(steps):
        optimizer.zero_grad()
        gated(torch.randn(4, 3, 8, 8)).square().mean().backward()
        optimizer.step()
    return gated


def same_bits(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"policy": "cucb{c=0.25,saliency=sample}", "every": 3, "seed": 7},
        {"policy": "utility{warmup=2,reallocate=1}", "budget": "macs=0.4,floor=0.1"},
        {"policy": "random", "budget": "params=0.5", "round_to": 4},
    ],
    ids=str,
)
def test_what_is_saved_is_loaded(tmp_path, settings):
    path = tmp_path / "net.safetensors"
    gated = trained(**settings)
    fxprune.save(gated, path)
    model = Net()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    loaded = fxprune.load(path, model)

    assert same_bits(before, model.state_dict()), "the model itself does not change"
    assert loaded.settings == gated.settings
    assert loaded.widths == gated.widths
    assert same_bits(loaded.training_state(), gated.training_state())
    x = torch.randn(3, 3, 8, 8)
    for mode in (True, False):
        assert torch.equal(loaded.train(mode)(x), gated.train(mode)(x))
    dense, again = gated.dense_state_dict(), loaded.dense_state_dict()
    assert same_bits(dense, again)


def test_a_settled_network_stays_settled(tmp_path):
    gated = trained()
    gated.settle()
    save(gated, tmp_path / "a.safetensors")
    loaded = fxprune.load(tmp_path / "a.safetensors", Net())
    assert loaded.settled
    assert torch.equal(loaded.executing, gated.executing)


def test_saving_in_eval_mode_keeps_the_training_selection(tmp_path):
    gated = trained()
    executing = gated.executing.clone()
    save(gated.eval(), tmp_path / "a.safetensors")
    loaded = fxprune.load(tmp_path / "a.safetensors", Net())
    assert loaded.training
    assert torch.equal(loaded.executing, executing)


@pytest.mark.parametrize("model", [Net(width=16), Net(kernel=1), nn.Conv2d(3, 4, 1)], ids=range(3))
def test_another_model_is_refused(tmp_path, model):
    path = tmp_path / "net.safetensors"
    save(make(), path)
    with pytest.raises((RunError, fxprune.errors.GateError)) as caught:
        fxprune.load(path, model)
    assert "another network" in str(caught.value) or "no channel" in str(caught.value)


def layers(act=nn.ReLU, stride=1, eps=1e-5, pool=2):
    return nn.Sequential(
        nn.Conv2d(3, 12, 3, stride, padding=1),
        nn.BatchNorm2d(12, eps),
        act(),
        nn.LPPool2d(pool, 2),
        nn.Conv2d(12, 8, 3, padding=1),
        nn.AdaptiveAvgPool2d(1),
    )


@pytest.mark.parametrize(
    "other",
    [{"act": nn.Tanh}, {"act": nn.LeakyReLU}, {"stride": 2}, {"eps": 0.1}, {"pool": 3}],
    ids=str,
)
def test_another_computation_on_the_same_tensors_is_warned_of(tmp_path, other):
    path = tmp_path / "net.safetensors"
    gated = make(layers())
    save(gated, path)
    assert torch.equal(fxprune.load(path, layers())(EXAMPLE[0]), gated(EXAMPLE[0]))
    with pytest.warns(FxpruneWarning, match="computes something else"):
        fxprune.load(path, layers(**other))


class Called(Net):
    def __init__(self, size=2, top=6.0, dims=(2, 3), cut=None):
        super().__init__()
        self.size, self.top, self.dims, self.cut = size, top, dims, cut

    def forward(self, x):
        x = torch.clamp(self.bn1(self.conv1(x)), 0.0, self.top)
        x = F.avg_pool2d(x, kernel_size=self.size, stride=1)[:, :, : self.cut]
        count, channels = x.shape[:2]
        x = torch.relu(self.conv2(x.reshape(count, channels, *x.shape[2:])))
        return self.fc(x.amax(self.dims))


@pytest.mark.parametrize("other", [{"size": 3}, {"top": 5.0}, {"cut": 3}], ids=str)
def test_another_function_on_the_same_tensors_is_warned_of(tmp_path, other):
    path = tmp_path / "net.safetensors"
    gated = trained(model=Called(), policy="random", budget="keep=0.5").eval()
    save(gated, path)
    assert torch.equal(fxprune.load(path, Called()).eval()(EXAMPLE[0]), gated(EXAMPLE[0]))
    with pytest.warns(FxpruneWarning, match="computes something else"):
        fxprune.load(path, Called(**other))


def test_files_that_hold_no_gated_network(tmp_path):
    path = tmp_path / "a.safetensors"
    write_tensors(path, {"a": torch.zeros(1)}, {})
    with pytest.raises(RunError, match="holds no gated network"):
        fxprune.load(path, Net())
    with pytest.raises(RunError, match="there is no file"):
        fxprune.load(tmp_path / "b.safetensors", Net())


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("policy", "cucb{c=no}"),
        ("budget", "keep=2"),
        ("round_to", "8"),
        ("inputs", [[[2, 3, 8, 8], "float33"]]),
        ("inputs", 5),
        ("surprise", 1),
        ("seed", None),
    ],
)
def test_damaged_plans_are_refused(tmp_path, key, value):
    path = tmp_path / "plan.json"
    run = Run.create(tmp_path / "a.fxprune", make(), "model.py")
    content = json.loads((run.path / PLAN).read_text())["plan"]
    content[key] = value
    with pytest.raises(RunError, match=r"cannot read .*plan\.json\n  why  its .* is damaged"):
        Plan.from_json(content, path).instrument(Net(), path)


def test_a_policy_that_is_not_known_is_named(tmp_path):
    run = Run.create(tmp_path / "a.fxprune", make(), "model.py")
    content = json.loads((run.path / PLAN).read_text())["plan"] | {"policy": "lottery"}
    with pytest.raises(RunError, match=r"does not know: unknown policy 'lottery'\n  why  "):
        Plan.from_json(content, run.path / PLAN).instrument(Net(), run.path / PLAN)


def test_a_plan_without_a_field_is_refused(tmp_path):
    with pytest.raises(RunError, match="its plan is damaged"):
        Plan.from_json({"inputs": []}, tmp_path)


def test_the_fingerprint_tells_networks_apart():
    prints = [fingerprint(make(model).channels) for model in (Net(), Net(), Net(16), Net(kernel=1))]
    assert prints[0] == prints[1]
    assert len(set(prints)) == 3


def test_a_run_from_beginning_to_end(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    gated = make(policy="cucb{c=0.5}", budget="keep=0.25", round_to=2, seed=3)
    created = Run.create(tmp_path / "net.fxprune", gated, "net.py:build", "3x8x8")
    assert sorted(path.name for path in created.path.iterdir()) == [CHECKPOINT, PLAN]
    monkeypatch.chdir("/")
    run = Run.open(tmp_path / "net.fxprune")
    assert run == created
    assert (run.spec, run.input, run.base) == ("net.py:build", "3x8x8", tmp_path)
    assert (run.plan.policy, run.plan.budget) == ("cucb{c=0.5}", "keep=0.25")
    assert run.plan.inputs == (((2, 3, 8, 8), "float32"),)
    assert run.metrics() == []
    assert same_bits(run.load(Net()).training_state(), gated.training_state())


def test_a_run_can_move_with_the_folder_of_its_model(tmp_path, monkeypatch):
    (tmp_path / "old").mkdir()
    monkeypatch.chdir(tmp_path / "old")
    Run.create(tmp_path / "old" / "net.fxprune", make(), "net.py")
    (tmp_path / "old").rename(tmp_path / "new")
    assert Run.open(tmp_path / "new" / "net.fxprune").base == tmp_path / "new"


def test_an_untrained_run_is_written_anew(tmp_path):
    path = tmp_path / "net.fxprune"
    Run.create(path, make(), "a.py")
    Run.create(path, make(policy="random"), "b.py")
    run = Run.open(path)
    assert (run.spec, run.plan.policy) == ("b.py", "random")
    run.load(Net())


def test_a_trained_run_is_not_overwritten(tmp_path):
    path = tmp_path / "net.fxprune"
    Run.create(path, make(), "a.py")
    (path / METRICS).write_text('{"epoch": 1}\n')
    with pytest.raises(RunError, match=r"there is a trained run in .*\n  do   give another folder"):
        Run.create(path, make(), "a.py")
    assert Run.open(path).metrics() == [], "what anyone may have written there is not read"
    (path / METRICS).unlink()
    gated = trained()
    tensors, meta = gated_state(gated)
    write_tensors(path / CHECKPOINT, tensors, {**meta, "history": []})
    with pytest.raises(RunError, match="there is a trained run in"):
        Run.create(path, make(), "a.py")
    (path / CHECKPOINT).write_bytes(b"x" * 100)
    with pytest.raises(RunError, match=r"cannot tell whether .* is trained"):
        Run.create(path, make(), "a.py")


def test_a_run_that_was_killed_while_it_was_made_is_made_anew(tmp_path):
    path = tmp_path / "net.fxprune"
    path.mkdir()
    (path / ".fxprune-0123.tmp").write_bytes(b"half a checkpo")
    Run.create(path, make(), "a.py")
    (path / PLAN).unlink()
    run = Run.create(path, make(), "b.py")
    assert sorted(file.name for file in path.iterdir()) == [CHECKPOINT, PLAN]
    assert Run.open(path) == run


def test_other_things_are_not_overwritten(tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "thesis.tex").write_text("x")
    (tmp_path / "file").write_text("x")
    for name in ("folder", "file"):
        with pytest.raises(RunError, match="something else is there"):
            Run.create(tmp_path / name, make(), "a.py")
    assert (tmp_path / "folder" / "thesis.tex").read_text() == "x"
    with pytest.raises(RunError, match="cannot make the folder"):
        Run.create(tmp_path / "no" / "net.fxprune", make(), "a.py")


def test_runs_that_are_not_there_or_damaged(tmp_path):
    with pytest.raises(RunError, match=r"there is no run .*\n  do   fxprune instrument SPEC"):
        Run.open(tmp_path / "none.fxprune")
    with pytest.raises(RunError, match=r"is no run\n  why  it has no plan\.json"):
        Run.open(tmp_path)
    (tmp_path / "net.onnx").write_text("")
    with pytest.raises(RunError, match=r"net\.onnx is no run\n  why  it is a file"):
        Run.open(tmp_path / "net.onnx")
    (tmp_path / PLAN).write_text("{")
    with pytest.raises(RunError, match="cannot read"):
        Run.open(tmp_path)
    for value in ("[]", '{"format": 0}', '{"format": 1}', '{"format": 1, "spec": 1, "base": "."}'):
        (tmp_path / PLAN).write_text(value)
        with pytest.raises(RunError, match=r"cannot read .*plan\.json"):
            Run.open(tmp_path)


def test_a_checkpoint_of_another_run_is_refused(tmp_path):
    one = Run.create(tmp_path / "one.fxprune", make(), "a.py")
    two = Run.create(tmp_path / "two.fxprune", make(policy="random"), "a.py")
    one.checkpoint.write_bytes(two.checkpoint.read_bytes())
    with pytest.raises(RunError, match=r"does not belong to .*plan\.json"):
        one.load(Net())
    one.checkpoint.unlink()
    with pytest.raises(RunError, match=r"has no checkpoint\.safetensors\n.*\n  do   bring"):
        one.load(Net())


def test_find(tmp_path):
    with pytest.raises(RunError, match=r"there is no run in .*\n  why  no folder here is called"):
        Run.find(tmp_path)
    first = Run.create(tmp_path / "b.fxprune", make(), "b.py")
    assert Run.find(tmp_path) == (first, "")
    assert Run.find(first.path) == (first, ""), "inside the run itself"
    second = Run.create(tmp_path / "a.fxprune", make(), "a.py")
    for file in first.path.iterdir():
        os.utime(file, (1, 1))
    assert Run.find(tmp_path) == (second, "a.fxprune is the newest of 2 runs here")
    (tmp_path / "c.fxprune").mkdir()
    assert Run.find(tmp_path)[0] == second, "a folder without a plan is no run"
