"""A figure, and what stands under it."""

from __future__ import annotations

from typing import NamedTuple

from matplotlib.figure import Figure

__all__ = ["Picture"]


class Picture(NamedTuple):
    """A figure of a report.

    Attributes:
        name: its file's, without a suffix.
        figure: itself.
        alt: what it shows, in words, for those who cannot see it.
        caption: what to make of it.
    """

    name: str
    figure: Figure
    alt: str
    caption: str
