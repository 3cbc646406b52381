"""Metrics of a set of samples, with bootstrap intervals.

Accuracy, NLL, Brier score and ECE (see ``softmax_torch.metrics``) all follow from the column means
of one matrix with a row for each of n samples and B = 15 bins of confidence:

    A = [correct, nll, brier, (correct - confidence) in the column of the sample's bin]  (n, 3 + B)

A bootstrap resample is a vector of counts: how often it contains each sample. A thousand resamples
are one product of their counts with A, and the interval lies between two percentiles of the results
(Efron 1979). The ECE of a resample is biased upwards, as the ECE of few samples is: noise moves
accuracy away from confidence in every bin. Its interval is therefore rather too high than too low.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from softmax_torch import metrics
from softmax_torch.metrics import BINS
from softmax_torch.threads import is_small, one_thread_if

__all__ = [
    "LEVEL",
    "METRICS",
    "RESAMPLES",
    "SEED",
    "SampleScores",
    "intervals",
    "score_samples",
    "set_metrics",
]

METRICS = ("accuracy", "nll", "brier", "ece")
"""Metrics of a set, in the order of results."""

RESAMPLES, SEED, LEVEL = 1000, 0, 0.95
"""Bootstrap resamples, the seed they are drawn with, and the level of the intervals."""

MAX_COUNTS = 1 << 22
"""Counts of resamples held at once: 32 MiB."""

MAX_LOGITS = 1 << 22
"""Logits converted to float64 at once: 32 MiB."""


class SampleScores(NamedTuple):
    """Scores of each sample (see ``softmax_torch.metrics``), (n,) in float64, and its bin."""

    correct: Tensor
    nll: Tensor
    brier: Tensor
    confidence: Tensor
    bin: Tensor

    def columns(self) -> Tensor:
        """Return the matrix A (n, 3 + BINS)."""
        gap = (self.correct - self.confidence)[:, None] * F.one_hot(self.bin, BINS)
        return torch.cat([torch.stack([self.correct, self.nll, self.brier], 1), gap], 1)


def score_samples(logits: Tensor, y: Tensor) -> SampleScores:
    """Return the scores of samples with logits (n, C) and class indices y (n,)."""
    rows = max(1, MAX_LOGITS // logits.shape[1])
    blocks = zip(torch.split(logits, rows), torch.split(y, rows), strict=True)
    return SampleScores(*map(torch.cat, zip(*(_scores(*b) for b in blocks), strict=True)))


def _scores(logits: Tensor, y: Tensor) -> SampleScores:
    z, confidence = logits.double(), metrics.confidence(logits)
    return SampleScores(
        metrics.correct(z, y).double(),
        metrics.nll(z, y),
        metrics.brier(z, y),
        confidence.double(),
        metrics.bin_index(confidence),
    )


def set_metrics(scores: SampleScores) -> dict[str, float]:
    """Return the metrics of a set by name."""
    return dict(zip(METRICS, _from_means(scores.columns().mean(0)).tolist(), strict=True))


def intervals(scores: SampleScores) -> dict[str, tuple[float, float]]:
    """Return bootstrap percentile intervals of the metrics, by name, at ``LEVEL``."""
    A, generator = scores.columns(), torch.Generator().manual_seed(SEED)
    n = len(A)
    block = max(1, MAX_COUNTS // n)
    with one_thread_if(is_small(RESAMPLES, n, 1)):
        return _percentiles(A, block, generator)


def _percentiles(
    A: Tensor, block: int, generator: torch.Generator
) -> dict[str, tuple[float, float]]:
    """Return the intervals, from resamples that are drawn ``block`` at a time."""
    n, means = len(A), []
    for first in range(0, RESAMPLES, block):
        r = min(block, RESAMPLES - first)
        drawn = torch.randint(n, (r, n), generator=generator)
        counts = torch.zeros(r, n, dtype=A.dtype)
        counts.scatter_add_(1, drawn, torch.ones((), dtype=A.dtype).expand(r, n))
        means.append(counts @ A / n)
    tails = torch.tensor([(1 - LEVEL) / 2, (1 + LEVEL) / 2], dtype=A.dtype)
    low, high = _from_means(torch.cat(means)).quantile(tails, 0).tolist()
    return dict(zip(METRICS, zip(low, high, strict=True), strict=True))


def _from_means(means: Tensor) -> Tensor:
    """Return the metrics (..., 4) of column means (..., 3 + BINS)."""
    return torch.cat([means[..., :3], metrics.ece(means[..., 3:])[..., None]], -1)
