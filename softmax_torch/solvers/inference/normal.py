"""Tests and intervals from the normal distribution."""

from __future__ import annotations

import math

import torch
from torch import Tensor

__all__ = ["check_confidence", "interval", "quantile", "two_sided_p"]


def check_confidence(confidence: float) -> None:
    """Raise ValueError unless the confidence level is in (0, 1)."""
    if not 0 < confidence < 1:
        raise ValueError(f"confidence: expected a number in (0, 1), got {confidence}")


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
