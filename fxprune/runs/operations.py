"""What a network computes apart from its tensors: its operations in order, and their options."""

import hashlib

import torch
from torch import fx, nn
from torch.utils import _pytree as pytree

from fxprune.gated.module import GatedModule

_OPTIONS = (
    *("kernel_size", "stride", "padding", "output_padding", "dilation", "padding_mode"),
    *("ceil_mode", "count_include_pad", "divisor_override", "output_size", "scale_factor", "mode"),
    *("align_corners", "upscale_factor", "downscale_factor", "dim", "start_dim", "end_dim"),
    *("negative_slope", "lower", "upper", "threshold", "value", "approximate", "alpha", "beta"),
    *("min_val", "max_val", "eps", "affine"),
)
"""Options of PyTorch's layers that follow no width, and that no training changes as dropout's."""


def operations(gated: GatedModule) -> str:
    """Identify what a network computes in evaluation mode, at any widths and with any weights.

    Whole numbers in calls are left out, since lengths follow the widths: `F.max_pool2d(x, 3)` for
    `F.max_pool2d(x, 2)` is not told apart, `nn.MaxPool2d(3)` for `nn.MaxPool2d(2)` is.
    """
    digest = hashlib.sha256()
    _, evaluation = gated.both_graphs
    numbers = {node: number for number, node in enumerate(evaluation.nodes)}
    for node in evaluation.nodes:
        inputs = [numbers[before] for before in node.all_input_nodes]
        digest.update(f"{node.op} {inputs} {_described(node, gated)}\n".encode())
    return digest.hexdigest()[:16]


def _described(node: fx.Node, gated: GatedModule) -> tuple[object, ...]:
    """Describe what a node computes: its function with literals, or its layer with options."""
    if node.op == "call_module":
        module = gated.get_submodule(str(node.target))
        options = _OPTIONS if _is_torchs(module) else ()
        return (
            type(module).__qualname__,
            {name: getattr(module, name) for name in options if hasattr(module, name)},
        )
    leaves = pytree.tree_leaves((node.args, node.kwargs))
    literals = [leaf for leaf in leaves if isinstance(leaf, (bool, float, str, torch.dtype))]
    name = getattr(node.target, "__qualname__", node.target)
    return (name, literals) if node.op in ("call_function", "call_method") else ()


def _is_torchs(module: nn.Module) -> bool:
    """Tell whether a module is a layer of PyTorch's, or derives from one."""
    bases = (base for base in type(module).__mro__ if base is not nn.Module)
    return any(base.__module__.startswith("torch.nn.modules.") for base in bases)
