"""Checks and conversion of the samples X that callers pass.

X is a dense array in memory (a tensor, a numpy array, nested lists, a pandas or polars frame), a
``numpy.memmap``, a sparse matrix (torch CSR, any format of scipy, a sparse pandas frame), or blocks
of rows: 2-dimensional arrays from an object that can be iterated repeatedly. Arrays in memory are
moved to the device at once. Memory maps and blocks are read piece by piece in every pass, and one
piece is held at a time.

All numbers of X reach ``Samples`` exactly: whole numbers stay integers, or become float64 if
float32 would round them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from softmax_torch.solvers import samples
from softmax_torch.solvers.conversion import (
    as_tensor,
    check_stored,
    check_values,
    column_names,
    computable,
    floating,
    is_blocks,
    is_memmap,
    is_sparse_frame,
    refuse_unreal,
)
from softmax_torch.solvers.csr import csr, csr_of_dense, csr_transposed
from softmax_torch.solvers.samples import DenseSamples, Samples, SparseSamples, StreamedSamples

__all__ = ["as_dtype", "as_samples"]

SMALL = 1 << 20
"""Numbers in X up to which all passes use float64: the extra time is not noticeable."""

READ_BYTES = 64 << 20
"""Bytes of a memory map that are read at a time."""


def as_dtype(dtype: Any) -> torch.dtype | None:
    """Return the dtype of the passes, given as a dtype of torch or numpy, its name or None."""
    if dtype is None:
        return None
    name = str(getattr(dtype, "__name__", dtype)).removeprefix("torch.")
    if name not in ("float32", "float64"):
        raise ValueError(
            "dtype: expected torch.float32, torch.float64, their names or None, got "
            f"{dtype if isinstance(dtype, torch.dtype) else repr(dtype)}"
        )
    return torch.float32 if name == "float32" else torch.float64


def as_samples(X: Any, device: torch.device | None, dtype: Any) -> Samples:
    """Return X (n, D) as samples for passes in ``dtype``, by default float32 unless X is small.

    Raises:
        TypeError: X has entries that are not real numbers.
        ValueError: X is not 2-dimensional, is empty, or has missing, infinite or too large values.
    """
    dtype = as_dtype(dtype)
    names = column_names(X)
    if is_sparse_frame(X):
        X = X.sparse.to_coo()
    if hasattr(X, "tocsr"):
        _check_shape(X)
        return _sparse(_from_scipy(X), names, device, dtype)
    if isinstance(X, Tensor) and X.layout != torch.strided:
        _check_shape(X)
        refuse_unreal("X", X)
        X = X.detach()
        x = X if X.layout == torch.sparse_csr else X.to_sparse_csr()
        return _sparse(x, None, device, dtype)
    if is_memmap(X):
        return _mapped(X, device or torch.device("cpu"), dtype or torch.float32)
    if is_blocks(X):
        return _blocks(X, device or torch.device("cpu"), dtype or torch.float32)
    x = computable(as_tensor("X", X))
    _check_shape(x)
    check_values(x, names)
    return _dense(x if device is None else x.to(device), dtype)


def _dense(x: Tensor, dtype: torch.dtype | None) -> Samples:
    """Return a dense tensor as samples: as sparse ones on a CPU if most of its entries are 0."""
    if dtype is None:
        dtype = torch.float64 if x.numel() <= SMALL else torch.float32
    x = x.double() if dtype == torch.float64 else floating(x)
    fast = x.float() if x.dtype == torch.float64 and dtype == torch.float32 else x
    mkl: bool = torch.backends.mkl.is_available()  # type: ignore[no-untyped-call] # torch's own
    worth_it = x.device.type == "cpu" and x.numel() > SMALL and mkl
    if worth_it and _density(x) < samples.SPARSE_BELOW:
        pieces = torch.split(x, samples.SPARSE_ROWS)
        return SparseSamples(
            ((csr_of_dense(piece), csr_of_dense(piece.T.contiguous())) for piece in pieces),
            dtype,
            dense=fast,
        )
    return DenseSamples(x, fast)


def _sparse(
    x: Tensor, names: Sequence[Any] | None, device: torch.device | None, dtype: torch.dtype | None
) -> Samples:
    """Return a CSR matrix as samples: sparse ones on a CPU, streamed dense blocks on a GPU."""
    values = computable(x.values())
    check_stored(values, x.col_indices(), names)
    n, d = x.shape
    if dtype is None:
        dtype = torch.float64 if len(values) <= SMALL else torch.float32
    if x.dtype != floating(values).dtype:
        x = csr(x.crow_indices(), x.col_indices(), floating(values), (n, d))
    device = x.device if device is None else device
    if device.type == "cpu":
        x = x.cpu()
        return SparseSamples(
            ((piece, csr_transposed(piece)) for piece in _csr_in_rows(x, samples.SPARSE_ROWS)),
            dtype,
        )
    return _streamed_sparse(x, device, dtype)


def _streamed_sparse(x: Tensor, device: torch.device, dtype: torch.dtype) -> Samples:
    """Return a CSR matrix as dense blocks: a GPU multiplies these faster than sparse ones.

    The blocks keep the dtype of the matrix, whatever that of the passes: a certificate in float64
    is for the samples as given.
    """
    d = x.shape[1]
    pieces = [piece.to(device) for piece in _csr_in_rows(x, samples.dense_rows(d, device))]
    sizes = [piece.shape[0] for piece in pieces]
    return StreamedSamples(lambda: (piece.to_dense() for piece in pieces), sizes, d, device, dtype)


def _mapped(X: Any, device: torch.device, dtype: torch.dtype) -> Samples:
    """Return a memory map as samples that copy one piece of it at a time."""
    import numpy as np

    _check_shape(X)
    n, d = X.shape
    step = max(1, READ_BYTES // (X.dtype.itemsize * d))

    def copied(part: Any) -> Tensor:
        return computable(as_tensor("X", np.array(part))).to(device)

    def read() -> Iterator[Tensor]:
        return (copied(X[start : start + step]) for start in range(0, n, step))

    for x in read():
        check_values(x)
    sizes = [min(step, n - start) for start in range(0, n, step)]
    return StreamedSamples(read, sizes, d, device, dtype, lambda i: copied(X[i.cpu().numpy()]))


def _blocks(X: Any, device: torch.device, dtype: torch.dtype) -> Samples:
    """Return blocks of rows as samples; a first pass counts the rows and checks the values.

    Blocks without rows are skipped.
    """

    def converted(block: Any) -> Tensor:
        return computable(as_tensor("X", block)).to(device)

    def read() -> Iterator[Tensor]:
        return (x for x in map(converted, X) if len(x))

    sizes: list[int] = []
    d = None
    for number, block in enumerate(X):
        x = converted(block)
        if x.dim() == 2 and len(x) == 0:
            continue
        _check_shape(x, f" in block {number}")
        d = x.shape[1] if d is None else d
        if x.shape[1] != d:
            raise ValueError(
                f"X: expected blocks of {d} features like the first, got {x.shape[1]} in block "
                f"{number}"
            )
        check_values(x, column_names(block))
        sizes.append(len(x))
    if d is None:
        raise ValueError("X: expected at least one block with rows, got none")
    return StreamedSamples(read, sizes, d, device, dtype)


def _check_shape(x: Any, where: str = "") -> None:
    """Raise ValueError unless x has the shape (n, D) with n, D > 0."""
    shape = tuple(x.shape)
    if len(shape) != 2 or 0 in shape:
        raise ValueError(
            f"X: expected shape (n, D) with at least one sample and one feature, got {shape}{where}"
        )


def _from_scipy(X: Any) -> Tensor:
    """Return a scipy sparse matrix as a torch CSR matrix without duplicate entries."""
    X = X.tocsr()  # the caller's own matrix if it is in CSR, so it is copied before a change
    if not X.has_canonical_format:
        X = X.copy()
        X.sum_duplicates()
    rows, columns, values = (as_tensor("X", part) for part in (X.indptr, X.indices, X.data))
    return csr(rows, columns, values, X.shape)


def _csr_in_rows(x: Tensor, step: int) -> Iterator[Tensor]:
    """Yield the rows of x (CSR) in pieces of ``step`` rows."""
    starts = x.crow_indices().long()
    for first in range(0, x.shape[0], step):
        last = min(first + step, x.shape[0])
        at = slice(int(starts[first]), int(starts[last]))
        yield csr(
            starts[first : last + 1] - starts[first],
            x.col_indices()[at],
            x.values()[at],
            (last - first, x.shape[1]),
        )


def _density(x: Tensor) -> float:
    """Return the share of entries that are not 0, from a thousand evenly spaced rows."""
    rows = x[:: max(1, len(x) // 1000)]
    return int(torch.count_nonzero(rows)) / rows.numel()
