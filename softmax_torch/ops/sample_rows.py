"""Rows of samples X (n, d) as native passes read them, where they lie: dense or in CSR."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

__all__ = ["MOST_COLUMNS", "CsrRows", "DenseRows", "SampleRows"]

MOST_COLUMNS = 64
"""The most columns of coefficients of a native pass. Beyond it a matrix product is faster."""


class DenseRows(NamedTuple):
    """Samples (n, d) with adjacent columns, of a floating-point dtype or uint8.

    ``offset`` (d,), float64, is subtracted from each row before anything is rounded; or None.
    """

    x: Tensor
    offset: Tensor | None = None


class CsrRows(NamedTuple):
    """Samples in CSR: entries of row i are at crow[i] <= j < crow[i + 1]; crow may be a slice.

    ``crow`` (n + 1,) is int64, ``col`` int32, ``values`` float32 or float64; d is the number of
    features.
    """

    crow: Tensor
    col: Tensor
    values: Tensor
    d: int


SampleRows = DenseRows | CsrRows
