"""Precision, recall and F1 of each class, and the classes that are confused most often.

    precision of c   of the samples predicted as c, the share that belong to c
    recall of c      of the samples that belong to c, the share predicted as c
    F1               the harmonic mean of precision and recall

A share of no samples is NaN (a class that was never predicted has no precision). The macro average
is the mean over the classes that have the metric. Counts and shares come from scikit-learn.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from sklearn.metrics import confusion_matrix, precision_recall_fscore_support

from softmax_torch.report.run_results import RunResults

__all__ = [
    "ClassMetrics",
    "ConfusedPair",
    "confusion_counts",
    "macro_average",
    "most_confused",
    "per_class",
]


class ClassMetrics(NamedTuple):
    """Metrics of one class, or their macro average; NaN where there are no samples."""

    name: str
    precision: float
    recall: float
    f1: float
    support: int


class ConfusedPair(NamedTuple):
    """Samples of the class ``true`` predicted as ``predicted``: count, and share of their class."""

    true: int
    predicted: int
    samples: int
    share: float


def per_class(results: RunResults) -> list[ClassMetrics]:
    """Return the metrics of each class on the test set."""
    logits, y = results.test
    C = len(results.class_names)
    columns = precision_recall_fscore_support(
        y.numpy(), logits.argmax(1).numpy(), labels=range(C), zero_division=np.nan
    )
    rows = zip(results.class_names, *(column.tolist() for column in columns), strict=True)
    return [ClassMetrics(*row) for row in rows]


def macro_average(rows: list[ClassMetrics]) -> ClassMetrics:
    """Return means over the classes that have the metric, and the total number of samples."""

    def mean(values: list[float]) -> float:
        defined = [value for value in values if not math.isnan(value)]
        return sum(defined) / len(defined) if defined else math.nan

    return ClassMetrics(
        "macro average",
        mean([row.precision for row in rows]),
        mean([row.recall for row in rows]),
        mean([row.f1 for row in rows]),
        sum(row.support for row in rows),
    )


def confusion_counts(results: RunResults) -> npt.NDArray[np.int64]:
    """Return how many test samples of class i were predicted as class j, (C, C)."""
    logits, y = results.test
    labels = range(len(results.class_names))
    counts: npt.NDArray[np.int64] = confusion_matrix(
        y.numpy(), logits.argmax(1).numpy(), labels=labels
    )
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
