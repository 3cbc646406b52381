"""The look of all figures, and their conversion to PNG and SVG.

Colours are those of Okabe & Ito, which can be told apart with any common colour vision. A line
style, a marker or a hatch repeats what each colour means, for print in grey. Figures are made
without pyplot, which would keep them in memory and may ask for a display.
"""

from __future__ import annotations

import io
import unicodedata
import warnings
from typing import Literal, NamedTuple

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

__all__ = [
    "BLACK",
    "BLUE",
    "GREEN",
    "GREY",
    "ORANGE",
    "VERMILION",
    "CaptionedFigure",
    "blank",
    "display_width",
    "label",
    "panels",
    "render",
    "tidy",
    "tiles",
]

BLACK, GREY = "#000000", "#767676"
BLUE, VERMILION, GREEN = "#0072B2", "#D55E00", "#009E73"
ORANGE = "#E69F00"

GAP, LINE = 0.12, 0.16
"""Inches between images, and inches for a line of a title in 9 points."""


class CaptionedFigure(NamedTuple):
    """A figure of a report.

    Attributes:
        name: name of its files, without the suffix.
        figure: the figure itself.
        alt: text for those who cannot see it: what it shows.
        caption: text below it: how to read it.
    """

    name: str
    figure: Figure
    alt: str
    caption: str


def blank(
    width: float, height: float, layout: Literal["constrained"] | None = "constrained"
) -> Figure:
    """Return an empty figure; sizes are in inches."""
    figure = Figure(figsize=(width, height), layout=layout, facecolor="white")
    FigureCanvasAgg(figure)
    return figure


def panels(*titles: str, width: float = 8.0, height: float = 3.4) -> tuple[Figure, list[Axes]]:
    """Return a figure with a panel for each title, side by side; sizes are in inches."""
    figure = blank(width, height)
    axes = [figure.add_subplot(1, len(titles), i + 1) for i in range(len(titles))]
    for ax, title in zip(axes, titles, strict=True):
        ax.set_title(title, fontsize=11, loc="left")
        tidy(ax)
    return figure, axes


def tidy(ax: Axes) -> None:
    """Remove the top and right lines of a panel, and draw a light grid behind its content."""
    ax.spines[["top", "right"]].set_visible(False)
    ax.grid(visible=True, color="#e0e0e0", linewidth=0.6)
    ax.set_axisbelow(True)


def tiles(
    count: int, columns: int, side: float, shape: tuple[int, ...], lines: int, below: float = 0.0
) -> tuple[Figure, list[Axes]]:
    """Return a figure with rows of axes for images, each with space for a title above it.

    Positions are computed here: matplotlib's constrained layout takes half a second for 20 axes,
    and finds no layout where the titles are wider than the images.

    Args:
        count: number of images.
        columns: most images side by side.
        side: inches for the width of each, and for the longer side of its image.
        shape: pixels of an image, (..., H, W).
        lines: lines of a title.
        below: inches left free at the bottom.
    """
    columns = min(columns, count)
    rows = -(-count // columns)
    pixel = (side - GAP) / max(shape[-2:])  # inches
    wide, tall = pixel * shape[-1], pixel * shape[-2]
    step = tall + lines * LINE + GAP
    width, height = side * columns, step * rows + below
    figure, axes = blank(width, height, None), []
    for i in range(count):
        row, column = divmod(i, columns)
        left, bottom = side * column + (side - wide) / 2, height - step * (row + 1) + GAP / 2
        axes.append(figure.add_axes((left / width, bottom / height, wide / width, tall / height)))
        axes[-1].axis("off")
    return figure, axes


def label(name: str, limit: int = 24) -> str:
    """Return a name from the data as a figure can show it: on one line, as plain text.

    Between two dollars, matplotlib would read a formula, and raise if it is none. With a control
    character, no browser would read the SVG. A name wider than ``limit`` columns keeps its
    beginning and its end, as related names often differ only in their end.
    """
    text = "".join(c if c.isprintable() else "\ufffd" for c in name)
    if display_width(text) > limit:
        head, tail = text[:limit], text[-limit:]
        while display_width(head) > limit // 2:
            head = head[:-1]
        while display_width(tail) > (limit - 1) // 2:
            tail = tail[1:]
        text = f"{head}…{tail}"
    return text.replace("$", r"\$")


def display_width(text: str) -> int:
    """Return the width of a text in columns; East Asian characters take two each."""
    return sum(2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in text)


def render(figure: Figure, kind: str) -> bytes:
    """Return a figure as the content of a file: "png" or "svg".

    The same figure gives the same bytes: they contain no date and no random name.
    """
    content = io.BytesIO()
    metadata = {"Date": None} if kind == "svg" else {}
    with matplotlib.rc_context({"svg.hashsalt": "softmax_torch"}), warnings.catch_warnings():
        # Characters that the font lacks are drawn as boxes.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        figure.savefig(content, format=kind, dpi=150, metadata=metadata)
    return content.getvalue()
