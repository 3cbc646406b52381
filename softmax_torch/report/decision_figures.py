"""Figures of decisions between two classes, such as those of a threshold, with their intervals.

Recall, precision and F1 are those of the second, positive class.
"""

from __future__ import annotations

from torch import Tensor

from softmax_torch import metrics
from softmax_torch.report.score_intervals import Estimate, f1_estimate, mean_of, share
from softmax_torch.report.set_figures import recalls

__all__ = ["decision_figures"]


def decision_figures(decided: Tensor, y: Tensor) -> dict[str, Estimate]:
    """Return the figures of decided classes (n,) where the classes are y (n,), by name."""
    counts = metrics.class_counts(decided, y, 2)
    right, n, _ = counts.sum(1).tolist()
    both, samples, chosen = counts[:, 1].tolist()
    return {
        "accuracy": share(right, n),
        "balanced_accuracy": mean_of(recalls(counts)),
        "recall": share(both, samples),
        "precision": share(both, chosen),
        "f1": f1_estimate(both, samples, chosen),
    }
