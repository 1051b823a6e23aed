"""Policies: which channels execute next, given what was seen of them. One file each.

Outside this folder nobody names a concrete policy; `parse` builds one from its text form.
"""

import functools
from collections.abc import Hashable, Mapping

from fxprune import registry
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
        OptionError: the name or an option is unknown, or a value is out of range.

    >>> parse("cucb{c=0.5}")
    Cucb(c=0.5, discount=1.0, saliency='batch', warmup=0)
    """
    if isinstance(policy, Policy):
        return policy
    return registry.from_text(policy, known(), "policy")
