"""Trying one random network: the law for several selections, and what goes with it.

Everything is float64. The networks differ by the order of their sums only; a network of twelve
steps adds up a few of these, and a wrong channel shows at 1e-4 and above.
"""

import copy
import zlib
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

import fxprune
from fxprune import ChannelGraph, GatedModule, fold, instrument, shrink
from fxprune.bank.exchange import Selection
from fxprune.errors import GateError, ParityError
from tests.support.law import at_random, choose, gap, zeroed
from tests.support.random_nets import inputs, model_of

TOLERANCE = 1e-10
NO_CHANNEL = "the model has no channel that could be removed"


class LawError(AssertionError):
    """What does not hold of a network, and for which selection."""

    def __init__(self, what: str, chosen: Selection | None = None) -> None:
        super().__init__(what)
        self.what, self.chosen = what, chosen


@dataclass(frozen=True)
class Trial:
    """What came out: the channel graph, or None where every channel is pinned, for `reasons`."""

    graph: ChannelGraph | None
    reasons: tuple[str, ...]


@torch.no_grad()
def trial(source: str) -> Trial:
    """Holds a network to the law; the selections depend on the source alone.

    Raises:
        LawError: it does not hold.
    """
    model, seed = model_of(source), zlib.crc32(source.encode())
    try:
        gated = instrument(model, inputs())
    except GateError as error:
        if error.what != NO_CHANNEL:
            raise
        return Trial(None, tuple(error.why.splitlines()))
    graph = gated.channels
    before = {name: value.clone() for name, value in model.state_dict().items()}
    chosen = at_random(graph, seed)
    compact = _agree(model, gated, chosen)
    _costs(compact, gated, chosen)
    _close(compact(*inputs(3)), fold(compact)(*inputs(3)), "fold", chosen)
    _agree(model, gated, choose(graph, chosen.widths, seed + 1))
    _agree(model, gated, choose(graph, (1,) * len(graph.layout.sizes), seed + 2))
    whole = choose(graph, graph.layout.sizes, seed + 3)
    _agree(model, gated, whole)
    _close(model(*inputs(3)), gated(*inputs(3)), "all channels in another order", whole)
    _same(before, gated.dense_state_dict())
    if "Dropout" not in source:
        gated.train()
        _agree(model.train(), gated, at_random(graph, seed + 4))
    return Trial(graph, ())


@torch.no_grad()
def onnx_trial(source: str, path: Path) -> None:
    """Exports a network, which compares the file with the dense network's columns zero.

    A network that amplifies rounding so much that nothing can be proven of its file is let off.

    Raises:
        ExportError, ParityError: as `export_onnx` does.
    """
    dtype = torch.float32
    model, given = model_of(source, dtype), inputs(dtype=dtype)
    try:
        gated = instrument(model, given)
    except GateError:
        return
    chosen = at_random(gated.channels, zlib.crc32(source.encode()))
    gated.settle(chosen)
    reference = gated if gated.channels.mixing else zeroed(model, gated, chosen)
    try:
        fxprune.export_onnx(fold(shrink(gated.eval())), given, path, reference=reference)
    except ParityError as error:
        if "rounding alone" not in error.why:
            raise


def _costs(compact: nn.Module, gated: GatedModule, chosen: Selection) -> None:
    """The cost model is exact."""
    cost = gated.cost
    params = sum(parameter.numel() for parameter in compact.parameters())
    if params != cost.params(chosen.widths):
        raise LawError(f"{params} params, the cost says {cost.params(chosen.widths)}", chosen)
    macs = _macs(compact)
    if macs != cost.macs(chosen.widths):
        raise LawError(f"{macs} macs, the cost says {cost.macs(chosen.widths)}", chosen)


def _agree(model: nn.Module, gated: GatedModule, chosen: Selection) -> nn.Module:
    """The law in the mode that both are in; returns the compact network, which has not run."""
    gated.settle(chosen)
    compact = shrink(gated)
    dense = zeroed(model, gated, chosen)
    mode = "training" if gated.training else "evaluation"
    wanted = gated(*inputs(3))
    _close(wanted, copy.deepcopy(compact)(*inputs(3)), f"shrink in {mode} mode", chosen)
    if not gated.channels.mixing:
        what = f"dense with zero columns in {mode} mode"
        _close(dense(*inputs(3)), wanted, what, chosen, dense)
    return compact


def _close(
    wanted: Tensor, found: Tensor, what: str, chosen: Selection, network: nn.Module | None = None
) -> None:
    """What two networks return is the same but for rounding; the first may be given."""
    difference = gap(wanted, found)
    if difference > TOLERANCE and (network is None or difference > _rounding(network)):
        raise LawError(f"{what}: {difference:.1e} off", chosen)


def _rounding(network: nn.Module) -> float:
    """What rounding alone may make of the outputs: ten times that of float32, in float64.

    The mean of `silu(group_norm(x))` is 4e-7 of the numbers that it is the mean of, for example,
    where x hardly varies: 1e-15 of them is 4e-9 of it.
    """
    single = copy.deepcopy(network).float()(*(tensor.float() for tensor in inputs(3)))
    finer = torch.finfo(torch.float64).eps / torch.finfo(torch.float32).eps
    return 10 * finer * gap(network(*inputs(3)), single.double())


def _same(wanted: dict[str, Tensor], found: dict[str, Tensor]) -> None:
    """The bank has lost nothing."""
    if wanted.keys() != found.keys():
        raise LawError(f"dense_state_dict has other keys: {wanted.keys() ^ found.keys()}")
    for name, value in wanted.items():
        if not torch.equal(value, found[name]):
            raise LawError(f"dense_state_dict: {name} has changed")


def _macs(model: nn.Module) -> int:
    # the counter does not know the fused attention of processors, nor what nn.MultiheadAttention
    # does where no gradients are taken
    counter = FlopCounterMode(display=False)
    with sdpa_kernel(SDPBackend.MATH), torch.enable_grad(), counter:
        model(*inputs(2))
    return int(counter.get_total_flops()) // 4
