"""Names of `fxprune.channels.graph`, for code that was written when they stood here."""

from fxprune.channels.graph import ChannelGraph, Layout, Widths

__all__ = ["ChannelGraph", "Layout", "Widths"]
