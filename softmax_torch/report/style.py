"""How pictures look, and how they come to disk.

Colours are those of Okabe & Ito, which people with any common colour vision tell apart; what they
mean is said by a line style, a marker or a hatch as well, for print in grey. Figures are made
without pyplot: nothing is kept between two of them, and no display is asked for.
"""

from __future__ import annotations

import io
import unicodedata
import warnings
from pathlib import Path
from typing import Literal

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
    "PURPLE",
    "VERMILION",
    "blank",
    "drawn",
    "label",
    "panels",
    "save",
    "tidy",
    "tiles",
    "width",
]

BLACK, GREY = "#000000", "#767676"
BLUE, VERMILION, GREEN = "#0072B2", "#D55E00", "#009E73"
ORANGE, PURPLE = "#E69F00", "#CC79A7"

SUFFIXES = (".png", ".svg")

GAP, LINE = 0.12, 0.16
"""Inches between pictures, and of a line of 9 points above one."""


def blank(
    width: float, height: float, layout: Literal["constrained"] | None = "constrained"
) -> Figure:
    """A figure with nothing in it; sizes are in inches."""
    figure = Figure(figsize=(width, height), layout=layout, facecolor="white")
    FigureCanvasAgg(figure)
    return figure


def panels(*titles: str, width: float = 8.0, height: float = 3.4) -> tuple[Figure, list[Axes]]:
    """A figure with a panel for each title, side by side; sizes are in inches."""
    figure = blank(width, height)
    axes = [figure.add_subplot(1, len(titles), i + 1) for i in range(len(titles))]
    for ax, title in zip(axes, titles, strict=True):
        ax.set_title(title, fontsize=11, loc="left")
        tidy(ax)
    return figure, axes


def tidy(ax: Axes) -> None:
    """No more lines than it takes."""
    ax.spines[["top", "right"]].set_visible(False)
    ax.grid(visible=True, color="#e0e0e0", linewidth=0.6)
    ax.set_axisbelow(True)


def tiles(
    count: int, columns: int, side: float, shape: tuple[int, ...], lines: int, below: float = 0.0
) -> tuple[Figure, list[Axes]]:
    """A figure of pictures in rows, each with a title above it, and without axes.

    Places are worked out here: what matplotlib finds for 20 axes takes half a second, and there is
    none where the titles are wider than the pictures.

    Args:
        count: how many.
        columns: how many side by side, at most.
        side: inches for the width of each, and for the longer side of its picture.
        shape: pixels of a picture, (..., H, W).
        lines: of a title.
        below: inches that are left free at the bottom.
    """
    columns = min(columns, count)
    rows = -(-count // columns)
    inch = (side - GAP) / max(shape[-2:])  # of a pixel
    wide, tall = inch * shape[-1], inch * shape[-2]
    step = tall + lines * LINE + GAP
    width, height = side * columns, step * rows + below
    figure, axes = blank(width, height, None), []
    for i in range(count):
        row, column = divmod(i, columns)
        left, bottom = side * column + (side - wide) / 2, height - step * (row + 1) + GAP / 2
        axes.append(figure.add_axes((left / width, bottom / height, wide / width, tall / height)))
        axes[-1].axis("off")
    return figure, axes


def label(name: str, most: int = 24) -> str:
    """A name that came with data, as a figure can show it: on one line, and no mathematics.

    Between two dollars matplotlib would look for a formula, and raise where there is none; a
    control character would make an SVG that no browser reads. Of a name that takes more than
    ``most`` columns the beginning and the end are shown, as names that go together often differ at
    their end alone.
    """
    text = "".join(c if c.isprintable() else "\ufffd" for c in name)
    if width(text) > most:
        head, tail = text[:most], text[-most:]
        while width(head) > most // 2:
            head = head[:-1]
        while width(tail) > (most - 1) // 2:
            tail = tail[1:]
        text = f"{head}…{tail}"
    return text.replace("$", r"\$")


def width(text: str) -> int:
    """Columns of a text, of which East Asian characters take two."""
    return sum(2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in text)


def drawn(figure: Figure, kind: str) -> bytes:
    """A figure as a file of a kind, png or svg.

    The same figure gives the same bytes: no date and no random name is in them.
    """
    content = io.BytesIO()
    metadata = {"Date": None} if kind == "svg" else {}
    with matplotlib.rc_context({"svg.hashsalt": "softmax_torch"}), warnings.catch_warnings():
        # A name in a script that the font lacks is drawn as boxes.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        figure.savefig(content, format=kind, dpi=150, metadata=metadata)
    return content.getvalue()


def save(figure: Figure, path: Path) -> None:
    """Write a figure as PNG or SVG, as the suffix says, where there is no file yet.

    Raises:
        ValueError: another suffix.
        FileNotFoundError: there is no such folder.
        FileExistsError: there is something by that name; it is left as it is.
    """
    if path.suffix.lower() not in SUFFIXES:
        raise ValueError(
            f"output: expected a name that ends in {' or '.join(SUFFIXES)}, got {path}"
        )
    if not path.parent.is_dir():
        raise FileNotFoundError(f"output: expected an existing folder, got {path.parent}")
    content = drawn(figure, path.suffix.lower().removeprefix("."))
    try:
        file = path.open("xb")
    except FileExistsError:
        raise FileExistsError(f"output: expected a new name, got {path}, which exists") from None
    with file:
        file.write(content)
