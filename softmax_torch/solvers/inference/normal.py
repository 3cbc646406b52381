"""Tests and intervals from the normal distribution."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from softmax_torch.solvers.conversion import as_number

__all__ = ["checked_confidence", "interval", "quantile", "two_sided_p"]


def checked_confidence(confidence: Any) -> float:
    """Return the confidence level; raise TypeError or ValueError unless it is in (0, 1)."""
    level = as_number("confidence", confidence)
    if not 0 < level < 1:
        raise ValueError(f"confidence: expected a number in (0, 1), got {confidence}")
    return level


def quantile(confidence: float) -> float:
    """Return q with P(|Z| <= q) = confidence."""
    return float(torch.special.ndtri(torch.tensor((1 + confidence) / 2, dtype=torch.float64)))


def two_sided_p(z: Tensor) -> Tensor:
    """Return P(|Z| >= |z|), of the shape of z."""
    p: Tensor = torch.special.erfc(z.abs() / math.sqrt(2))
    return p


def interval(estimate: Tensor, error: Tensor, confidence: float) -> Tensor:
    """Return estimate -+ quantile * error, with lower and upper end in a last dimension."""
    spread = quantile(confidence) * error
    return torch.stack([estimate - spread, estimate + spread], -1)
