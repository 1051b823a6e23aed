"""Wrappers: what happens when a gated network becomes a part of another module.

Under DistributedDataParallel it becomes one of several equal replicas. The copies that averages
make (AveragedModel of torch.optim.swa_utils, timm's ModelEmaV3) follow the network's selections.
Both are recognised by themselves: PyTorch calls `_registered` for every module that becomes a child
of another. Whatever makes gated networks has to import this module. Wrappers that cut parameters
into shards are refused. By the same hooks a network learns that one of its own layers or parameters
was replaced, so that no step has to look for that.
"""

from typing import Any

from torch import fx, nn
from torch.nn.modules.module import (
    register_module_module_registration_hook,
    register_module_parameter_registration_hook,
)
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel

from fxprune.errors import GateError
from fxprune.gated import ddp
from fxprune.gated.averages import living
from fxprune.gated.bare_averages import GRAPHS
from fxprune.gated.followers import follow
from fxprune.gated.module import GatedModule

_TIMM = "timm.utils.model_ema"


def _note(parent: nn.Module, *_: Any) -> None:
    for network in living():
        network.note_registered(parent)


def _registered(parent: nn.Module, name: str, child: nn.Module | None) -> None:
    del name
    _note(parent)
    if isinstance(parent, fx.GraphModule):
        GRAPHS.add(parent)
    if child is None:
        return
    if isinstance(child, GatedModule):
        ddp.refuse_shards(parent)
    if isinstance(parent, DistributedDataParallel):
        for gated in _inside(child):
            gated.join(parent)
    elif isinstance(parent, AveragedModel):
        for copy in _inside(child):
            _average(copy)
    elif any(kind.__module__ == _TIMM for kind in type(parent).__mro__):
        for copy in _inside(child):
            _average(copy)
            hooked: Any = copy
            hooked.register_state_dict_pre_hook(_refusing(parent))


def _inside(module: nn.Module) -> list[GatedModule]:
    return [child for child in module.modules() if isinstance(child, GatedModule)]


def _average(copy: GatedModule) -> None:
    """Let the copy that an average has made follow what it is a copy of."""
    gated = copy.copied_from() if copy.copied_from is not None else None
    if isinstance(gated, GatedModule) and not copy.follows:
        follow(copy, gated)


def _refusing(parent: nn.Module) -> Any:
    """Return a hook that refuses timm's averages of state dicts, which hold bank and policy."""

    def refuse(module: GatedModule, *_: Any) -> None:
        if module.follows and not getattr(parent, "exclude_buffers", False):
            raise GateError(
                f"{type(parent).__name__} cannot average the state dict of a gated network",
                why="it holds the bank and the policy beside the weights",
                do="ModelEmaV3(gated, exclude_buffers=True), or AveragedModel of "
                "torch.optim.swa_utils",
            )

    return refuse


register_module_module_registration_hook(_registered)
register_module_parameter_registration_hook(_note)
