"""Mixtures by position: a copy that was averaged with networks that trained apart from its source.

Model soups average the parameters of several networks. Two gated networks that trained apart
execute other channels in the same slots, so `mean.lerp_(other, 0.5)` mixes channels. Where a copy
differs from its source s by a combination of others' differences from it, t1 (o1 - s) + t2 (o2 - s)
..., to rounding, that is what was done.
"""

import warnings
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from fxprune.errors import FxpruneWarning, message

_ROUNDING = 1e-4
_MANY = 4096  # elements are compared


def is_mixed(copy: nn.Module, source: nn.Module, others: Sequence[nn.Module]) -> bool:
    """Tell whether a copy was averaged with networks that trained apart from its source.

    The largest of its parameters tells; networks that have no such parameter are passed over.
    """
    parameters = {name: p for name, p in copy.named_parameters() if not p.is_meta}
    if not others or not parameters:
        return False
    name = max(parameters, key=lambda name: parameters[name].numel())
    own = parameters[name]
    first, *apart = (dict(network.named_parameters()).get(name) for network in (source, *others))
    alike = [w for w in apart if w is not None and w.shape == own.shape and not w.is_meta]
    if first is None or first.shape != own.shape or not alike:
        return False
    return is_mixture(own, first, alike)


@torch.no_grad()
def is_mixture(copy: Tensor, source: Tensor, others: Sequence[Tensor]) -> bool:
    """Tell whether a weight differs from its source by a combination of the others' differences.

    Args:
        copy: float [any shape].
        source: likewise, as are the others.
        others: the same weight of networks that trained apart.
    """
    own, first, *rest = (w.flatten()[:_MANY].cpu().double() for w in (copy, source, *others))
    changed, apart = own - first, torch.stack([other - first for other in rest], 1)
    known = changed.isfinite().all() and apart.isfinite().all()
    if not known or not changed.any() or apart.shape[0] < 4 * apart.shape[1]:
        return False
    shares = torch.linalg.lstsq(apart, changed[:, None], driver="gelsd").solution
    left = changed - (apart @ shares).flatten()
    return bool(left.norm() <= _ROUNDING * changed.norm())


def warn_of_mixture() -> None:
    """Warn of it."""
    text = message(
        "a copy of a gated network was averaged with a network that trained apart",
        why="the two execute other channels in the same slots of their parameters, so the average "
        "mixes channels",
        do="average the dense_state_dict() of both, load that into the model, and instrument it",
    )
    warnings.warn(text, FxpruneWarning, stacklevel=2)
