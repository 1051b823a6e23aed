"""The mode while a model is traced: a proxy for `self.training`, of all modules.

The evaluation graph has a node for it wherever the code hands the mode on, as in
`F.dropout(x, p, self.training)`. Where the code branches on it, the trace depends on the mode, and
the model is traced for each.
"""

from typing import Any, Self

from torch import fx, nn

from fxprune.tracing.proxies import MODE, KnowingTracer


class ModeWatch:
    """Stands for the attribute `training` of all modules; code that is traced gets a proxy.

    Attributes:
        branched: whether the trace depends on the mode by more than handing it on.
    """

    def __init__(self) -> None:
        self.branched = False
        self._tracer: KnowingTracer | None = None

    def follow(self, tracer: KnowingTracer) -> None:
        """Return this tracer's proxies for `module.training` until a trace has failed with them."""
        self._tracer = None if self.branched else tracer

    def give_up(self) -> bool:
        """Return the true mode from now on; tell whether that may help a trace that failed."""
        used = self._tracer is not None and bool(self._tracer.modes)
        self.branched |= used
        return used

    def __enter__(self) -> Self:
        nn.Module.training = self  # type: ignore[assignment]
        return self

    def __exit__(self, *_: object) -> None:
        del nn.Module.training

    def __get__(self, module: nn.Module | None, owner: type) -> Any:
        if module is None:
            return self
        if self._tracer is not None and not self._tracer.looking:
            return self._tracer.mode()
        own = module.__dict__
        return own["training"] if "training" in own else module.__getattr__("training")

    def __set__(self, module: nn.Module, mode: bool) -> None:
        module.__dict__["training"] = mode


def settle_mode(graph: fx.Graph, training: bool) -> None:
    """Set a value for the nodes that stand for the mode."""
    modes = graph.find_nodes(op="get_attr", target=MODE)

    def settled(node: fx.Node) -> Any:
        return training if node in modes else node

    for mode in modes:
        for user in list(mode.users):
            user.args, user.kwargs = fx.map_arg((user.args, user.kwargs), settled)
        graph.erase_node(mode)


def has_its_own_modes(module: nn.Module) -> bool:
    """Tell whether changing the mode may change more than the attribute `training`."""
    return type(module).train is not nn.Module.train or type(module).eval is not nn.Module.eval
