"""How a network is called: the example inputs as a tree, options, and the class of the outputs.

A traced graph takes tensors and returns plain tuples, lists and dicts of tensors. The user's
forward may take lists, dicts, keywords and options, and return objects of its own classes. A
`Signature` translates between the two, in the generated code of the graph.
"""

import dataclasses
import functools
import inspect
import re
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Self

from torch import Tensor, fx, nn
from torch.fx.graph import CodeGen

from fxprune.equivalence import leaves, parts
from fxprune.errors import TraceError
from fxprune.tracing.objects import flatten, remade, unflatten

_EMPTY = inspect.Parameter.empty


class Signature:
    """Translates calls of the user's forward to calls of a graph, and its outputs back.

    Attributes:
        parameters: the signature of the user's forward, without `self`.
        names: the name of each tensor among the example inputs, in the graph's order.
        inputs: the tensors of the example.
    """

    def __init__(self, model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        """Read the signature of a model and fit the example inputs to it.

        Raises:
            TraceError: forward does not take these inputs.
        """
        self.parameters = _parameters(model)
        try:
            bound = self.parameters.bind(*args, **kwargs).arguments
        except TypeError as error:
            needed = sum(p.default is _EMPTY for p in self.parameters.parameters.values())
            what = f"takes {needed} input{'s' * (needed != 1)}, not {len(args)}"
            raise TraceError(
                f"{type(model).__name__}.forward " + (str(error) if kwargs else what),
                do="give one example tensor for each input, the batch first",
            ) from error
        paths, self._spec = flatten(bound)
        self._paths = [path for path, _ in paths]
        self._example = [None if isinstance(leaf, Tensor) else leaf for _, leaf in paths]
        self._tensors = [index for index, (_, x) in enumerate(paths) if isinstance(x, Tensor)]
        self.inputs: tuple[Tensor, ...] = tuple(x for _, x in paths if isinstance(x, Tensor))
        self.names = _unique([self._name(paths[index][0]) for index in self._tensors])
        self._given = frozenset(bound)

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return self  # nothing in it changes

    @property
    def is_plain(self) -> bool:
        """Whether the graph is called just as the user's forward."""
        kinds = {parameter.kind for parameter in self.parameters.parameters.values()}
        positional = kinds <= {inspect.Parameter.POSITIONAL_OR_KEYWORD}
        every = self.names == list(self.parameters.parameters)
        return positional and every

    @property
    def options(self) -> list[Any]:
        """What the example has beside tensors."""
        return [leaf for n, leaf in enumerate(self._example) if n not in self._tensors]

    def is_like(self, other: "Signature") -> bool:
        """Tell whether another call of the same forward differs by its tensors alone."""
        pairs = zip(self.options, other.options, strict=False)
        return self._spec == other._spec and all(_same(*pair) for pair in pairs)

    def annotation(self, name: str) -> Any:
        """Return the annotation of an input that is a parameter by itself, or None."""
        parameter = self.parameters.parameters.get(name)
        if parameter is None or parameter.annotation is _EMPTY:
            return None
        variadic = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
        return None if parameter.kind in variadic else parameter.annotation

    def unflatten(self, tensors: Sequence[Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Return the positional and keyword arguments of forward that hold these tensors."""
        bound = inspect.BoundArguments(self.parameters, OrderedDict(self._with(tensors)))
        return bound.args, bound.kwargs

    def _with(self, tensors: Sequence[Any]) -> Any:
        """Return the arguments of the example by name, with these tensors in them."""
        given = list(self._example)
        for index, tensor in zip(self._tensors, tensors, strict=True):
            given[index] = tensor
        return unflatten(given, self._spec)

    def caller(self, network: Callable[..., Any]) -> Callable[..., Any]:
        """Return the network as a function of the tensors alone, in the graph's order."""

        def call(*tensors: Any) -> Any:
            args, kwargs = self.unflatten(tensors)
            return network(*args, **kwargs)

        return call

    def flatten(self, inputs: Any) -> tuple[Tensor, ...]:
        """Return the tensors of inputs that look like the example: a tuple, or a dict of keywords.

        A tuple of as many tensors as the graph takes is these tensors.
        """
        if isinstance(inputs, Mapping):
            return tuple(self.bind((), inputs))
        inputs = tuple(inputs)
        flat = all(isinstance(x, Tensor) for x in inputs) and len(inputs) == len(self.names)
        return inputs if flat else tuple(self.bind(inputs, {}))

    def bind(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> list[Any]:
        """Return the tensors of a call, in the graph's order.

        Raises:
            TypeError: forward does not take these arguments, or an option differs from what was
                traced.
        """
        given = self.parameters.bind(*args, **kwargs).arguments
        known = {name: given[name] for name in given if name in self._given}
        for name in given:
            if name not in self._given:
                self._refuse_unless_default(name, given[name])
        paths, spec = flatten(known)
        if spec != self._spec:
            raise TypeError(self._difference(known))
        found_leaves = [leaf for _, leaf in paths]
        for index, (wanted, found) in enumerate(zip(self._example, found_leaves, strict=True)):
            if index in self._tensors:
                if not isinstance(found, Tensor):
                    raise TypeError(f"{self._of(index)} has to be a tensor, not {found!r}")
            elif not _same(wanted, found):
                raise TypeError(_otherwise(self._of(index), wanted, found))
        return [found_leaves[index] for index in self._tensors]

    def _of(self, index: int) -> str:
        return self._name(self._paths[index])

    def _refuse_unless_default(self, name: str, value: Any) -> None:
        parameter = self.parameters.parameters[name]
        if parameter.kind is inspect.Parameter.VAR_KEYWORD:
            for option, found in value.items():
                raise TypeError(_otherwise(option, _EMPTY, found))
        if parameter.kind is inspect.Parameter.VAR_POSITIONAL:
            if value:
                raise TypeError(f"{len(value)} more inputs than the example had are given")
        elif not _same(parameter.default, value):
            raise TypeError(_otherwise(name, parameter.default, value))

    def _difference(self, known: Mapping[str, Any]) -> str:
        wanted = self._with(self.inputs)
        for name in wanted:
            if name not in known:
                return f"the network was traced with the input {name}, which is not given"
            if flatten(known[name])[1] != flatten(wanted[name])[1]:
                if isinstance(known[name], Mapping) and isinstance(wanted[name], Mapping):
                    for option in known[name].keys() - wanted[name].keys():
                        return _otherwise(option, _EMPTY, known[name][option])
                return f"{name} has another structure than in the example inputs"
        return "the inputs have another structure than the example inputs"

    def _name(self, path: tuple[Any, ...]) -> str:
        """Return a name for the tensor at a path, such as `inputs_0`; keywords have their own."""
        keys = [_key(entry) for entry in path]
        parameter = self.parameters.parameters[keys[0]]
        if parameter.kind is inspect.Parameter.VAR_KEYWORD:
            keys = keys[1:]
        name = re.sub(r"\W", "_", "_".join(keys))
        return name if name.isidentifier() else f"input_{name}"


class CallCodeGen(CodeGen):
    """Generates a forward that takes and returns what the user's forward does.

    Attributes:
        signature: how the user's forward is called.
        output: what it returns; None where the graph returns the same.
    """

    def __init__(self, signature: Signature, output: "Output | None" = None) -> None:
        super().__init__()
        self.signature, self.output = signature, output

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return self  # nothing in it changes

    def additional_globals(self) -> list[tuple[str, Any]]:
        """Return what the generated code uses beside the graph's own."""
        return [("fxprune_signature", self.signature), ("fxprune_output", self.output)]

    def gen_fn_def(self, free_vars: list[str], maybe_return_annotation: str, **_: Any) -> str:
        """Return the function's head, and the line that finds tensors among its arguments."""
        del maybe_return_annotation  # that of the graph's plain output
        names = [name.partition(":")[0].strip() for name in free_vars if name != "self"]
        leading = []
        for parameter, name in zip(self.signature.parameters.parameters.values(), names):
            if parameter.kind is not parameter.POSITIONAL_OR_KEYWORD or parameter.name != name:
                break
            leading.append(name)
        head = ", ".join(("self", *leading, "*args", "**kwargs"))
        given = "".join(f"{name}, " for name in leading)
        if self.signature.is_plain:
            return f"def {self._func_name}({', '.join(('self', *leading))}):"
        if names == leading:  # nothing to look for unless there are options
            check = f"if args or kwargs: fxprune_signature.bind(({given}*args,), kwargs)"
            return f"def {self._func_name}({head}):\n    {check}"
        targets = ", ".join(names)
        found = f"fxprune_signature.bind(({given}*args,), kwargs)"
        return f"def {self._func_name}({head}):\n    {targets}, = {found}"

    def generate_output(self, output_args: Any, **options: Any) -> str:
        """Write the return statement."""
        plain = super().generate_output(output_args, **options)
        if self.output is None:
            return plain
        return f"return fxprune_output.rebuild({plain.removeprefix('return ')})"


def signature_of(network: object) -> Signature | None:
    """Return the signature of a network that is not called like its graph; None for all others."""
    graph = network.graph if isinstance(network, fx.GraphModule) else None
    codegen = None if graph is None else graph._codegen
    return codegen.signature if isinstance(codegen, CallCodeGen) else None


def of_tensors(network: nn.Module) -> Callable[..., Any]:
    """Return a network as a function of the tensors alone, in the order of its graph."""
    signature = signature_of(network)
    call: Callable[..., Any] = network
    if isinstance(network, fx.GraphModule):  # whose own call prints an error before it is raised
        call = functools.partial(nn.Module.__call__, network)
    return call if signature is None else signature.caller(call)


def flat_inputs(network: nn.Module, inputs: Any) -> tuple[Tensor, ...]:
    """Return the tensors among a network's inputs, in the order in which it takes them.

    Raises:
        TraceError: `inputs` holds no tensor, or forward does not take them.
    """
    args, kwargs = example_arguments(tuple(inputs) if isinstance(inputs, list) else inputs)
    signature = signature_of(network)
    if signature is None:
        return Signature(network, args, kwargs).inputs
    return signature.flatten(kwargs or args)


def flat_network(network: nn.Module) -> nn.Module:
    """Make a network a function of its tensors alone, in place, with plain outputs."""
    if signature_of(network) is not None:
        assert isinstance(network, fx.GraphModule)
        network.graph.set_codegen(CodeGen())
        network.recompile()
    return network


def _parameters(model: nn.Module) -> inspect.Signature:
    """Return the signature of a model's forward without `self`."""
    return inspect.signature(model.forward)


def _key(entry: Any) -> str:
    for attribute in ("key", "idx", "name"):
        if hasattr(entry, attribute):
            return str(getattr(entry, attribute))
    return str(entry)


def _unique(names: list[str]) -> list[str]:
    return [
        name if names.count(name) == 1 else f"{name}_{names[:index].count(name)}"
        for index, name in enumerate(names)
    ]


def _same(wanted: Any, found: Any) -> bool:
    if wanted is found:
        return True
    return type(wanted) is type(found) and bool(wanted == found)


def _otherwise(name: str, wanted: Any, found: Any) -> str:
    was = "without it" if wanted is _EMPTY else f"with {name}={wanted!r}"
    shown = "a tensor" if isinstance(found, Tensor) else repr(found)
    return (
        f"{name}={shown} is given, but the network was traced {was}: instrument it with the "
        f"option among the example inputs (example_kwargs={{{name!r}: …}})"
    )


# --- outputs of the user's own classes ---------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class _TensorNumber:
    """Stands for the tensor of this number in a prototype of the outputs."""

    number: int


class Output:
    """Makes objects of the user's own classes of a graph's plain outputs."""

    def __init__(self, result: Any) -> None:
        """Take what forward returned as the pattern."""
        tensors: list[Any] = []
        self._prototype = _map(result, lambda leaf: _numbered(leaf, tensors))

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return self  # nothing in it changes

    def rebuild(self, plain: Any) -> Any:
        """Return what forward returns, with these tensors in it."""
        tensors = [leaf for leaf in leaves(plain) if leaf is not None]
        return _map(self._prototype, lambda x: tensors[x.number] if type(x) is _TensorNumber else x)


def pack(result: Any) -> tuple[Any, Output | None]:
    """Turn what forward returns into tuples, lists and dicts of tensors.

    Returns:
        These, and how to make the result of them; None where they are the result.
    """
    return (result, None) if _is_plain(result) else (_plain(result), Output(result))


def _is_leaf(value: Any) -> bool:
    return isinstance(value, (Tensor, fx.Proxy, _TensorNumber))


def _numbered(leaf: Any, tensors: list[Any]) -> Any:
    if not _is_leaf(leaf):
        return leaf
    tensors.append(leaf)
    return _TensorNumber(len(tensors) - 1)


def _is_plain(value: Any) -> bool:
    """Tell whether a graph can return it as it is."""
    if type(value) in (tuple, list):
        return all(map(_is_plain, value))
    if type(value) is dict:
        return all(map(_is_plain, value.values()))
    named = isinstance(value, tuple) and hasattr(value, "_fields")
    return _is_leaf(value) or value is None or (named and all(map(_is_plain, value)))


def _plain(value: Any) -> Any:
    """Return the tensors of a value in plain containers, in the same order."""
    if _is_leaf(value):
        return value
    if isinstance(value, (tuple, list)):
        return tuple(_plain(part) for part in value)
    if (named := parts(value)) is not None:
        return {str(key): _plain(part) for key, part in named.items() if _holds_tensors(part)}
    return None


def _holds_tensors(value: Any) -> bool:
    return any(map(_is_leaf, leaves(value)))


def _map(value: Any, change: Callable[[Any], Any]) -> Any:
    """Return a copy of a value, with its leaves changed, in order."""
    if _is_leaf(value):
        return change(value)
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*[_map(part, change) for part in value])
    if isinstance(value, (tuple, list)):
        return type(value)(_map(part, change) for part in value)
    named = None if isinstance(value, type) else parts(value)
    if named is None:
        return value
    changed = {key: _map(part, change) for key, part in named.items()}
    if type(value) in (dict, OrderedDict):
        return type(value)(changed)
    return remade(value, changed)


def example_arguments(
    inputs: object, kwargs: Mapping[str, Any] | None = None
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return the positional and keyword arguments that example inputs stand for.

    Args:
        inputs: a tuple of positional arguments, the only one, or a dict of keyword arguments.
        kwargs: more keyword arguments.

    Raises:
        TraceError: there is no tensor among them, or `inputs` is something else.
    """
    if not isinstance(kwargs, Mapping | None):
        raise TraceError(
            f"example_kwargs must be a dict, not {type(kwargs).__name__}",
            do='write {"name": value} for arguments that forward takes by name',
        )
    named = dict(kwargs or {})
    if isinstance(inputs, Tensor):
        inputs = (inputs,)
    if isinstance(inputs, Mapping):
        return _checked((), {**inputs, **named})
    if isinstance(inputs, tuple):
        return _checked(inputs, named)
    raise TraceError(
        f"example inputs must be a tensor or a tuple of tensors, not {type(inputs).__name__}",
        do="write (x, y) for several inputs, or a dict for keywords",
    )


def _checked(
    args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    leaves = [leaf for _, leaf in flatten((args, kwargs))[0]]
    taken = "what forward takes may be a tensor, or tensors in lists, tuples, dicts and dataclasses"
    if not any(isinstance(leaf, Tensor) for leaf in leaves):
        kinds = dict.fromkeys(type(leaf).__name__ for leaf in leaves)
        raise TraceError(
            "there is no tensor among the example inputs",
            why=f"they are of the kind {', '.join(kinds)}" if kinds else "",
            do=f"give tensors of the shapes that the model takes, such as torch.zeros(1, 3, 224, "
            f"224); {taken}",
        )
    for leaf in leaves:  # it would become a constant, with the example's values
        if isinstance(leaf, nn.Module) or not hasattr(leaf, "__dict__"):
            continue
        if any(isinstance(value, Tensor) for value in vars(leaf).values()):
            raise TraceError(
                f"an object of the class {type(leaf).__name__} among the example inputs holds "
                "tensors",
                do=taken,
            )
    return args, kwargs
