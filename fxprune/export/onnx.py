"""Export to ONNX, proven before it is written.

The network goes through torch's own exporter with a dynamic batch, then `onnx.checker`, then
ONNX Runtime runs it against torch on fresh inputs at several batch sizes. The file is written only
if every output agrees within the tolerance of its dtype (`parity.py`); the figures are returned and
also stand in the file's metadata.
"""

import copy
import html
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from onnx import load_model_from_string
from onnx.checker import ValidationError, check_model
from onnx.shape_inference import InferenceError
from torch import Tensor, nn
from torch.nn import functional
from torch.utils import _pytree as pytree

from fxprune.equivalence import batch_of, fresh_inputs, in_memory, repeated, which_batched
from fxprune.errors import ExportError, OptionError, TraceError, require_kind
from fxprune.export.attempt import advice, as_parameters, exporting, reason, unheard
from fxprune.export.condconv import BatchedConvs
from fxprune.export.parity import Network, excess, gaps, refusal, rounding
from fxprune.export.runtime import VERSION, runtime
from fxprune.files import as_path, write_bytes
from fxprune.tracing.deepcopy import copied
from fxprune.tracing.module import exportable, own_name, require_module
from fxprune.tracing.signature import flat_inputs, signature_of
from fxprune.tracing.snapshot import forgetting

BATCHES = (1, 2, 7)
"""The batch sizes at which every export is compared."""


@dataclass(frozen=True)
class OnnxOptions:
    """How an ONNX file is laid out.

    Attributes:
        opset: version of ONNX's operators; None for the exporter's own.
        input_names: of the inputs, in order; empty for the names of `forward`.
        output_names: of the outputs, in order; empty for the keys of a dict that the network
            returns, else the exporter's.
        dynamic_hw: height and width of images [B, C, H, W] may vary as well.
        batch: the one batch size that the file takes; None for any.

    Raises:
        OptionError: a field is out of its range.
    """

    opset: int | None = None
    input_names: tuple[str, ...] = ()
    output_names: tuple[str, ...] = ()
    dynamic_hw: bool = False
    batch: int | None = None

    def __post_init__(self) -> None:
        """Check the fields."""
        for field in ("opset", "batch"):
            require_kind(getattr(self, field), int | None, field, "give a whole number")
        for field in ("input_names", "output_names"):
            require_kind(getattr(self, field), tuple, field, 'give a tuple, such as ("image",)')
        if self.batch is not None and self.batch < 1:
            raise OptionError(f"batch cannot be {self.batch}", do="give 1 or more examples")
        words = self.input_names + self.output_names
        if len({*words}) < len(words) or not all(words):
            raise OptionError(
                f"cannot use the names {', '.join(words)}",
                why="one is empty, or two are the same",
                do="give each input or output a name of its own",
            )

    @property
    def batches(self) -> tuple[int, ...]:
        """The batch sizes at which a file is compared."""
        return BATCHES if self.batch is None else (self.batch,)


DEFAULT = OnnxOptions()


@dataclass(frozen=True)
class ExportReport:
    """What an export wrote and how far it is from torch.

    Attributes:
        path: the file.
        bytes: its size.
        opset: version of ONNX's default operator set.
        params: elements of the network's parameters, those of folded batch norms not counted.
        max_abs_error: the largest absolute difference of ONNX Runtime from torch, over all
            outputs, batches and inputs.
        max_rel_error: the same, each output divided by the largest absolute value that torch
            computed for it.
        tolerance: what `max_rel_error` had to stay under.
        batches: the batch sizes that were compared.
        seed: of the random inputs; another one in each export.
        real_examples: how many of the examples that were compared were the caller's.
    """

    path: Path
    bytes: int
    opset: int
    params: int
    max_abs_error: float
    max_rel_error: float
    tolerance: float
    batches: tuple[int, ...]
    seed: int
    real_examples: int

    def _repr_html_(self) -> str:
        """Show the figures as a table, for notebooks."""
        cells = (
            f"<tr><th>{name}</th><td>{html.escape(str(value))}</td></tr>"
            for name, value in vars(self).items()
        )
        return f"<table><tbody>{''.join(cells)}</tbody></table>"


@exporting()
def export_onnx(
    model: nn.Module,
    example_inputs: Sequence[Any] | Mapping[str, Any],
    path: str | Path,
    *,
    inputs: Sequence[Any] | Mapping[str, Any] = (),
    reference: nn.Module | None = None,
    notes: Mapping[str, object] | None = None,
    options: OnnxOptions = DEFAULT,
) -> ExportReport:
    """Write `model`, in eval mode, as an ONNX file with a dynamic batch.

    Args:
        model: a module that torch.export takes, usually what `shrink` returned; not changed.
        example_inputs: one tensor per argument of `forward`, or what `instrument` was given.
            Those whose first dimension is as long as the first one's are taken to be batched
            along it.
        path: where to; the folder has to exist.
        inputs: real inputs, like `example_inputs` with any number of examples, compared as well.
        reference: what the file has to agree with; `model` itself if it is not given.
        notes: more to put into the file's metadata, under "fxprune.<key>".
        options: names, operator set, and which sizes may vary.

    Returns:
        The figures of the comparison.

    Raises:
        ExportError: torch cannot export the network with a dynamic batch, or ONNX Runtime has
            no kernel for it.
        OptionError: the path is no path, or the options are no OnnxOptions.
        ParityError: an output differs by more than the tolerance, or is not finite.
        RunError: the file cannot be written.
        TraceError: the model is no nn.Module, or does not take these inputs.
    """
    path = as_path(path)
    require_module(model)
    require_kind(options, OnnxOptions, "the options", "give OnnxOptions(…)")
    signature = signature_of(model)
    network = exportable(copied(model, {}).cpu().eval())
    example = in_memory(flat_inputs(model, example_inputs))
    program = _program(network, example, options)
    expected: Network = network
    if reference is not None:
        require_module(reference)
        own = copied(reference, {}).cpu().eval()
        expected = own if signature is None else forgetting(own, signature.caller(own))

    seed = torch.Generator().seed() % 2**63
    generator = torch.Generator().manual_seed(seed)
    trials = [fresh_inputs(example, size, generator) for size in options.batches]
    if options.dynamic_hw:
        trials.append(fresh_inputs(_larger(example, expected), options.batches[0], generator))
    given = () if isinstance(inputs, Sequence) and not inputs else flat_inputs(model, inputs)
    real = tuple(tensor.detach().cpu() for tensor in given)
    _require_like(real, example, options)
    real_sizes = [size for size in options.batches if real and batch_of(real) >= size]
    trials += [_first(real, example, size) for size in real_sizes]

    content = program.SerializeToString()
    run = runtime(content)
    found = [gap for trial in trials for gap in gaps(expected, run, trial)]
    worst = max(found, key=excess)
    if excess(worst) > 0:
        plain = runtime(content, optimised=False)
        others = [gap for trial in trials for gap in gaps(expected, plain, trial)]
        raise refusal(
            path,
            worst,
            max(others, key=excess),
            rounding(expected, trials),
            f"ONNX Runtime {VERSION}",
        )
    figures: dict[str, Any] = {
        "opset": next(entry.version for entry in program.opset_import if not entry.domain),
        "params": sum(parameter.numel() for parameter in network.parameters()),
        "max_abs_error": max(gap.absolute for gap in found),
        "max_rel_error": max(gap.relative for gap in found),
        "tolerance": max(gap.tolerance for gap in found),
        "batches": options.batches,
        "seed": seed,
        "real_examples": sum(real_sizes),
    }
    for key, value in {**figures, "version": version("fxprune"), **(notes or {})}.items():
        program.metadata_props.add(key=f"fxprune.{key}", value=str(value))
    content = program.SerializeToString()
    write_bytes(path, content)
    return ExportReport(path=path, bytes=len(content), **figures)


@exporting()
def onnx_content(model: nn.Module, example_inputs: Sequence[Tensor]) -> bytes:
    """Make the content of an ONNX file of `model`, in eval mode, unchecked: only to be timed.

    Raises:
        ExportError: torch cannot export the network with a dynamic batch.
    """
    network = copy.deepcopy(model).cpu().eval()
    example = in_memory(example_inputs)
    content: bytes = _program(network, example, DEFAULT).SerializeToString()
    return content


def _first(real: Sequence[Tensor], example: Sequence[Tensor], size: int) -> tuple[Tensor, ...]:
    """Return the first `size` real examples."""
    return tuple(t[:size] if batched else t for t, batched in zip(real, which_batched(example)))


def _larger(example: tuple[Tensor, ...], network: Network) -> tuple[Tensor, ...]:
    """Make examples whose images are 32 pixels larger each way.

    Raises:
        OptionError: the network itself takes no other size.
    """
    larger = tuple(
        functional.pad(tensor, (0, 32, 0, 32)) if tensor.dim() == 4 else tensor
        for tensor in example
    )
    try:
        with torch.no_grad():
            network(*larger)
    except RuntimeError as error:
        raise OptionError(
            "height and width of the network's input cannot vary",
            why=f"in images of another size: {reason(error)}",
            do="leave out --dynamic-hw, or end the network in a global pooling",
        ) from error
    return larger


def _varying(tensor: Tensor, batched: bool, options: OnnxOptions) -> dict[int, str] | None:
    """Return the names of the dimensions that may vary."""
    names = {0: "batch"} if batched and options.batch is None else {}
    if options.dynamic_hw and tensor.dim() == 4:
        names |= {2: "height", 3: "width"}
    return names or None


def _names_of(result: Any) -> list[str]:
    """Return the keys of a dict that a network returns, one for each tensor; else none."""
    if not isinstance(result, Mapping):
        return []
    leaves, _ = pytree.tree_flatten_with_path(result)
    return [
        "_".join(str(getattr(key, "key", getattr(key, "idx", ""))) for key in path)
        for path, leaf in leaves
        if isinstance(leaf, Tensor)
    ]


def _require_like(
    real: tuple[Tensor, ...], example: tuple[Tensor, ...], options: OnnxOptions
) -> None:
    """Refuse real inputs of other sizes or dtypes than the example's.

    Raises:
        TraceError: they have some, beyond their number of examples.
    """
    for one, other in zip(real, example):
        fixed = [tuple(x.shape[1:-2] if options.dynamic_hw else x.shape[1:]) for x in (one, other)]
        if (one.dtype, one.dim(), fixed[0]) != (other.dtype, other.dim(), fixed[1]):
            raise TraceError(
                f"the real inputs do not fit: {one.dtype} {list(one.shape)}",
                why=f"the example is {other.dtype} {list(other.shape)}; the batch may differ",
                do="prepare them as the network's own inputs",
            )


def _program(network: nn.Module, example: tuple[Tensor, ...], options: OnnxOptions) -> Any:
    """Export the checked ModelProto, without the exporter's notes, which hold local paths."""
    pair = repeated(example, options.batch or 2)  # of one, it would be taken for a constant
    batches = which_batched(example)
    shapes = tuple(_varying(x, batched, options) for x, batched in zip(example, batches))
    try:
        with unheard(), torch.no_grad(), BatchedConvs():
            keys = _names_of(forgetting(network)(*pair))
            exported = torch.onnx.export(
                network,
                pair,
                dynamo=True,
                dynamic_shapes=as_parameters(network, shapes) if any(shapes) else None,
                input_names=options.input_names or None,
                output_names=options.output_names or keys or None,
                opset_version=options.opset,
                verbose=False,
            )
    except (torch.onnx.OnnxExporterError, RuntimeError) as error:
        why = reason(error)
        raise ExportError(
            "torch cannot export the network to ONNX", why=why, do=advice(why)
        ) from error
    assert exported is not None
    program = exported.model_proto
    _clear_shapes(exported)
    _check_options(program, options)
    _name_nodes(program.graph)
    _strip(program)
    for entry, batched in zip(program.graph.input, which_batched(example)):
        if batched and options.batch is None and not entry.type.tensor_type.shape.dim[0].dim_param:
            raise ExportError(
                "the exported network takes one batch size only",
                why=f"input {entry.name} has a constant first dimension: the network's forward "
                "computes with the batch size as a number",
                do="write the batch as -1 or x.shape[0] in views and reshapes",
            )
    try:
        check_model(program, full_check=True)
    except (ValidationError, InferenceError) as error:
        raise ExportError(
            "the exporter made an invalid ONNX file",
            why=reason(error),
            do="ONNX's operators are for float32 above all: try model.float()",
        ) from error
    return program


def _clear_shapes(exported: torch.onnx.ONNXProgram) -> None:
    """Clear what torch.export keeps of a program (seen in torch 2.14).

    With a dynamic batch each call leaves its shape environment behind: in the caches of that
    class's methods, which hold the last 256, and in cycles that Python's collector does not see.
    """
    traced = exported.exported_program
    for node in traced.graph.nodes if traced is not None else ():
        shapes = getattr(getattr(node.meta.get("val"), "fake_mode", None), "shape_env", None)
        if shapes is not None:
            shapes.fake_tensor_cache.clear()
            shapes.tracked_fakes = None
            for method in vars(type(shapes)).values():
                if hasattr(method, "cache_clear"):
                    method.cache_clear()


def _check_options(program: Any, options: OnnxOptions) -> None:
    """Refuse options that the exporter did not follow.

    Raises:
        OptionError: an operator is not in the operator set that was asked for, there are more or
            fewer inputs or outputs than names, or something else has one of these names.
    """
    opset = next(entry.version for entry in program.opset_import if not entry.domain)
    if options.opset not in (None, opset):
        raise OptionError(
            f"the network cannot be written with opset {options.opset}",
            why=f"the exporter writes opset {opset}, and not all of its operators have a form "
            f"in {options.opset}",
            do=f"give --opset {opset}, or leave it out",
        )
    graph = program.graph
    inside = Counter(tensor.name for tensor in graph.initializer)
    inside.update(name for node in graph.node for name in node.output)
    for word, names, own, times in (
        ("input", options.input_names, graph.input, 0),
        ("output", options.output_names, graph.output, 1),  # of the node that makes it
    ):
        if names and len(names) != len(own):
            raise OptionError(
                f"the network has {len(own)} {word}s, and {len(names)} {word} names are given",
                do=f"give {len(own)}, in the order of the {word}s",
            )
        for name in names:
            if inside[name] > times:
                raise OptionError(
                    f"the name {name!r} is taken",
                    why="a weight or a node of the network has it",
                    do="give another one",
                )


def _name_nodes(graph: Any) -> None:
    """Name each node by the module that it is of: `/layer1.0.conv1/Conv`; weights as they are."""
    seen: Counter[str] = Counter()
    for weight in graph.initializer:
        weight.name = own_name(weight.name)
    for node in graph.node:
        node.input[:] = [own_name(entry) for entry in node.input]
        notes = {entry.key: entry.value for entry in node.metadata_props}
        # a list in a text: the names of the modules around the node, then the operation's
        scopes = re.findall(r"'([^']*)'", notes.get("pkg.torch.onnx.name_scopes", ""))
        module = next((scope for scope in reversed(scopes[:-1]) if scope), "")
        module = own_name(f"{module}.").rstrip(".")
        name = "/".join(("", *([module] if module else []), node.op_type))
        node.name = f"{name}_{seen[name]}" if seen[name] else name
        seen[name] += 1


def _strip(program: Any) -> None:
    """Remove the notes of the exporter from nodes, values and weights."""
    graph = program.graph
    for part in (graph.node, graph.value_info, graph.input, graph.output, graph.initializer):
        for entry in part:
            del entry.metadata_props[:]
            entry.doc_string = ""
    del graph.metadata_props[:]
    del program.metadata_props[:]


def output_names_of(content: bytes) -> list[str]:
    """Read the names of the outputs of an ONNX file's content."""
    return [entry.name for entry in load_model_from_string(content).graph.output]
