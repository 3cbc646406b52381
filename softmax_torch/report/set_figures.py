"""Figures of a set of samples in which each class counts alike, with their intervals.

    balanced accuracy    mean over the classes of their recall
    macro F1, AUC, AP    means over the classes of these figures
    weighted F1          the mean of F1 with each class weighted by its samples
    top-k accuracy       the share of samples whose class is among the k most probable

Intervals are those of ``report.score_intervals``. F1, AUC and AP have the variance of the
infinitesimal jackknife, which needs no resamples.
"""

from __future__ import annotations

from torch import Tensor

from softmax_torch import metrics
from softmax_torch.ranking_metrics import Ranking
from softmax_torch.report.score_intervals import (
    Estimate,
    f1_variance,
    mean_of,
    of_variance,
    share,
)

__all__ = ["LABELS", "recalls", "set_figures", "top_k_of"]

LABELS = {
    "balanced_accuracy": "balanced accuracy",
    "macro_f1": "macro F1",
    "weighted_f1": "weighted F1",
    "macro_auc": "macro AUC",
    "macro_ap": "macro AP",
    "top_2_accuracy": "top-2 accuracy",
    "top_5_accuracy": "top-5 accuracy",
}
"""What the figures are called in a report."""

MANY_CLASSES = 10
"""Classes above which top-5 accuracy is given, and up to which top-2 accuracy."""


def top_k_of(classes: int) -> int | None:
    """Return the k of the top-k accuracy of so many classes; None of two, where it is 1."""
    return None if classes == 2 else 2 if classes <= MANY_CLASSES else 5


def recalls(counts: Tensor, level: float) -> list[Estimate]:
    """Return the recall of each class, with its interval, from ``metrics.class_counts``."""
    return [share(both, n, level) for both, n in counts[:2].T.tolist()]


def set_figures(logits: Tensor, y: Tensor, ranking: Ranking, level: float) -> dict[str, Estimate]:
    """Return the figures of a set by name.

    Args:
        logits: (n, C), on a CPU.
        y: class indices (n,), n >= 1.
        ranking: that of these samples.
        level: of the intervals.
    """
    C, predicted = logits.shape[1], logits.argmax(1)
    counts = metrics.class_counts(predicted, y, C)
    f1, shares = metrics.f1(counts), counts[1].double() / len(y)
    alike = (~f1.isnan()).double() / (~f1.isnan()).sum()
    balanced = mean_of(recalls(counts, level))
    fewest = balanced.samples
    macro_variance = f1_variance(predicted, y, f1, alike, False)
    weighted_variance = f1_variance(predicted, y, f1, shares, True)
    found = {
        "balanced_accuracy": balanced,
        "macro_f1": of_variance(metrics.macro(f1), macro_variance, fewest, level),
        "weighted_f1": of_variance(
            metrics.weighted(f1, counts[1]), weighted_variance, len(y), level
        ),
        "macro_auc": of_variance(ranking.macro_auc, ranking.macro_auc_variance, fewest, level),
        "macro_ap": of_variance(ranking.macro_ap, ranking.macro_ap_variance, fewest, level),
    }
    k = top_k_of(C)
    if k is not None:
        right = int(metrics.top_k_correct(logits, y, k).sum())
        found[f"top_{k}_accuracy"] = share(right, len(y), level)
    return found
