"""Conformal sets on the test set: how many hold the true class, and how large they are.

Coverage is the share of the sets that hold the true class of their sample, with Wilson's interval
for the test samples. The sets themselves depend on n validation samples: with k of the head of
``softmax_torch.conformal``, the coverage that they have on later samples is a draw from
Beta(k, n + 1 - k) (Vovk 2012, Proposition 2), or more where conformities are equal. It is
below x with the probability that of n uniform numbers at least k are.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from softmax_torch.conformal import ConformalSets, rank_of_threshold
from softmax_torch.report.bootstrap import LEVEL
from softmax_torch.report.plotting import (
    BLACK,
    BLUE,
    GREY,
    VERMILION,
    CaptionedFigure,
    blank,
    label,
    panels,
    tidy,
)
from softmax_torch.report.run_results import MAX_CLASSES, RunResults
from softmax_torch.report.score_intervals import Estimate, share

__all__ = ["PredictionSets", "SetRow", "draw", "evaluate_sets"]


class SetRow(NamedTuple):
    """Coverage and mean size of the sets of some samples; NaN without samples."""

    name: str
    coverage: Estimate
    size: float
    samples: int


class PredictionSets(NamedTuple):
    """The conformal sets of the test set.

    Attributes:
        sets: the thresholds in the checkpoint.
        sizes: number of classes in the set of each sample, (n,).
        covered: whether the set holds the sample's class, (n,).
        total: all samples.
        rows: the samples of each class.
    """

    sets: ConformalSets
    sizes: Tensor
    covered: Tensor
    total: SetRow
    rows: list[SetRow]

    @property
    def shown(self) -> list[SetRow]:
        """The classes that a report shows: all, or those with the least coverage."""
        if len(self.rows) <= MAX_CLASSES:
            return self.rows
        order = sorted(
            self.rows, key=lambda row: (math.isnan(row.coverage.value), row.coverage.value)
        )
        return order[:MAX_CLASSES]

    @property
    def empty(self) -> int:
        """Number of sets without a class."""
        return int((self.sizes == 0).sum())

    @property
    def expected(self) -> tuple[float, float] | None:
        """Limits of the coverage on later samples, for 95% of validation sets; None by class."""
        if self.sets.threshold.dim():
            return None
        n = int(self.sets.samples)
        k = rank_of_threshold(n, self.sets.level)
        return beta_quantile((1 - LEVEL) / 2, k, n), beta_quantile((1 + LEVEL) / 2, k, n)


def evaluate_sets(results: RunResults) -> PredictionSets | None:
    """Return the sets of the test set; None if the checkpoint has none."""
    if results.conformal is None:
        return None
    logits, y = results.test
    sets = results.conformal(logits)
    sizes, covered = sets.sum(1), sets.gather(1, y[:, None])[:, 0]
    C = len(results.class_names)
    samples = torch.bincount(y, minlength=C).tolist()
    hits = torch.bincount(y[covered], minlength=C).tolist()
    classes = torch.bincount(y, sizes.double(), minlength=C).tolist()
    columns = zip(results.class_names, hits, classes, samples, strict=True)
    total = _row("all classes", sum(hits), sum(classes), sum(samples))
    return PredictionSets(
        results.conformal, sizes, covered, total, [_row(*column) for column in columns]
    )


def _row(name: str, hits: int, classes: float, samples: int) -> SetRow:
    return SetRow(name, share(hits, samples), classes / samples if samples else math.nan, samples)


def beta_quantile(q: float, k: int, n: int) -> float:
    """Return the q-quantile of Beta(k, n + 1 - k), to 1e-12, for k in [1, n]."""
    j = torch.arange(k, n + 1, dtype=torch.float64)  # successes of n
    log_choices = torch.lgamma(torch.tensor(n + 1.0, dtype=torch.float64)) - (
        torch.lgamma(j + 1) + torch.lgamma(n - j + 1)
    )
    low, high = 0.0, 1.0
    while high - low > 1e-12:
        x = (low + high) / 2
        probability = (log_choices + j * math.log(x) + (n - j) * math.log1p(-x)).exp().sum()
        low, high = (x, high) if probability < q else (low, x)
    return (low + high) / 2


def draw(found: PredictionSets | None) -> list[CaptionedFigure]:
    """Draw the sizes of the sets, and their coverage by class; nothing without sets."""
    return [] if found is None else [_draw_sizes(found), _draw_coverage(found)]


def _draw_sizes(found: PredictionSets) -> CaptionedFigure:
    figure, [ax] = panels("Sizes of the sets", width=4.2, height=2.9)
    largest = int(found.sizes.max())
    held, missed = (
        torch.bincount(found.sizes[part], minlength=largest + 1).tolist()
        for part in (found.covered, ~found.covered)
    )
    sizes = range(largest + 1)
    ax.bar(sizes, held, 0.8, color=BLUE, label="with the true class")
    ax.bar(sizes, missed, 0.8, bottom=held, color=VERMILION, hatch="//", label="without it")
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.set_xlim(-0.6, largest + 0.6)
    ax.set_xlabel("classes in the set")
    ax.set_ylabel("samples")
    figure.legend(frameon=False, fontsize=9, ncols=2, loc="outside lower center")
    counts = zip(sizes, held, missed, strict=True)
    alt = "; ".join(
        f"{size}: {a} with and {b} without the true class" for size, a, b in counts if a + b
    )
    caption = (
        f"A set has {found.total.size:.2f} classes on average, and at most {largest}; "
        f"{found.empty} sets are empty."
    )
    return CaptionedFigure("set-sizes", figure, f"Samples by size of the set. {alt}.", caption)


def _draw_coverage(found: PredictionSets) -> CaptionedFigure:
    rows = [row for row in found.shown if row.samples]
    figure = blank(4.2, 1.3 + 0.2 * len(rows))
    ax = figure.add_subplot()
    ax.set_title("Coverage by class", fontsize=11, loc="left")
    tidy(ax)
    ax.axvline(found.sets.level, color=GREY, linestyle="--", linewidth=1, label="level")
    at = range(len(rows))
    ax.hlines(
        at,
        [row.coverage.low for row in rows],
        [row.coverage.high for row in rows],
        color=BLUE,
        linewidth=1.6,
        label=f"{100 * LEVEL:g}% interval",
    )
    ax.plot(
        *([row.coverage.value for row in rows], at, "o"),
        color=BLACK,
        markersize=4,
        clip_on=False,
        label="coverage",
    )
    ax.set_yticks(at, [label(row.name) for row in rows], fontsize=9)
    ax.set_ylim(len(rows) - 0.4, -0.6)  # the first class on top
    ax.set_xlim(right=1)
    figure.legend(frameon=False, fontsize=9, ncols=3, loc="outside lower center")
    alt = "; ".join(
        f"{row.name} {row.coverage.value:.3f} of {row.samples} "
        f"({row.coverage.low:.3f} to {row.coverage.high:.3f})"
        for row in rows
    )
    caption = f"The share of each class whose sets hold it; the level is {found.sets.level:g}."
    return CaptionedFigure("set-coverage", figure, f"Coverage by class: {alt}.", caption)
