"""Tell from a module's source whether its code may reach a parameter that no run has used."""

from collections.abc import Set
from types import FunctionType

from torch import nn

from fxprune.analysis.reached_code import UNNAMED, code_of, hooks_of, named_in, named_outside
from fxprune.analysis.settled_conditions import SettledConditions
from fxprune.tracing.code_state import is_users, names_in

_LOOKS_UP = frozenset(
    {"getattr", "__getattribute__", "vars", "__dict__", "_modules", "_parameters", "_buffers"}
    | {"get_submodule", "get_parameter", "get_buffer", "state_dict", "apply"}
    | {"attrgetter", "methodcaller", "exec", "globals"}
    | {kind + of for kind in ("", "named_") for of in ("children", "modules", "parameters")}
)
"""Names of what finds a part by a name that does not stand in the code."""


def may_be_reached(module: nn.Module, name: str, settled: SettledConditions) -> bool:
    """Tell whether code of the modules around a parameter may use it.

    It may not where one of the names on the way to it stands in no code that runs with the
    arguments and flags as they are: `if labels is not None: self.embed(labels)`, without labels,
    or `if self.use_aux: self.aux(x)`.

    Args:
        module: the outermost module.
        name: the parameter's, from there.
        settled: what their methods meet alike in each call.
    """
    part, named, all_seen = module, set[str](), True
    for step in name.split("."):
        found, seen = _names_around(part, named, settled)
        named |= found
        all_seen &= seen
        if step not in named and _names_its_parts(type(part)):
            return not all_seen
        following = getattr(part, step)
        if not isinstance(following, nn.Module):
            break
        part = following
    return True


def _names_around(
    module: nn.Module, outer: Set[str], settled: SettledConditions
) -> tuple[set[str], bool]:
    """Collect the names that stand in a module's code: `forward` and what it calls.

    Args:
        module: the module.
        outer: names in the code of the modules around it, which may call its methods.
        settled: code that does not run under these conditions is left out.

    Returns:
        The names, and whether the code can find no part without naming it.
    """
    names, seen, all_seen = set[str](), set[FunctionType](), True
    waiting = [type(module).forward, vars(module).get("forward"), *hooks_of(module)]
    waiting += named_in(module, outer | UNNAMED)
    while waiting:
        for function in code_of(waiting.pop(), names | outer):
            if function is None:
                all_seen = False
            elif function not in seen:
                seen.add(function)
                found = set(names_in(settled.live(module, function)))
                names |= found
                waiting += (*named_in(module, found), *named_outside(function, found))
    return names, all_seen and not names & _LOOKS_UP


def _names_its_parts(kind: type) -> bool:
    """Tell whether a module's code names its parts; PyTorch's may run them all, as in a list."""
    own = (base for base in kind.__mro__ if issubclass(base, nn.Module) and base is not nn.Module)
    return all(map(is_users, own))
