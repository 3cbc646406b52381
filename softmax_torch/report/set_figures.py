"""Figures of a set of samples in which each class counts alike, with their intervals.

    balanced accuracy    mean over the classes of their recall
    macro F1, AUC, AP    means over the classes of these figures
    weighted F1          the mean of F1 with each class weighted by its samples
    top-k accuracy       the share of samples whose class is among the k most probable

Intervals are those of ``report.score_intervals``. F1, AUC and AP have the variance of the
infinitesimal jackknife (see ``softmax_torch.ranking_metrics``), which needs no resamples. With a
weight for each sample, F1_c = 2 t_c / (n_c + m_c) has the derivatives (2 - 2 F1_c) / (n_c + m_c) by
that of a sample of c that is predicted as c, and -F1_c / (n_c + m_c) by those of one that belongs
to c and of one that is predicted as c.
"""

from __future__ import annotations

from torch import Tensor

from softmax_torch import metrics
from softmax_torch.ranking_metrics import Ranking
from softmax_torch.report.bootstrap import LEVEL
from softmax_torch.report.run_results import EvaluatedSet
from softmax_torch.report.score_intervals import Estimate, mean_of, of_variance, share

__all__ = ["f1_variance", "recalls", "set_figures", "top_k_of"]

MANY_CLASSES = 10
"""Classes above which top-5 accuracy is given, and up to which top-2 accuracy."""


def top_k_of(classes: int) -> int | None:
    """Return the k of the top-k accuracy of so many classes; None of two, where it is 1."""
    return None if classes == 2 else 2 if classes <= MANY_CLASSES else 5


def recalls(counts: Tensor, level: float = LEVEL) -> list[Estimate]:
    """Return the recall of each class, with its interval, from ``metrics.class_counts``."""
    return [share(both, n, level) for both, n in counts[:2].T.tolist()]


def set_figures(of: EvaluatedSet, counts: Tensor, ranking: Ranking) -> dict[str, Estimate]:
    """Return the figures of a set by name.

    Args:
        of: the set, of at least one sample, on a CPU.
        counts: its ``metrics.class_counts``, (3, C).
        ranking: that of the set.
    """
    logits, y = of
    f1, n, predicted = metrics.f1(counts), len(y), logits.argmax(1)
    macro_variance, weighted_variance = (
        f1_variance(predicted, y, counts, weighted) for weighted in (False, True)
    )
    balanced = mean_of(recalls(counts))
    fewest = balanced.samples
    found = {
        "balanced_accuracy": balanced,
        "macro_f1": of_variance(metrics.macro(f1), macro_variance, fewest),
        "weighted_f1": of_variance(metrics.weighted(f1, counts[1]), weighted_variance, n),
        "macro_auc": of_variance(ranking.macro_auc, ranking.macro_auc_variance, fewest),
        "macro_ap": of_variance(ranking.macro_ap, ranking.macro_ap_variance, fewest),
    }
    k = top_k_of(len(f1))
    if k is not None:
        found[f"top_{k}_accuracy"] = share(int(metrics.top_k_correct(logits, y, k).sum()), n)
    return found


def f1_variance(predicted: Tensor, y: Tensor, counts: Tensor, weighted: bool) -> float:
    """Return the variance of the macro F1, or of the weighted F1, by the infinitesimal jackknife.

    The weights n_c / n of the weighted F1 vary with the samples too: the derivative by a sample of
    class c then has a term (F1_c - weighted F1) / n.

    Args:
        predicted, y: classes (n,).
        counts: their ``metrics.class_counts``, (3, C).
        weighted: whether it is the weighted F1.
    """
    f1, n = metrics.f1(counts), len(y)
    has_f1 = ~f1.isnan()
    weight = counts[1].double() / n if weighted else has_f1.double() / has_f1.sum()
    f1 = f1.nan_to_num()
    per_count = weight / (counts[1] + counts[2])
    wrong = -(f1 * per_count)[y] - (f1 * per_count)[predicted]
    derivative = wrong.where(predicted != y, (2 * (1 - f1) * per_count)[y])
    if weighted:
        derivative += (f1[y] - (weight * f1).sum()) / n
    return float(derivative.square().sum())
