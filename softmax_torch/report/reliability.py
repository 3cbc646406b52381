"""The reliability diagram: is a model right as often as it is confident?

Above, for each bin of confidence, the share of its samples that are right against their mean
confidence; on the diagonal both agree. Below, how many samples the bin has. The ECE is the distance
from the diagonal, each bin counted by its samples.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

from softmax_torch.report.metrics import BINS, Judged
from softmax_torch.report.picture import Picture
from softmax_torch.report.style import BLACK, BLUE, GREY, VERMILION, blank, tidy

__all__ = ["Bins", "binned", "picture"]


class Bins(NamedTuple):
    """Of each bin that has samples: its number, their count, mean confidence and accuracy."""

    bin: list[int]
    samples: list[int]
    confidence: list[float]
    accuracy: list[float]


def binned(judged: Judged) -> Bins:
    """The samples by their confidence."""
    count = torch.bincount(judged.bin, minlength=BINS)
    kept = count.nonzero().flatten()
    confidence, right = (
        torch.bincount(judged.bin, values, minlength=BINS)[kept] / count[kept]
        for values in (judged.confidence, judged.right)
    )
    return Bins(kept.tolist(), count[kept].tolist(), confidence.tolist(), right.tolist())


def picture(judged: Judged, name: str, title: str, ece: float) -> Picture:
    """The diagram of a set, and its ECE; the name and the title say which."""
    bins = binned(judged)
    figure = blank(4.2, 4.4)
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    for ax in (above, below):
        tidy(ax)
        left = [b / BINS for b in bins.bin]
        heights = bins.accuracy if ax is above else bins.samples
        ax.bar(left, heights, 1 / BINS, align="edge", color=BLUE, alpha=0.35, edgecolor="white")
    above.set_title(title, fontsize=11, loc="left")
    above.plot([0, 1], [0, 1], "--", color=GREY, linewidth=1, label="as often as confident")
    above.vlines(bins.confidence, bins.confidence, bins.accuracy, color=VERMILION, linewidth=1.6)
    above.plot(
        bins.confidence, bins.accuracy, "o", color=BLACK, markersize=4, label="right in each bin"
    )
    above.set_ylim(0, 1.02)
    above.set_xlim(0, 1)
    above.set_ylabel("accuracy")
    above.legend(frameon=False, fontsize=9, loc="upper left")
    below.set_yscale("log")
    below.set_ylim(bottom=0.7)
    below.set_ylabel("samples")
    below.set_xlabel("confidence")
    rows = zip(bins.confidence, bins.accuracy, bins.samples, strict=True)
    said = "; ".join(
        f"{count} samples at confidence {confidence:.2f} are right in {accuracy:.2f} of cases"
        for confidence, accuracy, count in rows
    )
    return Picture(name, figure, f"{title}: {said}.", f"{title}: ECE {ece:.4f}.")
