"""Precision, recall, F1, AUC and AP of each class, and the classes that are confused most often.

    precision of c   of the samples predicted as c, the share that belong to c
    recall of c      of the samples that belong to c, the share predicted as c
    F1               the harmonic mean of precision and recall
    AUC, AP          see ``softmax_torch.ranking_metrics``

A share of no samples is NaN (a class that was never predicted has no precision). The macro average
is the mean over the classes that have the metric. Intervals are those of
``report.score_intervals``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from softmax_torch import metrics
from softmax_torch.ranking_metrics import Ranking
from softmax_torch.report.run_results import RunResults
from softmax_torch.report.score_intervals import Estimate, f1_estimate, of_variance, share

__all__ = [
    "ClassMetrics",
    "ConfusedPair",
    "confusion_counts",
    "macro_average",
    "most_confused",
    "per_class",
]


NAMES = ("precision", "recall", "f1", "auc", "ap")
"""Metrics of a class."""


class ClassMetrics(NamedTuple):
    """Metrics of one class with their intervals, or their macro average; NaN where there are none.

    Attributes:
        name: of the class.
        precision, recall, f1, auc, ap: the metrics.
        support: number of samples.
    """

    name: str
    precision: Estimate
    recall: Estimate
    f1: Estimate
    auc: Estimate
    ap: Estimate
    support: int

    @property
    def estimates(self) -> dict[str, Estimate]:
        """The metrics by name."""
        return {name: getattr(self, name) for name in NAMES}


class ConfusedPair(NamedTuple):
    """Samples of the class ``true`` predicted as ``predicted``: count, and share of their class."""

    true: int
    predicted: int
    samples: int
    share: float


def per_class(class_names: Sequence[str], counts: Tensor, ranking: Ranking) -> list[ClassMetrics]:
    """Return the metrics of each class on a set.

    Args:
        class_names: C names.
        counts: ``metrics.class_counts`` of the set, (3, C).
        ranking: that of the set.
    """
    samples = int(counts[1].sum())
    ranks = torch.stack([ranking.auc, ranking.auc_variance, ranking.ap, ranking.ap_variance], 1)
    rows = zip(class_names, counts.T.tolist(), ranks.tolist(), strict=True)
    return [
        ClassMetrics(
            name,
            share(both, predicted),
            share(both, n),
            f1_estimate(both, n, predicted),
            # Where no pair is out of order, as many samples as the smaller part has tell so.
            of_variance(auc, auc_variance, min(n, samples - n)),
            of_variance(ap, ap_variance, n),
            n,
        )
        for name, (both, n, predicted), (auc, auc_variance, ap, ap_variance) in rows
    ]


def macro_average(rows: Sequence[ClassMetrics]) -> ClassMetrics:
    """Return means over the classes that have the metric, and the total number of samples."""

    def mean(name: str) -> Estimate:
        values = [row.estimates[name].value for row in rows]
        return Estimate(metrics.macro(torch.tensor(values, dtype=torch.float64)))

    support = sum(row.support for row in rows)
    precision, recall, f1, auc, ap = map(mean, NAMES)
    return ClassMetrics("macro average", precision, recall, f1, auc, ap, support)


def confusion_counts(results: RunResults) -> npt.NDArray[np.int64]:
    """Return how many test samples of class i were predicted as class j, (C, C)."""
    logits, y = results.test
    C = len(results.class_names)
    pairs = torch.bincount(y * C + logits.argmax(1), minlength=C * C)
    counts: npt.NDArray[np.int64] = pairs.view(C, C).numpy()
    return counts


def most_confused(counts: npt.NDArray[np.int64], limit: int) -> list[ConfusedPair]:
    """Return the pairs of different classes with the most samples, at most ``limit`` of them.

    Args:
        counts: (C, C), rows are true classes.
        limit: most pairs to return; pairs without samples are left out.
    """
    off = counts - np.diag(np.diag(counts))
    order = np.argsort(-off, axis=None, kind="stable")[:limit]
    rows, columns = (index.tolist() for index in np.unravel_index(order, off.shape))
    return [
        ConfusedPair(i, j, int(off[i, j]), float(off[i, j] / counts[i].sum()))
        for i, j in zip(rows, columns, strict=True)
        if off[i, j]
    ]
