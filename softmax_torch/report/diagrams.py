"""The diagrams by name, and where they are written."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from matplotlib.figure import Figure

from softmax_torch.report import cross_entropy, descent, softmax
from softmax_torch.report.style import save

__all__ = ["DIAGRAMS", "plot"]

DIAGRAMS: dict[str, Callable[[], Figure]] = {
    "softmax": softmax.draw,
    "cross-entropy": cross_entropy.draw,
    "gradient-descent": descent.draw,
}


def plot(name: str, output: Path | None = None) -> Path:
    """Draw a diagram and write it: where to.

    Args:
        name: one of ``DIAGRAMS``.
        output: a new file, PNG or SVG by its suffix; None for the first of <name>.svg,
            <name>_1.svg, ... in the current directory that does not exist.

    Raises:
        ValueError: no such diagram, or another suffix.
        FileNotFoundError, FileExistsError: no such folder, or a file that is there already.
    """
    if name not in DIAGRAMS:
        raise ValueError(f"plot: expected {', '.join(DIAGRAMS)}; got {name!r}")
    path, number = output or Path(f"{name}.svg"), 0
    while output is None and path.exists():
        number += 1
        path = Path(f"{name}_{number}.svg")
    save(DIAGRAMS[name](), path)
    return path
