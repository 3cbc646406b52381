"""Accuracy, negative log-likelihood (NLL), Brier score, calibration error, F1: the one definition.

For sample i with logits z_i, probabilities p_i = softmax(z_i) and class index y_i:

    correct_i     1 if y_i = argmax_c z_ic, else 0         accuracy is its mean (micro average)
    nll_i         -log p_i,y_i                             NLL is its mean
    brier_i       sum_c (p_ic - [c = y_i])^2, in [0, 2]    the Brier score is its mean (Brier 1950)
    confidence_i  max_c p_ic

The expected calibration error (ECE, Guo et al. 2017) sorts n samples by confidence into bins of
equal width:

    gap_b         1/n times the sum of (correct_i - confidence_i) over the samples i of bin b
    ECE           sum_b |gap_b|

The sums are kept as integers, so they are exact in any order of the samples, and processes exchange
one number a bin.

Where classes are unequal, accuracy says little about the small ones. Figures of a class c come
from three counts (``class_counts``): its samples n_c, the samples m_c predicted as c, and the t_c
that are both.

    recall_c      t_c / n_c                    precision_c    t_c / m_c
    F1_c          2 t_c / (n_c + m_c)          the harmonic mean of the two

    balanced accuracy = mean_c recall_c        macro F1 = mean_c F1_c
    weighted F1 = sum_c n_c F1_c / n

A share of no samples is NaN, and a mean over the classes leaves it out: a class without samples has
no recall, and no F1 either unless something is predicted as it. ``ranking_metrics`` has the figures
that depend on the order of the probabilities, not on the predicted class.

The baseline is the classifier that knows the class frequencies q_c of the training set and nothing
about a sample: its probabilities are q, its prediction is the most frequent class. A model with a
higher NLL has learned less than nothing.

>>> z = torch.tensor([[3.0, 1.0], [3.0, 1.0]]).log()  # p = (3/4, 1/4), twice
>>> y = torch.tensor([0, 1])
>>> correct(z, y).float().mean(), nll(z, y).mean(), brier(z, y).mean()
(tensor(0.5000), tensor(0.8370), tensor(0.6250))
>>> sums = gap_sums(correct(z, y), confidence(z))
>>> ece(gaps(sums, len(y)))  # confidence 3/4, accuracy 1/2
tensor(0.2500, dtype=torch.float64)
>>> counts = class_counts(z.argmax(1), y, 2)  # the second class is never predicted
>>> recall(counts).tolist(), f1(counts).tolist(), macro(precision(counts))
([1.0, 0.0], [0.666..., 0.0], 0.5)
>>> baseline(torch.tensor([3, 1]), y)  # q = (3/4, 1/4), the figures of the two samples above
Baseline(nll=0.836988..., accuracy=0.5, balanced_accuracy=0.5)
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from softmax_torch.functional import cross_entropy
from softmax_torch.maths import upcast

__all__ = [
    "BINS",
    "GAP_UNIT",
    "Baseline",
    "balanced_accuracy",
    "baseline",
    "bin_index",
    "brier",
    "class_counts",
    "confidence",
    "correct",
    "ece",
    "f1",
    "fixed_point",
    "gap_sums",
    "gaps",
    "macro",
    "nll",
    "precision",
    "recall",
    "top_k_correct",
    "weighted",
]

BINS = 15
"""Bins of the ECE. Bin b has the confidences in [b / 15, (b + 1) / 15), with edges in float32; the
last one has 1.0 too. (torchmetrics 1.9 gives 1.0 a bin of its own, which takes it out of the last
bin: of 500 samples at confidence 1.0 that are 98% correct, and 500 at 0.95 that are all correct,
torchmetrics finds an ECE of 0.0350 in place of 0.0150.)"""

GAP_UNIT = 1 << 32
"""Sums of gaps are integers in units of 1 / GAP_UNIT. A float32 confidence of at least 2^-8 is a
whole multiple of that unit; a bin has room for 2^31 samples."""


def correct(logits: Tensor, y: Tensor) -> Tensor:
    """Return whether the most probable class of each sample is the true one: bool (n,).

    Args:
        logits: (n, C), floating point.
        y: class indices (n,).
    """
    return logits.argmax(1) == y


def top_k_correct(logits: Tensor, y: Tensor, k: int) -> Tensor:
    """Return whether the true class of each sample is among the k most probable: bool (n,).

    Of classes with the same logit the first comes first, as in ``correct``, so that k = 1 gives the
    accuracy. (scikit-learn's ``top_k_accuracy_score`` takes the last.)

    Args:
        logits: (n, C), floating point.
        y: class indices (n,).
        k: at least 1.

    Raises:
        ValueError: k is less than 1.
    """
    if k < 1:
        raise ValueError(f"k: expected at least 1, got {k}")
    true, at = logits.gather(1, y[:, None]), torch.arange(logits.shape[1], device=y.device)
    before = (logits > true) | ((logits == true) & (at < y[:, None]))
    return before.sum(1) < k


def class_counts(predicted: Tensor, y: Tensor, classes: int) -> Tensor:
    """Return the counts t, n and m of each class, int64 (3, classes).

    These are the samples that belong to a class and are predicted as it, that belong to it, and
    that are predicted as it. Counts of several sets add up.

    Args:
        predicted: predicted classes (n,), n >= 0.
        y: class indices (n,).
        classes: C.
    """
    one, counts = torch.ones_like(y), y.new_zeros(3, classes)
    counts[0].index_add_(0, y, (predicted == y).to(y.dtype))
    counts[1].index_add_(0, y, one)
    counts[2].index_add_(0, predicted, one)
    return counts


def recall(counts: Tensor) -> Tensor:
    """Return the recall of each class, float64 (C,), from ``class_counts`` (3, C); NaN for none."""
    return counts[0].double() / counts[1]


def precision(counts: Tensor) -> Tensor:
    """Return the precision of each class, float64 (C,), from ``class_counts``; NaN for none."""
    return counts[0].double() / counts[2]


def f1(counts: Tensor) -> Tensor:
    """Return the F1 of each class, float64 (C,), from ``class_counts`` (3, C); NaN for none."""
    return 2 * counts[0].double() / (counts[1] + counts[2])


def macro(values: Tensor) -> float:
    """Return the mean over the classes that have a value, of values (C,); NaN if none has."""
    return float(values.nanmean())


def weighted(values: Tensor, samples: Tensor) -> float:
    """Return the mean of values (C,) weighted by the samples (C,) of the classes."""
    present = samples > 0
    return float((values * samples)[present].sum() / samples.sum())


def balanced_accuracy(counts: Tensor) -> float:
    """Return the mean recall of the classes that have samples, from ``class_counts`` (3, C).

    It is scikit-learn's ``balanced_accuracy_score``.
    """
    return macro(recall(counts))


class Baseline(NamedTuple):
    """The figures of the class frequencies on a set; see ``baseline``."""

    nll: float
    accuracy: float
    balanced_accuracy: float


def baseline(train_counts: Tensor, y: Tensor) -> Baseline:
    """Return the figures, on samples of classes y, of the class frequencies of the training set.

    The NLL is infinite if a class in y has no training samples. Of several most frequent classes
    the first is predicted, as by ``correct``.

    Args:
        train_counts: number of training samples of each class, (C,); their sum is at least 1.
        y: class indices (n,) of the samples, n >= 1.
    """
    train_counts = train_counts.to(y.device)
    log_q = (train_counts.double() / train_counts.sum()).log()
    predicted = train_counts.argmax().expand_as(y)
    accuracy = float((predicted == y).double().mean())
    counts = class_counts(predicted, y, len(train_counts))
    return Baseline(float(-log_q[y].mean()), accuracy, balanced_accuracy(counts))


def nll(logits: Tensor, y: Tensor) -> Tensor:
    """Return the NLL of each sample, (n,), in the dtype of the logits (n, C).

    Raises:
        IndexError: a class index in y (n,) is out of range.
    """
    return cross_entropy(logits, y, reduction="none")


def brier(logits: Tensor, y: Tensor) -> Tensor:
    """Return the Brier score of each sample, (n,), from logits (n, C) and class indices (n,)."""
    p = upcast(logits).softmax(1)
    return (p - F.one_hot(y, p.shape[1])).square().sum(1)


def confidence(logits: Tensor) -> Tensor:
    """Return the probability of the most probable class, (n,), from logits (n, C).

    It is computed in float32 whatever the dtype of the logits, so that a sample has the same bin
    wherever its logits are evaluated.
    """
    return logits.float().softmax(1).amax(1)


def bin_index(confidence: Tensor) -> Tensor:
    """Return the bin, in [0, BINS), of each confidence (n,)."""
    edges = torch.linspace(0, 1, BINS + 1, device=confidence.device)[1:-1]
    return torch.bucketize(confidence, edges, right=True)


def gap_sums(correct: Tensor, confidence: Tensor) -> Tensor:
    """Return the sum of correct - confidence in each bin: int64 (BINS,), in units of 1 / GAP_UNIT.

    Args:
        correct: bool (n,).
        confidence: float32 (n,), finite.
    """
    difference = fixed_point(correct, GAP_UNIT) - fixed_point(confidence, GAP_UNIT)
    return difference.new_zeros(BINS).index_add_(0, bin_index(confidence), difference)


def gaps(sums: Tensor, n: int) -> Tensor:
    """Return the gap of each bin, float64 (BINS,) on a CPU, from the ``gap_sums`` of n samples."""
    return sums.cpu().double() / (GAP_UNIT * n)


def ece(gaps: Tensor) -> Tensor:
    """Return the ECE (...) from the gaps of the bins (..., BINS)."""
    return gaps.abs().sum(-1)


def fixed_point(x: Tensor, unit: int) -> Tensor:
    """Return x as int64 in units of 1 / unit, rounded to the nearest.

    Integers have the same sum in any order; floating-point numbers do not. If the unit is a power
    of 2, x loses no digits before the rounding. x is upcast because float16 ends at 65504.
    """
    return (upcast(x) * unit).round().long()
