"""The figures of a set by group, and the largest gap between two groups.

A group is the value of a column that a table names (``data.group_column``): a site, an instrument,
a sex. The model need not have seen it. Each group has its number of samples, accuracy, balanced
accuracy and NLL, and of two classes the recall and the precision of the second, the positive one.

The largest gap of a figure is its difference between the two groups that are furthest apart. Of G
groups it is the largest of m = G (G - 1) / 2 differences, which chance alone makes large. Its
interval therefore has the level 1 - (1 - LEVEL) / m, so that the intervals of all differences
together hold at ``LEVEL`` (Bonferroni). Figures of fewer than ``FEW`` samples take no part in it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from softmax_torch import metrics
from softmax_torch.report.bootstrap import LEVEL
from softmax_torch.report.run_results import EvaluatedSet, Groups
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
    """

    column: str
    positive: str | None
    groups: list[Group]
    gaps: dict[str, Gap]

    def class_of(self, figure: str) -> str:
        """Return the class that a figure is of; an empty text for one of all classes."""
        return self.positive or "" if figure in ("recall", "precision") else ""


def by_group(of: EvaluatedSet, groups: Groups, class_names: Sequence[str]) -> GroupMetrics:
    """Return the figures of each group of a set.

    Args:
        of: the set.
        groups: the groups of its samples.
        class_names: C names.
    """
    logits, y = of
    C, names = len(class_names), sorted(set(groups.of_samples))
    number = {name: k for k, name in enumerate(names)}
    codes = torch.tensor([number[name] for name in groups.of_samples])
    order, sizes = codes.argsort(stable=True), torch.bincount(codes).tolist()
    of_samples = (logits.argmax(1), y, metrics.nll(logits.double(), y))
    columns = (torch.split(x[order], sizes) for x in of_samples)
    parts = [
        (metrics.class_counts(predicted, true, C), nll)
        for predicted, true, nll in zip(*columns, strict=True)
    ]
    classes = torch.bincount(y).nonzero().flatten()
    pairs = max(1, math.comb(len(names), 2))
    alone, joint = (
        [_figures(*part, classes, level) for part in parts]
        for level in (LEVEL, 1 - (1 - LEVEL) / pairs)
    )
    gaps = {
        figure: gap
        for figure in alone[0]
        if (gap := _largest_gap(names, [found[figure] for found in joint])) is not None
    }
    rows = [Group(*row) for row in zip(names, sizes, alone, strict=True)]
    rows.sort(key=lambda group: -group.samples)
    return GroupMetrics(groups.column, class_names[1] if C == 2 else None, rows, gaps)


def _figures(counts: Tensor, nll: Tensor, classes: Tensor, level: float) -> dict[str, Estimate]:
    """Return the figures of the samples of a group.

    Args:
        counts: their ``metrics.class_counts``, (3, C).
        nll: of each of them, float64.
        classes: class indices that occur in the whole set. The balanced accuracy of a group is the
            mean over those that it has; without all of them it takes no part in a gap.
        level: of the intervals.
    """
    balanced = mean_of(recalls(counts, level))
    if (counts[1, classes] == 0).any():
        balanced = balanced._replace(samples=0)
    right, n, _ = counts.sum(1).tolist()
    found = {
        "accuracy": share(right, n, level),
        "balanced_accuracy": balanced,
        "nll": mean_estimate(nll, level),
    }
    if counts.shape[1] == 2:
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
