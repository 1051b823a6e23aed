"""What the sweep does with one network: analyse, train a step, hold it to the law, export."""

import copy
import re
import tempfile
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils.flop_counter import FlopCounterMode
from zoo_entry import Entry

import fxprune
from fxprune.bank.exchange import Selection
from fxprune.equivalence import leaves
from fxprune.errors import FxpruneError
from tests.support.law import choose, gap, zeroed
from tests.support.untouched import changes, described

KEEP = 0.5
TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4}
"""Of the law, relative to an output's largest value. float64 sums in another order differ by
about 1e-15, and deep networks of random weights amplify that."""
LARGE = 150_000_000
"""Networks of more parameters are held to the law in float32, to fit into memory."""

Record = dict[str, Any]


@dataclass
class Stages:
    """Fills a record; what raises ends the network with the name of the stage and the message."""

    record: Record = field(default_factory=dict)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Times a stage, and notes its failure."""
        began = time.process_time()
        try:
            yield
        except Exception as error:
            if "failed" not in self.record:
                self.record["failed"] = f"{name}: {message(error)}"
                self.record["line"] = _line(error)
            raise
        finally:
            spent = self.record.setdefault("stages", {})
            spent[name] = round(time.process_time() - began, 2)


def message(error: BaseException) -> str:
    """An exception in one line, the same in every run."""
    lines = [line.strip() for line in str(error).strip().splitlines() if line.strip()]
    text = " ".join(lines[:3]) if isinstance(error, FxpruneError) else "".join(lines[:1])
    text = re.sub(r"[^\s\"']*/(?=(timm|torch|torchvision|fxprune|tools)/|compact.onnx)", "", text)
    text = re.sub(r"\d\.\de-\d\d", "#", text)  # figures of random inputs
    return f"{type(error).__name__}: {text}"[:300]


def _line(error: BaseException) -> str:
    """The innermost line of code that raised, without the folders of this machine."""
    frame, found = error.__traceback__, ""
    while frame is not None:
        code = frame.tb_frame.f_code
        found = f"{'/'.join(Path(code.co_filename).parts[-2:])}:{frame.tb_lineno} {code.co_name}"
        frame = frame.tb_next
    return found


def examine(entry: Entry, record: Record, skip: Collection[str] = ()) -> None:
    """Does all of it and fills `record`, also where it raises half-way.

    Args:
        entry: the network.
        record: what is known of it so far; changed in place.
        skip: stages to leave out: "law", "step", "onnx".
    """
    stages = Stages(record)
    with stages.stage("build"):
        model = entry.build()
        record["params"] = sum(parameter.numel() for parameter in model.parameters())
    single = (entry.input(1, torch.float32),)
    with stages.stage("analyze"):
        before = described(model)
        gated = _instrumented(model, single)
        touched = changes(before, described(model))
        del before
        if touched:
            raise AssertionError(f"the model is not as it was: {touched[:3]}")
        _describe(record, gated)
    if "step" not in skip:
        with stages.stage("step"):
            record["step"] = _train(model, entry, gated) if entry.trains else None
    if "onnx" not in skip:
        with stages.stage("onnx"):
            record["onnx"] = _export(gated, single, model)
    del gated
    if "law" not in skip:
        with stages.stage("law"):
            dtype = _dtype_of_law(model, entry)
            record["law_dtype"] = str(dtype).removeprefix("torch.")
            _law(record, model.to(dtype), (entry.input(1, dtype),), TOLERANCE[dtype])


@torch.no_grad()
def _dtype_of_law(model: nn.Module, entry: Entry) -> torch.dtype:
    """float64 but for large networks, and for those whose own code asks for float32."""
    if sum(parameter.numel() for parameter in model.parameters()) > LARGE:
        return torch.float32
    try:
        model.double()(entry.input(1, torch.float64))
    except RuntimeError:
        return torch.float32
    return torch.float64


def _describe(record: Record, gated: fxprune.GatedModule) -> None:
    graph, cost = gated.channels, gated.cost
    dense = max(cost.dense_macs, 1)
    record |= {
        "traced": True,
        "leaves": sorted(_leaves(gated)),
        "two_graphs": len(gated.graphs) == 2,
        "groups": len(graph.groups),
        "channels": graph.layout.total,
        "macs": cost.dense_macs,
        "macs_kept": cost.macs(gated.best().widths) / dense,
        "params_kept": cost.params(gated.best().widths) / max(cost.dense_params, 1),
        "mixing": len(graph.mixing),
        "pinned_macs": sum(pinned.macs for pinned in graph.pinned) / dense,
        "pinned": _reasons(graph, dense),
    }


def _reasons(graph: fxprune.ChannelGraph, dense: int) -> list[dict[str, Any]]:
    """Why channels are pinned, by macs: the reason, their number, their share of the macs."""
    by_reason: dict[str, dict[str, Any]] = {}
    for pinned in graph.pinned:
        found = by_reason.setdefault(
            pinned.reason, {"reason": pinned.reason, "channels": 0, "macs": 0.0, "node": ""}
        )
        found["channels"] += pinned.channels
        found["macs"] += pinned.macs / dense
        found["node"] = found["node"] or pinned.node
    return sorted(by_reason.values(), key=lambda found: -found["macs"])[:6]


def _leaves(module: fx.GraphModule) -> set[str]:
    """The modules that are called whole though they are not torch's own: what can't be traced."""
    called = {str(n.target) for n in module.graph.nodes if n.op == "call_module"}
    return {
        target
        for target in called
        if not type(module.get_submodule(target)).__module__.startswith(("torch.nn", "fxprune"))
    }


def _train(model: nn.Module, entry: Entry, gated: fxprune.GatedModule) -> float:
    """One step in training mode, with the library's own loss if it has one; returns the loss."""
    images = entry.input(2, torch.float32)
    own = getattr(entry, "loss", None)
    if own is not None:  # the loss has inputs of its own
        kwargs = entry.kwargs(images)
        gated = _instrumented(model, (images,), kwargs) if kwargs else gated
    gated.train()
    optimizer = torch.optim.SGD(gated.parameters(), lr=1e-6, momentum=0.9)
    controller = fxprune.attach(gated, optimizer)
    before = gated.dense_state_dict()
    loss = square(gated(images)) if own is None else own(model, gated, images)
    loss.backward()
    optimizer.step()
    after = gated.dense_state_dict()
    if all(torch.equal(after[name], before[name]) for name, _ in model.named_parameters()):
        raise RuntimeError("the step changed no parameter")
    controller.detach()
    gated.eval()
    return float(loss.detach())


def square(outputs: Any) -> Tensor:
    """The mean square of all outputs."""
    total = sum((leaf.float().square().mean() for leaf in _plain(outputs)), torch.zeros(()))
    if not torch.isfinite(total):
        raise RuntimeError("the loss is not finite")
    return total


def _instrumented(
    model: nn.Module, inputs: tuple[Tensor, ...], kwargs: Mapping[str, Any] | None = None
) -> fxprune.GatedModule:
    """With half of each group's channels, as Torch-Pruning keeps them too."""
    return fxprune.instrument(
        model, inputs, "magnitude", f"keep={KEEP}", round_to=1, example_kwargs=kwargs
    )


@torch.no_grad()
def _law(record: Record, model: nn.Module, inputs: tuple[Tensor, ...], tolerance: float) -> None:
    """gated = compact = dense with its consumers' columns zeroed, at three random selections.

    Where statistics are mixed across channels the last is not so by nature. There the selection
    of all channels in another order has to give what the dense network gives.
    """
    gated = _instrumented(model, inputs).eval()
    record["law"] = []
    for seed in range(3):
        chosen = at_random(gated.channels, seed)
        gated.settle(chosen)
        found, compact = gated(*inputs), fxprune.shrink(gated)
        if seed == 0:
            _count(record, gated, compact, inputs)
        gaps = [_gap(found, compact(*inputs), "compact and gated")]
        del compact
        if not gated.channels.mixing:
            dense = zeroed(model, gated, chosen)(*inputs)
            gaps.append(_gap(dense, found, "gated and dense"))
        record["law"].append(max(gaps))
    sizes = gated.channels.layout.sizes
    gated.settle(choose(gated.channels, sizes, seed=3))
    record["permuted"] = _gap(model(*inputs), gated(*inputs), "permuted and dense")
    worst = max(*record["law"], record["permuted"])
    if not worst <= tolerance:
        record["noise"] = _noise(model, inputs)
        if not worst <= 10 * record["noise"]:
            raise AssertionError(f"the law does not hold to {tolerance:.0e}")


def _noise(model: nn.Module, inputs: tuple[Tensor, ...]) -> float:
    """What the dense network makes of a change in the last bits of its inputs.

    A deep network of random weights may amplify it beyond the tolerance, and sums in another
    order with it.
    """
    nudged = (tensor * (1 + 16 * torch.finfo(tensor.dtype).eps) for tensor in inputs)
    return _gap(model(*inputs), model(*nudged), "dense and dense")


def at_random(graph: fxprune.ChannelGraph, seed: int) -> Selection:
    """A random selection of random widths, two channels of each group at least.

    The deviation of a kernel of one value, as in a scaled convolution behind a single channel, is
    an error in torch itself.
    """
    draw = torch.Generator().manual_seed(seed)
    widths = (
        int(torch.randint(min(size, 2), size + 1, (), generator=draw))
        for size in graph.layout.sizes
    )
    return choose(graph, tuple(widths), seed)


def _gap(wanted: Any, found: Any, names: str) -> float:
    if not all(bool(torch.isfinite(leaf).all()) for leaf in _plain(wanted)):
        raise RuntimeError(f"an output is not finite ({names})")
    return gap(_plain(wanted), _plain(found))


def _plain(outputs: Any) -> list[Tensor]:
    return [leaf for leaf in leaves(outputs) if isinstance(leaf, Tensor)]


def counted(run: Callable[[], Any]) -> int:
    """Multiply-accumulates as torch's own counter sees them."""
    with FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops() // 2


def _count(
    record: Record, gated: fxprune.GatedModule, compact: nn.Module, inputs: tuple[Tensor, ...]
) -> None:
    """Compares the cost model with torch's counter."""
    ours = gated.cost.macs(gated.best().widths)
    theirs = counted(lambda: compact(*inputs))
    record["macs_model"] = ours / max(theirs, 1)


def _export(
    gated: fxprune.GatedModule, inputs: tuple[Tensor, ...], model: nn.Module
) -> float | None:
    """Exports the shrunk network, folded, and compares it in ONNX Runtime; the relative error.

    Returns:
        None where torch cannot export the dense network either.
    """
    compact = fxprune.fold(fxprune.shrink(gated.eval()))
    with tempfile.TemporaryDirectory() as folder:
        try:
            report = fxprune.export_onnx(compact, inputs, Path(folder) / "compact.onnx")
        except FxpruneError:
            if _dense_exports(model, inputs, Path(folder) / "dense.onnx"):
                raise
            return None
    return report.max_rel_error


def _dense_exports(model: nn.Module, inputs: tuple[Tensor, ...], path: Path) -> bool:
    """Whether the dense network can be exported with a free batch, and is proven as ours is."""
    try:
        fxprune.export_onnx(copy.deepcopy(model), inputs, path)
    except Exception:
        return False
    return True
