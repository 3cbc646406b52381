"""The figures of a set by group, and the largest gap between two groups.

A group is the value of a column that a table names (``data.group_column``): a site, an instrument,
a sex. The model need not have seen it. Each group has its number of samples, accuracy, balanced
accuracy and NLL, and of two classes the recall and the precision of the second, the positive one.

The largest gap of a figure is its difference between the two groups that are furthest apart. Of G
groups it is the largest of m = G (G - 1) / 2 differences, which chance alone makes large. Its
interval therefore has the level 1 - (1 - level) / m, so that the intervals of all differences
together hold at ``level`` (Bonferroni). Figures of fewer than ``FEW`` samples take no part in it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from softmax_torch import metrics
from softmax_torch.report.bootstrap import LEVEL
from softmax_torch.report.run_results import EvaluatedSet
from softmax_torch.report.score_intervals import (
    Estimate,
    difference,
    mean_estimate,
    mean_of,
    share,
)
from softmax_torch.report.set_figures import recalls

__all__ = ["FEW", "Gap", "Group", "GroupMetrics", "by_group"]

FEW = 30
"""Samples below which a group has few: a share of 0.9 of 30 samples may be 0.74 to 0.97."""

LABELS = {
    "accuracy": "accuracy",
    "balanced_accuracy": "balanced accuracy",
    "nll": "NLL",
    "recall": "recall",
    "precision": "precision",
}


class Group(NamedTuple):
    """Name, number of samples and figures of a group."""

    name: str
    samples: int
    figures: dict[str, Estimate]

    @property
    def few(self) -> bool:
        """Whether the group has fewer than ``FEW`` samples."""
        return self.samples < FEW


class Gap(NamedTuple):
    """The largest difference of a figure, and the groups with the higher and the lower value."""

    difference: Estimate
    high: str
    low: str


class GroupMetrics(NamedTuple):
    """The figures by group.

    Attributes:
        column: name of the column with the groups.
        positive: name of the class that recall and precision are of; None of more than two classes.
        groups: those with the most samples first.
        gaps: the largest gap of each figure; figures with enough samples in fewer than two groups
            are left out.
        level: of the intervals of groups, and of those of the gaps together.
    """

    column: str
    positive: str | None
    groups: list[Group]
    gaps: dict[str, Gap]
    level: float

    @property
    def labels(self) -> dict[str, str]:
        """What the figures are called, by name."""
        return {name: LABELS[name] for name in self.groups[0].figures}

    def class_of(self, figure: str) -> str:
        """Return the class that a figure is of; an empty text for one of all classes."""
        return self.positive or "" if figure in ("recall", "precision") else ""


def by_group(
    of: EvaluatedSet,
    groups: Sequence[str],
    column: str,
    class_names: Sequence[str],
    level: float = LEVEL,
) -> GroupMetrics:
    """Return the figures of each group of a set.

    Args:
        of: the set.
        groups: the group of each sample.
        column: name of the column that they come from.
        class_names: C names.
        level: of the intervals.
    """
    names = sorted(set(groups))
    number = {name: k for k, name in enumerate(names)}
    codes = torch.tensor([number[name] for name in groups])
    parts = [EvaluatedSet(of.logits[codes == k], of.y[codes == k]) for k in range(len(names))]
    classes = torch.bincount(of.y).nonzero().flatten()

    def figures(level: float) -> list[dict[str, Estimate]]:
        return [_figures(part, classes, level) for part in parts]

    rows = [
        Group(name, len(part.y), found)
        for name, part, found in zip(names, parts, figures(level), strict=True)
    ]
    pairs = math.comb(len(names), 2)
    joint = figures(1 - (1 - level) / pairs) if pairs else []
    gaps = {
        figure: gap
        for figure in rows[0].figures
        if (gap := _largest_gap(names, [found[figure] for found in joint])) is not None
    }
    rows.sort(key=lambda group: -group.samples)
    positive = class_names[1] if len(class_names) == 2 else None
    return GroupMetrics(column, positive, rows, gaps, level)


def _figures(of: EvaluatedSet, classes: Tensor, level: float) -> dict[str, Estimate]:
    """Return the figures of the samples of a group.

    Args:
        of: its samples.
        classes: class indices that occur in the whole set. The balanced accuracy of a group is the
            mean over those that it has; without all of them it takes no part in a gap.
        level: of the intervals.
    """
    logits, y = of
    C, predicted = logits.shape[1], logits.argmax(1)
    counts = metrics.class_counts(predicted, y, C)
    balanced = mean_of(recalls(counts, level))
    if (counts[1, classes] == 0).any():
        balanced = balanced._replace(samples=0)
    right, n, _ = counts.sum(1).tolist()
    found = {
        "accuracy": share(right, n, level),
        "balanced_accuracy": balanced,
        "nll": mean_estimate(metrics.nll(logits.double(), y), level),
    }
    if C == 2:
        both, samples, chosen = counts[:, 1].tolist()
        found |= {"recall": share(both, samples, level), "precision": share(both, chosen, level)}
    return found


def _largest_gap(names: Sequence[str], estimates: Sequence[Estimate]) -> Gap | None:
    """Return the largest difference of two groups with enough samples; None without two."""
    enough = [(one.value, k) for k, one in enumerate(estimates) if one.samples >= FEW]
    if len(enough) < 2:
        return None
    high, low = max(enough)[1], min(enough)[1]
    return Gap(difference(estimates[high], estimates[low]), names[high], names[low])
