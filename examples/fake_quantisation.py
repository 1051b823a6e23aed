"""A compact network trains on with fake quantisation, and becomes an int8 ONNX file.

    python examples/fake_quantisation.py --out out --epochs 3

The gated network learns scikit-learn's digits, is shrunk, and its batch norms are folded. Then each
convolution and linear layer computes with its weights and inputs rounded to 8 bits, as the file
will. At the end the layers keep the rounded weights, and the int8 file holds the same 8-bit values.
"""

import argparse
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.ao.quantization import (
    FakeQuantize,
    MovingAverageMinMaxObserver,
    MovingAveragePerChannelMinMaxObserver,
)
from torch.nn.utils import parametrize

import fxprune
from fxprune.data import load
from fxprune.demo import build_model, example_inputs
from fxprune.export.low_precision import Lowered, write_int8
from fxprune.trainer.loop import fit
from fxprune.trainer.low_precision import OutputForm, calibration_batches, score_file
from fxprune.trainer.options import TrainOptions
from fxprune.trainer.task import Task

WEIGHTS = FakeQuantize.with_args(
    observer=MovingAveragePerChannelMinMaxObserver,
    averaging_constant=1.0,  # the weights of now, no average
    quant_min=-127,  # as ONNX Runtime: one scale for each output channel, zero is zero
    quant_max=127,
    dtype=torch.qint8,
    qscheme=torch.per_channel_symmetric,
)
INPUTS = FakeQuantize.with_args(
    observer=MovingAverageMinMaxObserver, quant_min=0, quant_max=255, dtype=torch.quint8
)


def fake_quantise(network: nn.Module) -> None:
    """Make convolutions and linear layers round their weights and inputs, in place."""
    for layer in list(network.modules()):
        if isinstance(layer, nn.Conv2d | nn.Linear):
            parametrize.register_parametrization(layer, "weight", WEIGHTS())
            layer.rounding = INPUTS()
            layer.hook = layer.register_forward_pre_hook(_rounded)


def _rounded(layer: nn.Module, inputs: tuple[Tensor]) -> Tensor:
    layer.rounding.enable_observer(layer.training)  # validation images set no ranges
    return layer.rounding(*inputs)


def unquantise(network: nn.Module) -> None:
    """Make the layers plain again, in place, with the rounded weights."""
    for layer in list(network.modules()):
        if parametrize.is_parametrized(layer, "weight"):
            parametrize.remove_parametrizations(layer, "weight")
            layer.hook.remove()
            del layer.rounding, layer.hook


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("fake-quantisation-out"))
    parser.add_argument("--epochs", type=int, default=3)
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)

    digits = load("digits")
    gated = fxprune.instrument(build_model(), example_inputs, policy="balance", budget="macs=0.5")
    options = TrainOptions(epochs=given.epochs, lr=0.05, batch_size=64, device="cpu")
    print(f"gated             {fit(gated, digits, options)[-1].val_accuracy:.1%}")

    compact = fxprune.fold(fxprune.shrink(gated.eval()))
    fake_quantise(compact)
    options = TrainOptions(epochs=given.epochs, lr=0.005, batch_size=64, device="cpu")
    print(f"fake-quantised    {fit(compact, digits, options)[-1].val_accuracy:.1%}")
    unquantise(compact)

    path = given.out / "compact.onnx"
    images, _ = next(digits.val.batches(32))
    report = fxprune.export_onnx(compact.eval(), example_inputs, path, inputs=(images,))
    ranges = list(calibration_batches(digits, 200, 32))
    int8: Lowered = write_int8(path, path.with_suffix(".int8.onnx"), [(images,)], ranges)
    for file in (path, int8.path):
        print(f"{file.name:18}{score_file(file, digits.val, Task(), OutputForm()).accuracy:.1%}")
    print(f"{report.params} parameters, largest difference {report.max_rel_error:.1e}")


if __name__ == "__main__":
    main()
