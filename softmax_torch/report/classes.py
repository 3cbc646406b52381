"""Which classes are recognised, and which are taken for which.

    precision of c   share of the samples that are said to be c which are
    recall of c      share of the samples of c that are said to be
    F1               their harmonic mean

A share of no samples is not a number (a class that was never predicted has no precision), and is
left out of the macro average, the mean over classes. Counts and shares come from scikit-learn.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from sklearn.metrics import confusion_matrix, precision_recall_fscore_support

from softmax_torch.report.findings import Findings

__all__ = ["ClassFigures", "Pair", "confusion", "macro", "most_confused", "per_class"]


class ClassFigures(NamedTuple):
    """Of one class, or of all of them on average; NaN where there is none."""

    name: str
    precision: float
    recall: float
    f1: float
    support: int


class Pair(NamedTuple):
    """Samples of one class taken for another: how many, and which share of their class."""

    true: int
    predicted: int
    samples: int
    share: float


def per_class(findings: Findings) -> list[ClassFigures]:
    """The figures of each class on the test set."""
    logits, y = findings.test
    C = len(findings.class_names)
    columns = precision_recall_fscore_support(
        y.numpy(), logits.argmax(1).numpy(), labels=range(C), zero_division=np.nan
    )
    rows = zip(findings.class_names, *(column.tolist() for column in columns), strict=True)
    return [ClassFigures(*row) for row in rows]


def macro(rows: list[ClassFigures]) -> ClassFigures:
    """Means over the classes that have the figure, and the number of samples."""

    def mean(values: list[float]) -> float:
        have = [value for value in values if not math.isnan(value)]
        return sum(have) / len(have) if have else math.nan

    return ClassFigures(
        "macro average",
        mean([row.precision for row in rows]),
        mean([row.recall for row in rows]),
        mean([row.f1 for row in rows]),
        sum(row.support for row in rows),
    )


def confusion(findings: Findings) -> npt.NDArray[np.int64]:
    """How many test samples of class i were taken for class j, (C, C)."""
    logits, y = findings.test
    labels = range(len(findings.class_names))
    counts: npt.NDArray[np.int64] = confusion_matrix(
        y.numpy(), logits.argmax(1).numpy(), labels=labels
    )
    return counts


def most_confused(counts: npt.NDArray[np.int64], most: int) -> list[Pair]:
    """The pairs of different classes with the most samples, at most so many, those with any."""
    off = counts - np.diag(np.diag(counts))
    order = np.argsort(-off, axis=None, kind="stable")[:most]
    found = []
    for i, j in zip(*(at.tolist() for at in np.unravel_index(order, off.shape)), strict=True):
        if off[i, j]:
            found.append(Pair(i, j, int(off[i, j]), float(off[i, j] / counts[i].sum())))
    return found
