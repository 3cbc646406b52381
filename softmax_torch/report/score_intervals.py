"""Intervals of figures in [0, 1] that come from n samples: Wilson's, and what follows from it.

For a share v of n independent samples, with the normal quantile z of the level (Wilson 1927),

    (v + z^2 / 2n  -+  z sqrt(v (1 - v) / n + z^2 / 4n^2)) / (1 + z^2 / n)

It stays in [0, 1], and has a length where v is 0 or 1. Other figures reduce to it:

- A figure v with variance V has the interval of a share of n* = v (1 - v) / V samples, their
  effective number (Franco, Little, Louis and Slud 2019). V is 0 where no sample is wrong.
- F1 = 2 J / (1 + J) increases with the Jaccard index J = t / (n_c + m_c - t), which is a share of
  the samples that belong to the class or are predicted as it.
- A mean of K independent shares v_k with limits l_k, u_k, such as the balanced accuracy, has the
  limits v - sqrt(sum_k (v_k - l_k)^2) / K and v + sqrt(sum_k (u_k - v_k)^2) / K, and a difference
  of two those of Newcombe (1998, method 10):

      v_1 - v_2 - sqrt((v_1 - l_1)^2 + (u_2 - v_2)^2)
      v_1 - v_2 + sqrt((u_1 - v_1)^2 + (v_2 - l_2)^2)

>>> share(9.0, 10.0).rounded(3)
(0.9, 0.596, 0.982)
>>> difference(share(56.0, 70.0), share(48.0, 80.0)).rounded(4)  # Newcombe's table II, row (a)
(0.2, 0.0524, 0.3339)
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import NormalDist
from typing import NamedTuple

from torch import Tensor

from softmax_torch.report.bootstrap import LEVEL

__all__ = [
    "Estimate",
    "difference",
    "f1_estimate",
    "mean_estimate",
    "mean_of",
    "of_variance",
    "share",
]


class Estimate(NamedTuple):
    """A figure with its interval; NaN where there is none.

    Attributes:
        value: the figure.
        low, high: limits of its interval.
        samples: number of samples that it is a share of, or one that stands for it.
    """

    value: float
    low: float = math.nan
    high: float = math.nan
    samples: float = 0.0

    def rounded(self, digits: int) -> tuple[float, float, float]:
        """Return the value and the limits, rounded."""
        return round(self.value, digits), round(self.low, digits), round(self.high, digits)


def quantile(level: float) -> float:
    """Return z, so that a standard normal number lies in [-z, z] with the probability ``level``."""
    return NormalDist().inv_cdf((1 + level) / 2)


def share(count: float, samples: float, level: float = LEVEL) -> Estimate:
    """Return count / samples with Wilson's interval; NaN of no samples."""
    return wilson(count / samples if samples else math.nan, samples, level)


def wilson(value: float, samples: float, level: float) -> Estimate:
    """Return a share of so many samples, which need not be whole, with Wilson's interval."""
    if math.isnan(value) or not samples:
        return Estimate(value)
    a = quantile(level) ** 2 / samples
    centre = (value + a / 2) / (1 + a)
    half = math.sqrt(a * (value * (1 - value) + a / 4)) / (1 + a)
    # Rounding must not part a limit of 0 or 1 from the value.
    return Estimate(
        value, max(0.0, min(value, centre - half)), min(1.0, max(value, centre + half)), samples
    )


def of_variance(value: float, variance: float, samples: float, level: float = LEVEL) -> Estimate:
    """Return a figure in [0, 1] with the interval of its effective number of samples.

    Args:
        value: the figure.
        variance: its variance.
        samples: the number of samples to count where the variance is 0.
        level: of the interval.
    """
    spread = value * (1 - value)
    # Both round: the one may be 0 where the other is not.
    return wilson(value, spread / variance if variance > 0 and spread > 0 else samples, level)


def f1_estimate(both: float, samples: float, predicted: float, level: float = LEVEL) -> Estimate:
    """Return the F1 of a class from its counts (see ``metrics.class_counts``)."""
    jaccard = share(both, samples + predicted - both, level)
    value, low, high = (2 * j / (1 + j) for j in jaccard[:3])
    return Estimate(value, low, high, jaccard.samples)


def mean_of(estimates: Sequence[Estimate]) -> Estimate:
    """Return the mean of independent shares, of those that have samples.

    It stands for the samples of all classes if each had as few as the smallest.
    """
    known = [one for one in estimates if not math.isnan(one.value)]
    K = len(known)
    if not K:
        return Estimate(math.nan)
    value = sum(one.value for one in known) / K
    below = math.sqrt(sum((one.value - one.low) ** 2 for one in known)) / K
    above = math.sqrt(sum((one.high - one.value) ** 2 for one in known)) / K
    samples = K * min(one.samples for one in known)
    return Estimate(value, value - below, value + above, samples)


def mean_estimate(values: Tensor, level: float = LEVEL) -> Estimate:
    """Return the mean of positive values (n,), with a normal interval of its logarithm.

    The limits are mean * exp(-+ z s / (sqrt(n) mean)), with the standard deviation s. One value has
    no interval.
    """
    n, mean = len(values), float(values.mean())
    if n < 2 or mean == 0:
        return Estimate(mean, samples=n)
    factor = math.exp(quantile(level) * float(values.std()) / (math.sqrt(n) * mean))
    return Estimate(mean, mean / factor, mean * factor, n)


def difference(one: Estimate, other: Estimate) -> Estimate:
    """Return the difference of two independent figures, with the limits from theirs."""
    value = one.value - other.value
    below = math.hypot(one.value - one.low, other.high - other.value)
    above = math.hypot(one.high - one.value, other.value - other.low)
    return Estimate(value, value - below, value + above, min(one.samples, other.samples))
