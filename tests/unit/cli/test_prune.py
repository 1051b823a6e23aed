"""What `fxprune prune` refuses: exit code 2, a clear text, and nothing is written."""

import shlex
from pathlib import Path

import pytest
import safetensors.torch

from fxprune.cli.spec import resolve
from tests.support.cli import Call

REFUSED = {
    "--macs nan": "the budget macs=nan is out of range",
    "--macs 0": "the budget macs=0.0 is out of range",
    "--macs 1.5": "the budget macs=1.5 is out of range",
    "--speedup 0.5": "a speedup cannot be 0.5",
    "--speedup nan": "a speedup cannot be nan",
    "--speedup inf": "a speedup cannot be inf",
    "--budget flops=.5": "unknown budget 'flops'",
    "--budget ''": "cannot read the budget ''",
    "--max-drop -1": "max_drop cannot be -1.0",
    "--max-drop nan": "max_drop cannot be nan",
    "--macs .5 --max-drop 1": "fxprune prune has one goal\n  why  given: macs=0.5, max_drop=1\n",
    "--macs .5 --exclude stem": "matches no layer",
    "--macs .5 --loss losses.py:no": "there is no file",
    "--macs .5 --loss model.py:no": "model.py has no no",
    "--macs .5 --mean x": "cannot read --mean x",
    "--macs .5 --mean 1,2": "--mean has 2 numbers for images of 1 channels",
    "--macs .5 --std 0": "std cannot be (0.0,)",
    "--macs .5 --resize 9": "the images of digits are not resized",
    "--macs .5 --transform model.py:Net": "the images of digits are not resized",
    "--macs .5 --data cats": "unknown data set 'cats'",
    "--macs .5 --data folder:none": "cannot read images from",
    "--macs .5 --data cifar10 --data-root none": "cannot read the data set cifar10",
    "--macs .5 --data model.py:Net": "the data factory model.py:Net returned a Net",
    "--macs .5 --weights none.pt": "there is no file none.pt",
    "--macs .5 --weights model.py": "cannot tell what kind of weights model.py holds",
    "--macs .5 --input 3x8x8": "does not",
    "--macs .5 --threads 0": "threads cannot be 0",
    "--macs .5 --latency-command true": "does not say where the file goes",
    '--macs .5 --latency-command "a \'{model}"': "cannot read the latency command",
    "--macs .5 --workers -1": "--workers",
    "--macs .5 -o no/a.fxprune": "there is no folder no",
    "--macs .5 -o model.py": "cannot make a run of model.py",
    "--macs .5 -o a.onnx": "-o a.onnx is the folder of the run",
    "--macs .5 -o .": "cannot make a run of .",
    "--macs .5 -o taken": "taken.onnx is there already, and no export wrote it",
    "--macs .5 --epochs 0": "epochs cannot be 0",
    "--macs .5 --lr nan": "lr cannot be nan",
    "--macs .5 --lr-warmup 2": "lr_warmup cannot be 2.0",
    "--macs .5 --optimizer best": "torch.optim has no best",
    "--macs .5 --optimizer timm:": "the name of an optimiser of timm.optim is missing",
    "--macs .5 --optimizer lbfgs": "cannot step lbfgs",
    "--macs .5 --batch-size 1": "batch_size cannot be 1",
    "--macs .5 --weight-decay -1": "weight_decay cannot be -1.0",
    "--macs .5 --clip 0": "clip cannot be 0.0",
    "--macs .5 --accumulate 100": "cannot be split into 100 parts",
    "--macs .5 --freeze none": "freeze 'none' matches no layer",
    "--macs .5 --freeze '*'": "no parameter of the network is left to train",
    "--macs .5 --ema 1": "ema cannot be 1.0",
    "--macs .5 --label-smoothing 2": "label_smoothing cannot be 2.0",
    "--macs .5 --distil -1": "distil cannot be -1.0",
    "--macs .5 --temperature 0": "temperature cannot be 0.0",
    "--macs .5 --randaugment 31": "randaugment cannot be 31",
    "--macs .5 --randaugment 9 --no-augment": "randaugment needs augment",
    "--macs .5 --mixup -1": "mixup cannot be -1.0",
    "--macs .5 --mixup 1 --loss model.py:loss": "mixed labels need the built-in loss",
    "--macs .5 --cutmix nan": "cutmix cannot be nan",
    "--macs .5 --amp half": "half",
    "--macs .5 --seed -1": "seed cannot be -1",
    "--macs .5 --device tpu": "device 'tpu'",
    "--macs .5 --device cuda:77": "there is no device 'cuda:77'",
    "--macs .5 --best": "--best",
}


@pytest.fixture(scope="module")
def weights(folder: Path) -> Path:
    """Weights of the folder's model, a loss of its own, and a file that is in the way."""
    net = resolve("model.py", base=folder).model
    safetensors.torch.save_file(net.state_dict(), folder / "w.safetensors")
    (folder / "taken.onnx").write_bytes(b"made by another program")
    with (folder / "model.py").open("a") as file:
        file.write("\n\nloss = nn.CrossEntropyLoss()\n")
    return folder


@pytest.mark.parametrize("words", REFUSED)
def test_a_bad_value_is_refused_and_nothing_is_written(
    words: str, weights: Path, call: Call
) -> None:
    before = {path: path.stat().st_mtime_ns for path in weights.rglob("*")}
    start = ("prune", "model.py", "--weights", "w.safetensors", "--data", "digits")
    done = call(*start, "--epochs", "1", *shlex.split(words), folder=weights, exit_code=2)
    assert REFUSED[words] in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""
    assert {path: path.stat().st_mtime_ns for path in weights.rglob("*")} == before


def test_images_of_another_size_are_spoken_of_before_the_training(
    weights: Path, call: Call
) -> None:
    start = ("prune", "model.py", "--weights", "w.safetensors", "--data", "digits", "--macs", ".5")
    done = call(*start, "--input", "1x16x16", "--epochs", "1", "-o", "other", folder=weights)
    said = "an example of the data is [1, 8, 8], the file takes [1, 16, 16]; give --input"
    assert said in done.stderr.partition("the dense network is right")[0]
