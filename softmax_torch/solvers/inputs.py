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

from softmax_torch.ops import backends
from softmax_torch.ops.sample_rows import CsrRows
from softmax_torch.solvers import samples
from softmax_torch.solvers.block import has_native_passes, reads_natively
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
from softmax_torch.solvers.csr import (
    csr_of_dense,
    csr_part,
    matrix_of_csr,
)
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
        return _sparse(_from_torch(X.detach()), None, device, dtype)
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
    if x.numel() <= SMALL:
        x = x.contiguous()  # as native passes read it
    if dtype == torch.float64:
        x = x.double()
    elif not reads_natively(x, 1):
        x = floating(x)
    if _is_faster_sparse(x):
        return SparseSamples(_entries(x), dtype, dense=x)
    return DenseSamples(x, x.float() if x.dtype == torch.float64 != dtype else None)


def _is_faster_sparse(x: Tensor) -> bool:
    """Return whether passes over the entries of x that are not 0 take less time than over all."""
    if x.device.type != "cpu" or x.numel() <= SMALL:
        return False
    mkl: bool = torch.backends.mkl.is_available()  # type: ignore[no-untyped-call] # torch has no type for it
    return (mkl or has_native_passes(x.device, 1)) and _density(x) < samples.SPARSE_BELOW


def _entries(x: Tensor) -> list[CsrRows]:
    """Return the entries of x that are not 0, in parts of consecutive rows."""
    passes = backends.passes(x.device)
    if passes is not None and reads_natively(x, 1):
        return [passes.csr_of_dense(x if x.dtype == torch.float64 else x.float())]
    return [csr_of_dense(part) for part in torch.split(x, samples.SPARSE_ROWS)]


def _sparse(
    x: CsrRows, names: Sequence[Any] | None, device: torch.device | None, dtype: torch.dtype | None
) -> Samples:
    """Return rows in CSR as samples: sparse ones on a CPU, streamed dense blocks on a GPU."""
    values = computable(x.values)
    check_stored(values, x.col, names)
    if dtype is None:
        dtype = torch.float64 if len(values) <= SMALL else torch.float32
    values = floating(values)
    # A native pass reads float32 and float64.
    exact = torch.float64 in (dtype, values.dtype)
    device = values.device if device is None else device
    values = values.to(torch.float64 if exact else torch.float32)
    if device.type == "cpu":
        crow, col, values = (part.cpu() for part in (x.crow, x.col, values))
        return SparseSamples([CsrRows(crow.long(), col.int(), values, x.d)], dtype)
    return _streamed_sparse(CsrRows(x.crow, x.col, values, x.d), device, dtype)


def _streamed_sparse(x: CsrRows, device: torch.device, dtype: torch.dtype) -> Samples:
    """Return rows in CSR as dense blocks: a GPU multiplies these faster than sparse ones.

    The blocks keep the dtype of the rows, whatever that of the passes: a certificate in float64 is
    for the samples as given.
    """
    n, step = len(x.crow) - 1, samples.dense_rows(x.d, device)
    ends = [(start, min(start + step, n)) for start in range(0, n, step)]
    pieces = [matrix_of_csr(csr_part(x, start, end)).to(device) for start, end in ends]
    sizes = [end - start for start, end in ends]
    return StreamedSamples(
        lambda: (piece.to_dense() for piece in pieces), sizes, x.d, device, dtype
    )


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


def _from_scipy(X: Any) -> CsrRows:
    """Return the rows of a scipy sparse matrix, without duplicate entries."""
    X = X.tocsr()  # the caller's own matrix if it is in CSR, so it is copied before a change
    if not X.has_canonical_format:
        X = X.copy()
        X.sum_duplicates()
    crow, col, values = (as_tensor("X", part) for part in (X.indptr, X.indices, X.data))
    return CsrRows(crow, col, values, X.shape[1])


def _from_torch(x: Tensor) -> CsrRows:
    """Return the rows of a sparse tensor."""
    x = x if x.layout == torch.sparse_csr else x.to_sparse_csr()
    return CsrRows(x.crow_indices(), x.col_indices(), x.values(), x.shape[1])


def _density(x: Tensor) -> float:
    """Return the share of entries that are not 0, from a thousand evenly spaced rows."""
    rows = x[:: max(1, len(x) // 1000)]
    return int(torch.count_nonzero(rows)) / rows.numel()
