"""Regions of interest, ops of torchvision: boxes [K, 5] of features [N, C, H, W], to [K, C, …]."""

from fxprune.rules.base import Call, Context, Family, Rule


class RegionPool(Rule):
    """Pools each channel of the features inside of each box."""

    keys = ("torchvision::roi_align", "torchvision::roi_pool")

    def __call__(self, context: Context, call: Call) -> None:
        channels = _channels_of(context, call)
        families = [family for family in context.of(call["rois"]) if family.dim == 0]
        if channels is not None:
            families.append(channels)
        for result in call.results():
            context.carry(result, families)


class PositionRegionPool(Rule):
    """Pools each position [i, j] of a box from a channel of its own: [K, C / (h w), h, w]."""

    keys = ("torchvision::ps_roi_align", "torchvision::ps_roi_pool")

    def __call__(self, context: Context, call: Call) -> None:
        channels = _channels_of(context, call)
        families = [family for family in context.of(call["rois"]) if family.dim == 0]
        pooled, mapping = call.results()
        if channels is not None:
            made = context.couple_within_rows(channels.labels, pooled.shape[1])
            families.append(Family(1, made))
        context.carry(pooled, families)
        context.carry(mapping, families)


def _channels_of(context: Context, call: Call) -> Family | None:
    """Return the features' channels; pin what else varies along channels."""
    x, rois = call["input"], call["rois"]
    for family in context.of(x):
        if family.dim != 1:
            context.pin(family.labels, "boxes choose along this dimension")
    for family in context.of(rois):
        if family.dim == 1:
            context.pin(family.labels, "the channels are coordinates of boxes")
    labels = context.along(x, 1)
    return None if labels is None else Family(1, labels)
