"""A small problem that all files of these tests share: X, labels and groups, and a frame of it."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["LABELS", "NAMES", "labels", "small"]

Array = NDArray[Any]

NAMES = ["length", "depth", "mass"]
LABELS = ["high", "low", "mid"]  # sorted


def small(n: int = 300) -> tuple[Array, Array, Array]:
    """Return X (n, 3), class indices y of 3 classes and 30 groups whose samples are alike."""
    rng = np.random.default_rng(0)
    groups = rng.integers(0, 30, n)
    X = rng.normal(size=(n, 3)) * [1.0, 5.0, 0.2] + [0.0, 2.0, 1.0]
    shift = rng.normal(size=(30, 3))[groups]
    z = X @ (rng.normal(size=(3, 3)) / [[1.5], [8.0], [0.5]]) + 0.7 * shift
    return X, (z + rng.gumbel(size=z.shape)).argmax(1), groups


def labels(y: Array) -> Array:
    """Return class indices as strings, in whose order they are."""
    return np.array(LABELS)[y]
