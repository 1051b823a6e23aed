"""Policies: which channels execute next, given what was seen of them. One file each.

Outside this folder nobody names a concrete policy; `parse` builds one from its text form.
"""

import functools
from collections.abc import Hashable, Mapping

from fxprune import registry
from fxprune.errors import OptionError
from fxprune.policies.base import Policy
from fxprune.policies.select import keep_slots, top

__all__ = ["Policy", "keep_slots", "known", "parse", "top"]


@functools.cache
def known() -> Mapping[Hashable, type[Policy]]:
    """Map all policies by name."""
    return registry.collect("fxprune.policies", Policy)  # type: ignore[type-abstract]


def parse(policy: str | Policy) -> Policy:
    """Build a policy from `name` or `name{option=value,…}`; a `Policy` is taken as it is.

    Raises:
        OptionError: the name or an option is unknown, a value is out of range, or a `Policy` has no
            text form by which it could be built again.

    >>> parse("cucb{c=0.5}")
    Cucb(c=0.5, discount=1.0, saliency='batch', warmup=0)
    """
    every = registry.known("fxprune.policies", Policy)  # type: ignore[type-abstract]
    if not isinstance(policy, Policy):
        return registry.from_text(policy, every, "policy")
    kind = type(policy)
    named = every.get(next(iter(kind.keys), None), Policy)
    if (named.__module__, named.__qualname__) != (kind.__module__, kind.__qualname__):
        raise OptionError(
            f"the policy {kind.__name__} has no name of its own",
            why="what is saved of a network names its policy",
            do=f'give the class one: keys = ("{kind.__name__.lower()}",)',
        )
    text = registry.to_text(policy)
    if registry.to_text(registry.from_text(text, every, "policy")) != text:
        raise OptionError(
            f"the policy {text} cannot be built again from this text",
            why="what is saved of a network holds it in this form",
            do="make its options fields of the dataclass: numbers, truth values, words",
        )
    return policy
