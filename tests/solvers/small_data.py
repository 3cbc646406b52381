"""A small problem for tests of arguments: samples, memory maps and blocks of them, and its fit."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from softmax_torch.solvers import Solution, fit

__all__ = ["Array", "Blocks", "D", "N", "data", "memmap", "solved"]

Array = NDArray[Any]
N, D = 300, 12


def data(sparse: bool = False) -> tuple[Array, Array]:
    """Return X, whole numbers that every dtype holds exactly, with many zeros, and classes y."""
    rng = np.random.default_rng(0)
    X = rng.integers(0, 50, (N, D)) * (rng.random((N, D)) < (0.1 if sparse else 0.7))
    y = (X @ rng.normal(size=(D, 4)) + 30 * rng.normal(size=(N, 4))).argmax(1)
    return X.astype(np.float64), y


def solved(X: Any, y: Any, **options: Any) -> Solution:
    return fit(X, y, **({"C": 1e-3, "tol": 1e-10} | options))


def memmap(X: Array, folder: Path, dtype: Any = np.float32) -> Array:
    mapped = np.memmap(folder / "x.bin", dtype=dtype, mode="w+", shape=X.shape)
    mapped[:] = X
    return np.memmap(folder / "x.bin", dtype=dtype, mode="r", shape=X.shape)


class Blocks:
    """An iterable of blocks of rows that can be iterated again and again."""

    def __init__(self, X: Array) -> None:
        self.X = X

    def __iter__(self) -> Iterator[Array]:
        return iter(np.array_split(self.X, 7))
