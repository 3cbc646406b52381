"""How good predictions are, and how sure that is.

    accuracy   share of samples whose most probable class is right
    nll        mean of -log p_y
    brier      mean of sum_c (p_c - [c = y])^2, in [0, 2] (Brier 1950)
    ece        sum over bins of |sum of (right - confidence) over the samples in it| / n

with confidence = max_c p_c and the 15 bins of ``training.evaluation``. All four follow from the
means of the columns of one matrix with a row a sample,

    A = [right, nll, brier, right - confidence in the column of its bin]     (n, 3 + 15)

A bootstrap resample is a vector of counts, how often it has each sample, so that a thousand of them
are a product with A, and the interval is what lies between two percentiles of the results (Efron
1979). The ECE of resamples is biased upwards, as that of few samples is: they have noise of their
own. Its interval is on the safe side therefore.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from softmax_torch.functional import cross_entropy

__all__ = [
    "BINS",
    "FIGURES",
    "LEVEL",
    "RESAMPLES",
    "SEED",
    "Judged",
    "figures",
    "intervals",
    "judge",
]

FIGURES = ("accuracy", "nll", "brier", "ece")
"""In the order that results are in."""

BINS = 15
"""Of confidence, [b / 15, (b + 1) / 15), with float32 edges, as in ``training.evaluation``."""

RESAMPLES, SEED, LEVEL = 1000, 0, 0.95
"""Of the bootstrap."""

ENTRIES = 1 << 22
"""Counts that are held at once, 32 MiB of them."""

LOGITS = 1 << 22
"""Logits that are looked at together, 32 MiB in float64."""


class Judged(NamedTuple):
    """Of each sample, (n,): whether it is right, its losses, the confidence and the bin of that."""

    right: Tensor
    nll: Tensor
    brier: Tensor
    confidence: Tensor
    bin: Tensor

    def columns(self) -> Tensor:
        """A (n, 3 + BINS)."""
        gap = (self.right - self.confidence)[:, None] * F.one_hot(self.bin, BINS)
        return torch.cat([torch.stack([self.right, self.nll, self.brier], 1), gap], 1)


def judge(logits: Tensor, y: Tensor) -> Judged:
    """Each sample by itself, from logits (n, C) and class indices (n,), in float64."""
    rows = max(1, LOGITS // logits.shape[1])
    parts = zip(torch.split(logits, rows), torch.split(y, rows), strict=True)
    return Judged(*map(torch.cat, zip(*(_judged(*part) for part in parts), strict=True)))


def _judged(logits: Tensor, y: Tensor) -> Judged:
    z = logits.double()
    p = z.softmax(1)
    confidence, predicted = p.max(1)
    return Judged(
        (predicted == y).double(),
        cross_entropy(z, y, reduction="none"),
        (p - F.one_hot(y, z.shape[1])).square().sum(1),
        confidence,
        torch.bucketize(confidence, torch.linspace(0, 1, BINS + 1).double(), right=True)
        .sub(1)
        .clamp(max=BINS - 1),  # a confidence of 1 is in the last bin
    )


def figures(judged: Judged) -> dict[str, float]:
    """The four figures of a set."""
    return dict(zip(FIGURES, _of_means(judged.columns().mean(0)).tolist(), strict=True))


def intervals(judged: Judged) -> dict[str, tuple[float, float]]:
    """Bootstrap percentile intervals of the four figures, at ``LEVEL``."""
    A, generator = judged.columns(), torch.Generator().manual_seed(SEED)
    n = len(A)
    at_once = max(1, ENTRIES // n)
    means = []
    for first in range(0, RESAMPLES, at_once):
        r = min(at_once, RESAMPLES - first)
        drawn = torch.randint(n, (r, n), generator=generator)
        counts = torch.zeros(r, n, dtype=A.dtype)
        counts.scatter_add_(1, drawn, torch.ones((), dtype=A.dtype).expand(r, n))
        means.append(counts @ A / n)
    tail = torch.tensor([(1 - LEVEL) / 2, (1 + LEVEL) / 2], dtype=A.dtype)
    low, high = _of_means(torch.cat(means)).quantile(tail, 0).tolist()
    return dict(zip(FIGURES, zip(low, high, strict=True), strict=True))


def _of_means(means: Tensor) -> Tensor:
    """The figures (..., 4) from column means (..., 3 + BINS)."""
    return torch.cat([means[..., :3], means[..., 3:].abs().sum(-1, keepdim=True)], -1)
