"""The reliability diagram: accuracy against confidence, in bins of confidence.

The upper panel shows the accuracy of each bin against its mean confidence; on the diagonal they are
equal. The lower panel shows the number of samples in each bin. The ECE is the mean distance from
the diagonal, with each bin weighted by its samples.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from matplotlib.ticker import NullFormatter

from softmax_torch.metrics import BINS
from softmax_torch.report.bootstrap import SampleScores
from softmax_torch.report.plotting import BLACK, BLUE, GREY, VERMILION, CaptionedFigure, blank, tidy

__all__ = ["Bins", "draw", "occupied_bins"]


class Bins(NamedTuple):
    """Number, samples, mean confidence and accuracy of each bin that has samples."""

    bin: list[int]
    samples: list[int]
    confidence: list[float]
    accuracy: list[float]


def occupied_bins(scores: SampleScores) -> Bins:
    """Return the bins that have samples."""
    count = torch.bincount(scores.bin, minlength=BINS)
    occupied = count.nonzero().flatten()
    confidence, accuracy = (
        torch.bincount(scores.bin, values, minlength=BINS)[occupied] / count[occupied]
        for values in (scores.confidence, scores.correct)
    )
    return Bins(occupied.tolist(), count[occupied].tolist(), confidence.tolist(), accuracy.tolist())


def draw(scores: SampleScores, name: str, title: str, ece: float) -> CaptionedFigure:
    """Draw the diagram of a set; name and title distinguish it from those of other sets."""
    bins = occupied_bins(scores)
    figure = blank(4.2, 4.4)
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    for ax in (above, below):
        tidy(ax)
        left = [b / BINS for b in bins.bin]
        heights = bins.accuracy if ax is above else bins.samples
        ax.bar(left, heights, 1 / BINS, align="edge", color=BLUE, alpha=0.35, edgecolor="white")
    above.set_title(title, fontsize=11, loc="left")
    above.plot([0, 1], [0, 1], "--", color=GREY, linewidth=1, label="accuracy = confidence")
    above.vlines(bins.confidence, bins.confidence, bins.accuracy, color=VERMILION, linewidth=1.6)
    above.plot(
        *(bins.confidence, bins.accuracy, "o"),
        color=BLACK,
        markersize=4,
        label="accuracy of the bin",
        clip_on=False,  # a point at accuracy 1 is drawn whole
    )
    above.set_ylim(0, 1)
    above.set_xlim(0, 1)
    above.set_ylabel("accuracy")
    # Below the axes, where it covers no point.
    figure.legend(frameon=False, fontsize=9, ncols=2, loc="outside lower center")
    below.set_yscale("log")
    below.set_ylim(bottom=0.7, top=max(12, 1.5 * max(bins.samples)))  # 1 and 10 at least
    below.yaxis.set_minor_formatter(NullFormatter())
    below.set_ylabel("samples")
    below.set_xlabel("confidence")
    rows = zip(bins.accuracy, bins.confidence, bins.samples, strict=True)
    description = "; ".join(
        f"accuracy {accuracy:.2f} at confidence {confidence:.2f} (n = {count})"
        for accuracy, confidence, count in rows
    )
    caption = f"{title}: confidence and accuracy differ by {ece:.4f} on average (ECE)."
    return CaptionedFigure(name, figure, f"{title}: {description}.", caption)
