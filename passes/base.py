"""Passes: each requires something of a program, makes another, and ensures something of that.

A pass is a frozen dataclass whose fields are its options. It never edits the program it is
given; it returns another. `ensures` compares the two.
"""

import abc
import contextlib
import sys
from collections.abc import Hashable, Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, fx, nn

from fxprune.channels.graph import ChannelGraph
from fxprune.equivalence import SAME, difference
from fxprune.errors import FxpruneError, PassError, described
from fxprune.gated.module import GatedModule
from fxprune.tracing.signature import of_tensors
from fxprune.tracing.snapshot import forgetting

# Largest difference of an output, as a share of its largest value, that rounding explains where a
# pass computes in another order (folded batch norms); by the coarsest type of the parameters.
TOLERANCE = {torch.float16: 1e-2, torch.bfloat16: 5e-2}


@dataclass(frozen=True, eq=False)
class Program:
    """A network on its way through the compiler.

    Attributes:
        module: the network; the user's own at first, then traced, gated or compact.
        inputs: example inputs, the batch first.
        channels: the channel dependency graph, once it is known.
    """

    module: nn.Module
    inputs: tuple[Tensor, ...]
    channels: ChannelGraph | None = None

    @property
    def graph_module(self) -> fx.GraphModule:
        """The network, once it is traced."""
        assert isinstance(self.module, fx.GraphModule)
        return self.module


class Pass(abc.ABC):
    """One step from program to program."""

    keys: ClassVar[tuple[Hashable, ...]]

    @property
    def name(self) -> str:
        """Its first key; the class's name for one from outside, which needs none."""
        return str(next(iter(getattr(self, "keys", ())), type(self).__name__))

    @abc.abstractmethod
    def requires(self, program: Program) -> None:
        """Raise an FxpruneError where the pass cannot work on `program`."""

    @abc.abstractmethod
    def run(self, program: Program) -> Program:
        """Return the changed program; the given one stays as it is."""

    @abc.abstractmethod
    def ensures(self, before: Program, after: Program) -> None:
        """Check the pass's promise on its result; raise AssertionError where it is broken.

        Args:
            before: what the pass was given; it has not changed.
            after: what `run` returned.
        """

    def __call__(self, program: Program) -> Program:
        """Run the pass, with `requires` before it and the graph's lint and `ensures` after it.

        Raises:
            FxpruneError: as `requires` has it.
            PassError: the result is no sound graph, or not what the pass promises.
        """
        with _outside_of_inference_mode(), _compiled_parts_run_as_written():
            self.requires(program)
            result: Any = self.run(program)
            if not isinstance(result, Program) or not isinstance(result.module, fx.GraphModule):
                made = result.module if isinstance(result, Program) else result
                raise PassError(
                    f"run() of the pass {self.name} returns {described(made)}",
                    do="return a Program with a GraphModule: dataclasses.replace(program, "
                    "module=module)",
                )
            try:
                result.graph_module.graph.lint()
                self.ensures(program, result)
            except FxpruneError:
                raise
            except (AssertionError, RuntimeError) as error:  # the latter from lint
                raise PassError(
                    f"the result of the pass {self.name} is not what it promises",
                    why=str(error) or f"an assertion of {type(self).__name__}.ensures failed",
                    do="leave the pass out, or correct its run()",
                ) from error
            found: Program = result
            return found


def _outside_of_inference_mode() -> contextlib.AbstractContextManager[Any]:
    """Return a context in which PyTorch takes composite ops apart, as it does not in that mode."""
    inside = torch.is_inference_mode_enabled()
    return torch.inference_mode(False) if inside else contextlib.nullcontext()


@contextlib.contextmanager
def _compiled_parts_run_as_written() -> Iterator[None]:
    """Let what torch.compile has wrapped run its own Python code, also while it is traced."""
    dynamo = sys.modules.get("torch._dynamo")
    if dynamo is None:  # nothing is compiled; to import it takes a second
        yield
        return
    nested = dynamo.config.patch(error_on_nested_fx_trace=False)
    with nested, torch.compiler.set_stance("force_eager"):
        yield


def assert_same_function(before: Program, after: Program) -> None:
    """Assert that two networks in evaluation mode compute the same on random inputs.

    The inputs are drawn in the likeness of `before.inputs`. Buffers that a forward writes to are
    put back, and what the user's own code keeps is after each call. Nothing is compared where there
    are no example inputs, on the meta device, or where `before` does not compute the same twice.

    Raises:
        AssertionError: an output differs by more than rounding, or `after` raises.
    """
    parameter = next(before.module.parameters(), torch.empty(0, device="cpu"))
    with contextlib.ExitStack() as stack:
        for network in (before.module, after.module):
            stack.enter_context(_buffers_kept(network))
            stack.enter_context(_forward_of_its_own(network))
        try:
            ours = forgetting(before.module, of_tensors(before.module))
            theirs = forgetting(after.module, of_tensors(after.module))
            gap = difference(ours, theirs, before.inputs, parameter.device)
        except Exception as error:  # `before` itself ran
            raise AssertionError(f"it raises {type(error).__name__}: {error}") from error
    types = {tensor.dtype for tensor in before.module.parameters()}
    most = max((TOLERANCE.get(dtype, SAME) for dtype in types), default=SAME)
    assert gap is None or gap <= most, (
        f"on random inputs an output differs by {gap:.1e} of its largest value, "
        f"more than {most:.0e}"
    )


@contextlib.contextmanager
def _forward_of_its_own(module: nn.Module) -> Iterator[None]:
    """Take away, within the block, what stands for a module's forward: accelerate's autocast."""
    replaced = vars(module).pop("forward", None)
    try:
        yield
    finally:
        if replaced is not None:
            vars(module)["forward"] = replaced


@contextlib.contextmanager
def _buffers_kept(module: nn.Module) -> Iterator[None]:
    """Restore the values of buffers that change within the block.

    Those in the bank of a gated network are among them, which its evaluation shows.
    """
    buffers = list(module.buffers())
    if isinstance(module, GatedModule):
        dense = module.bank.dense
        buffers += (dense[name] for name, _ in module.named_buffers() if name in dense)
    kept = [(buffer, buffer.detach().clone()) for buffer in buffers]
    try:
        yield
    finally:
        with torch.no_grad():
            for buffer, values in kept:
                if not torch.equal(buffer, values):  # a copy counts as a write, for a backward
                    buffer.copy_(values)
