"""Modules that keep their Python code, run with labels on each path that the code may take.

Meta tensors have no values. What the code asks of one (`if y.max() > 1:`, `y.tolist()`) is
answered by a run of the same code on real tensors, in the same order. Such a run takes one path
through the code; `code_paths` finds others.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from fxprune.analysis.answers import AnsweredReads, Answers, AsksForValuesError
from fxprune.analysis.code_paths import CodePath, code_paths, has_its_own_seed, own_modes, seeded
from fxprune.analysis.label_mode import LabelMode
from fxprune.analysis.mentions import may_be_reached
from fxprune.analysis.settled_conditions import SettledConditions
from fxprune.draws import Draws
from fxprune.rules.base import tensors_in
from fxprune.tracing.objects import held
from fxprune.tracing.snapshot import Snapshot

_ATOMS = (bool, int, float, str, type(None))


class OwnCode:
    """Run modules that keep their code, with labels, on each path through that code."""

    def __init__(
        self,
        mode: LabelMode,
        real: Mapping[int, Tensor],
        known: Mapping[str, list[CodePath]] | None,
    ) -> None:
        """Take the run's label mode, and for a compact network the code paths of the dense one.

        Args:
            mode: hands each ATen call to its rule.
            real: the network's own tensors, by the id of the meta tensors in their place.
            known: for a compact network, the code paths by the name of the node.
        """
        self.mode, self.context, self.real, self.known = mode, mode.context, real, known

    def run(self, name: str, module: nn.Module, args: Any, kwargs: Any) -> Any:
        """Run a module; `name` is that of its node.

        Where it is called again with the same labels in the same state, as on another path of the
        code around it, one of its paths ties no less than all of them.
        """
        context, key = self.context, (name, self._carried(args, kwargs))
        context.read(self.mode.graph, name, ())
        seen = context.explored.get(key, ())
        if context.choose(any(not snapshot.has_changed() for snapshot in seen)):
            paths = (context.code_paths if self.known is None else self.known)[name]
            return self._on_paths(module, paths[-1:], args, kwargs)
        snapshot = Snapshot(module)  # the code around it may set what it does by
        result = self._explored(name, module, args, kwargs)
        context.explored[key] = *seen, snapshot
        return result

    def _carried(self, args: Any, kwargs: Any) -> Any:
        """Describe what a module is given: two calls that are given the same tie the same."""

        def described(value: Any) -> Any:
            if not isinstance(value, Tensor):
                return (type(value), value) if isinstance(value, _ATOMS) else object()
            known = self.context.constant(value) if id(value) not in self.real else value
            families = self.context.of(value)
            labels = [(family.dim, family.labels, family.free) for family in families]
            return value.shape, value.dtype, known, *labels  # tensors are equal as objects here

        return tuple(map(described, pytree.tree_leaves((args, kwargs))))

    def _explored(self, name: str, module: nn.Module, args: Any, kwargs: Any) -> Any:
        """Run a module on each path through its code."""
        if self.known is not None and name in self.known:
            return self._on_paths(module, self.known[name], args, kwargs)
        context = self.context
        before, node = context.mark(), context.node
        paths = [CodePath(training=True), CodePath()]
        try:
            result = self._on_paths(module, paths, args, kwargs)
        except AsksForValuesError:
            context.go_back(before)
            context.node, begun = node, context.mark()
            paths = list(code_paths(module, self.real, args, kwargs))
            result = self._on_paths(module, paths, args, kwargs)
            if self._unseen(module):
                known = {path.key for path in paths}
                others = code_paths(module, self.real, args, kwargs, forms=True)
                paths = [*(path for path in others if path.key not in known), *paths]
                context.go_back(begun)
                context.node = node
                result = self._on_paths(module, paths, args, kwargs)
            self._pin_unseen(module, args, kwargs)
        context.code_paths[name] = paths
        return result

    def pin_around(self, module: nn.Module, args: Any, kwargs: Any, why: str) -> None:
        """Pin all that a module has and is given."""
        context = self.context
        near = [*tensors_in((args, kwargs)), *module.parameters(), *module.buffers()]
        labels = [family.labels for tensor in near for family in context.of(tensor)]
        if labels:
            context.pin(torch.cat(labels), why)

    def _on_paths(self, module: nn.Module, paths: list[CodePath], args: Any, kwargs: Any) -> Any:
        """Run a module's code on several paths; return the result of the last one.

        Paths on which the dense network does not run are taken off the list.
        """
        context, results, node = self.context, [], self.context.node
        snapshot = Snapshot(module)  # its code may keep tables that it makes at its first call
        seeds = False
        for path in list(paths):
            before, last = context.mark(), path is paths[-1]
            outer = self.mode.answers  # of the module whose code called this one
            context.node = node
            self.mode.answers = answers = Answers(path.answers or (), read=path.read)
            draws = seeded(path.seed, snapshot.generators)
            try:
                own = next(iter(self.real.values()), None)
                reads = AnsweredReads(self.mode.answers, self._looked_at, own)
                with own_modes(module, path.training), reads, self.mode:
                    first = module(*args, **kwargs)
                    keeps = snapshot.has_changed() if self.known is None else path.again
                    second = self._second(module, path, args, kwargs) if keeps else []
                    results += [*second, first]
                seeds = seeds or has_its_own_seed()
                if path.answers is None and Draws(snapshot.generators) != draws:
                    raise AsksForValuesError("the code draws random numbers")
                if answers.missed:
                    del results[-1]
                    raise AsksForValuesError("the code catches that it asks for values")
                if self.known is None:
                    found = replace(path, read=frozenset(answers.constant), again=bool(second))
                    paths[paths.index(path)] = found
            except Exception as error:
                asks = isinstance(error, AsksForValuesError) and path.answers is None
                if asks or last or self.known is not None:
                    raise
                context.go_back(before)
                paths.remove(path)
            finally:
                self.mode.answers = outer
                snapshot.restore()
            if not last:
                del context.products[before[0]["products"] :]
        context.node = node
        if seeds:  # fewer channels would draw other numbers
            self.pin_around(module, args, kwargs, "the code seeds the numbers that it draws")
        for result in results[:-1]:
            self._join(result, results[-1])
        return results[-1]

    def _second(self, module: nn.Module, path: CodePath, args: Any, kwargs: Any) -> list[Any]:
        """Call a module with what its first call has left in it, such as a state that it keeps.

        Returns:
            Its result; none where the dense network cannot be called twice.
        """
        context = self.context
        before = context.mark()
        try:
            return [module(*args, **kwargs)]
        except AsksForValuesError:
            raise
        except Exception:
            if path.again:
                raise
            context.go_back(before)
            return []
        finally:
            del context.products[before[0]["products"] :]

    def _looked_at(self, tensor: Tensor) -> None:
        """Pin the channels of a tensor that becomes numbers of Python's: labels end there."""
        self.context.pin_all([tensor], "the code reads their values in Python")

    def _join(self, other: Any, result: Any) -> None:
        """Couple what a module returns on one path with what it returns on another."""
        context = self.context
        several = [*(one := held(other, Tensor)), *(another := held(result, Tensor))]
        for tensor in several:
            context.use(tensor)
        pairs = list(zip(one, another, strict=False))
        alike = pytree.tree_structure(other) == pytree.tree_structure(result)
        alike = alike and len(one) == len(another)
        if not alike or any(a.shape != b.shape for a, b in pairs):
            context.pin_all(several, "the code returns one thing or another here")
            return
        for a, b in pairs:
            for dim in range(a.dim()):
                ours, theirs = context.along(a, dim), context.along(b, dim)
                context.meet(ours, theirs, "the code may return another tensor here")

    def _unseen(self, module: nn.Module) -> list[str]:
        """Name the parameters that no call has read."""
        known, named = self.context.read_by_calls, module.named_parameters(remove_duplicate=False)
        return [name for name, value in named if id(value) not in known]

    def _pin_unseen(self, module: nn.Module, args: Any, kwargs: Any) -> None:
        """Pin all around a module's code where no path was found to a parameter that it names."""
        unseen = self._unseen(module)
        if not unseen:
            return
        with SettledConditions(module) as settled:
            list(code_paths(module, self.real, args, kwargs))
        for name in unseen:
            if may_be_reached(module, name, settled):
                why = f"no path through the code here was found that uses {name}"
                self.pin_around(module, args, kwargs, why)
                return
