"""How pictures look, and how they come to disk.

Colours are those of Okabe & Ito, which people with any common colour vision tell apart; what they
mean is said by a line style, a marker or a hatch as well, for print in grey. Figures are made
without pyplot: nothing is kept between two of them, and no display is asked for.
"""

from __future__ import annotations

import io
from pathlib import Path

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

__all__ = ["BLACK", "BLUE", "GREEN", "GREY", "ORANGE", "PURPLE", "VERMILION", "panels", "save"]

BLACK, GREY = "#000000", "#767676"
BLUE, VERMILION, GREEN = "#0072B2", "#D55E00", "#009E73"
ORANGE, PURPLE = "#E69F00", "#CC79A7"

SUFFIXES = (".png", ".svg")


def panels(*titles: str, width: float = 8.0, height: float = 3.4) -> tuple[Figure, list[Axes]]:
    """A figure with a panel for each title, side by side; sizes are in inches."""
    figure = Figure(figsize=(width, height), layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    axes = [figure.add_subplot(1, len(titles), i + 1) for i in range(len(titles))]
    for ax, title in zip(axes, titles, strict=True):
        ax.set_title(title, fontsize=11, loc="left")
        ax.spines[["top", "right"]].set_visible(False)
        ax.grid(visible=True, color="#e0e0e0", linewidth=0.6)
        ax.set_axisbelow(True)
    return figure, axes


def save(figure: Figure, path: Path) -> None:
    """Write a figure as PNG or SVG, as the suffix says, where there is no file yet.

    The same figure gives the same bytes: no date and no random name is in them.

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
    kind = path.suffix.lower().removeprefix(".")
    content = io.BytesIO()
    with matplotlib.rc_context({"svg.hashsalt": "softmax_torch"}):
        metadata = {"Date": None} if kind == "svg" else {}
        figure.savefig(content, format=kind, dpi=150, metadata=metadata)
    try:
        file = path.open("xb")
    except FileExistsError:
        raise FileExistsError(f"output: expected a new name, got {path}, which exists") from None
    with file:
        file.write(content.getvalue())
