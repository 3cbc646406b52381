"""The samples of a fit, wherever they are: two products with X, block by block, and single rows.

A full-batch solver needs of its data X (n, D) nothing but, for coefficients W (M, D) and residuals
r (n, M),

    X W^T    and    r^T X,

and now and then some rows as they are. ``blocks`` cuts X into pieces whose two products are taken
one after the other, so that what the first has read the second finds in cache. Measured on MNIST
(60000 x 784, 10 classes, float32, 2 cores; both products):

 - dense, in blocks of 2048 rows: 36 ms, as a whole 50;
 - as sparse rows, for the 19% of its pixels that are not 0: 12 ms, from a matrix of 32-bit indices
   and its transpose (one of 64-bit indices takes 49 ms, a transposed view 600).

So data that is mostly zeros is made sparse, at the price of some twelve passes.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator
from itertools import pairwise
from typing import Protocol

import torch
from torch import Tensor

__all__ = [
    "Block",
    "DenseSamples",
    "Samples",
    "SparseSamples",
    "StreamedSamples",
    "csr",
    "csr_of_dense",
    "csr_transposed",
]

DENSE_ROWS = 2048
"""Rows of a dense block on a CPU: 128, 512, 2048 and 4096 take 51, 40, 37 and 50 ms at D = 784."""

BLOCK_BYTES = 6 << 20
"""What such a block holds at D = 784, and at most for other D."""

DEVICE_BLOCK_BYTES = 1 << 30
"""Bytes of a block on a GPU, where calls count and cache does not."""

SPARSE_ROWS = 8192
"""Rows of a sparse block: conversion takes 0.39 s so, 0.86 s for the whole at once."""

SPARSE_BELOW = 0.25
"""Share of entries that are not 0 below which dense data is made sparse on a CPU."""


class Block(Protocol):
    """Some rows x (B, D) of X."""

    def dot(self, W: Tensor) -> Tensor:
        """X W^T (B, M), in the type of W (M, D)."""
        ...

    def transposed_dot(self, r: Tensor) -> Tensor:
        """r^T x (M, D), in the type of r (B, M)."""
        ...


class Samples(Protocol):
    """X (n, D) on a device; ``dtype`` is the type that passes over it are fastest in."""

    n: int
    d: int
    device: torch.device
    dtype: torch.dtype

    def blocks(self) -> Iterator[tuple[slice, Block]]:
        """The rows in order, each block with its place."""
        ...

    def rows(self, index: Tensor) -> Tensor:
        """The rows (len(index), D) at these ascending indices, dense, of ``dtype``."""
        ...


class _Dense:
    def __init__(self, x: Tensor, exact: Tensor) -> None:
        self.x, self.exact = x, exact

    def _in(self, dtype: torch.dtype) -> Tensor:
        return (self.exact if dtype == torch.float64 else self.x).to(dtype)

    def dot(self, W: Tensor) -> Tensor:
        return self._in(W.dtype) @ W.T

    def transposed_dot(self, r: Tensor) -> Tensor:
        return r.T @ self._in(r.dtype)


class _Sparse:
    """Rows and their transpose, both in CSR; the values are kept in one more type if need be."""

    def __init__(self, x: Tensor, xt: Tensor, dtype: torch.dtype) -> None:
        self.x, self.xt = x, xt
        self.fast = tuple(_recast(m, dtype) for m in (x, xt))

    def _in(self, dtype: torch.dtype) -> tuple[Tensor, ...]:
        if dtype == self.fast[0].dtype:
            return self.fast
        return tuple(_recast(m, dtype) for m in (self.x, self.xt))

    def dot(self, W: Tensor) -> Tensor:
        product: Tensor = self._in(W.dtype)[0] @ W.T.contiguous()
        return product

    def transposed_dot(self, r: Tensor) -> Tensor:
        product: Tensor = self._in(r.dtype)[1] @ r
        return product.T

    def rows(self, index: Tensor) -> Tensor:
        """Some rows, dense."""
        x = self.fast[0]
        starts = x.crow_indices().long()
        counts = (starts[1:] - starts[:-1])[index]
        row = torch.repeat_interleave(counts)
        first = starts[index] - (counts.cumsum(0) - counts)
        entry = torch.arange(len(row)) + first[row]
        dense = x.values().new_zeros(len(index), x.shape[1])
        # Entries that stand twice are added up, as the products do.
        return dense.index_put_(
            (row, x.col_indices()[entry].long()), x.values()[entry], accumulate=True
        )


def csr(rows: Tensor, columns: Tensor, values: Tensor, shape: tuple[int, int]) -> Tensor:
    """A CSR matrix with 32-bit indices: products take a third of the time of 64-bit ones."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta")
        # torch 2.11 says so although it was told.
        warnings.filterwarnings("ignore", message="Sparse invariant checks are implicitly disabled")
        return torch.sparse_csr_tensor(
            rows.int(), columns.int(), values, shape, check_invariants=False
        )


def _recast(x: Tensor, dtype: torch.dtype) -> Tensor:
    """x in CSR with its values in this type."""
    return csr(x.crow_indices(), x.col_indices(), x.values().to(dtype), (x.shape[0], x.shape[1]))


def csr_of_dense(x: Tensor) -> Tensor:
    """A dense x (N, D) in CSR with 32-bit indices; 0.7 of the time of ``to_sparse_csr``."""
    N, D = x.shape
    entry = (x != 0).view(-1).nonzero().squeeze(1)
    starts = torch.searchsorted(entry, torch.arange(N + 1) * D)
    return csr(starts, entry % D, x.reshape(-1)[entry], (N, D))


def csr_transposed(x: Tensor) -> Tensor:
    """x^T of x in CSR, in CSR."""
    columns = x.col_indices()
    narrow = columns.to(torch.int16) if x.shape[1] < 1 << 15 else columns  # sorted in 0.75 the time
    order = torch.sort(narrow, stable=True).indices
    counts = torch.bincount(x.col_indices(), minlength=x.shape[1])
    starts = torch.nn.functional.pad(counts.cumsum(0), (1, 0))
    row_of = torch.repeat_interleave(x.crow_indices().diff())
    return csr(starts, row_of[order], x.values()[order], (x.shape[1], x.shape[0]))


def dense_rows(d: int, device: torch.device) -> int:
    """The rows of a dense block of d columns."""
    if device.type == "cpu":
        return max(64, min(DENSE_ROWS, BLOCK_BYTES // (4 * d)))
    return max(64, DEVICE_BLOCK_BYTES // (4 * d))


class DenseSamples:
    """A tensor (n, D) of any floating-point type.

    Passes in float32 read ``fast``, a copy in float32, where one is given beside a float64 X.
    """

    def __init__(self, X: Tensor, fast: Tensor | None = None) -> None:
        self.X, self.fast = X, X if fast is None else fast
        self.n, self.d = X.shape
        self.device = X.device
        self.dtype = torch.float64 if self.fast.dtype == torch.float64 else torch.float32

    def blocks(self) -> Iterator[tuple[slice, Block]]:
        step = dense_rows(self.d, self.device)
        for start in range(0, self.n, step):
            at = slice(start, min(start + step, self.n))
            yield at, _Dense(self.fast[at], self.X[at])

    def rows(self, index: Tensor) -> Tensor:
        return self.fast[index].to(self.dtype)


class SparseSamples:
    """Rows on a CPU: pieces (x, x^T) in CSR, in order; passes are fastest in ``dtype``.

    Where they come from a dense X, single rows are taken from there.
    """

    def __init__(
        self,
        pieces: Iterable[tuple[Tensor, Tensor]],
        dtype: torch.dtype,
        dense: Tensor | None = None,
    ) -> None:
        self.dense = dense
        self.pieces = [_Sparse(x, xt, dtype) for x, xt in pieces]
        self.d = self.pieces[0].x.shape[1]
        self.n = sum(piece.x.shape[0] for piece in self.pieces)
        self.device, self.dtype = torch.device("cpu"), dtype

    def blocks(self) -> Iterator[tuple[slice, Block]]:
        start = 0
        for piece in self.pieces:
            end = start + piece.x.shape[0]
            yield slice(start, end), piece
            start = end

    def rows(self, index: Tensor) -> Tensor:
        if self.dense is not None:
            return self.dense[index].to(self.dtype)
        return torch.cat(
            [
                self.pieces[i].rows(here)
                for i, here in _by_piece(index, [piece.x.shape[0] for piece in self.pieces])
            ]
        )


class StreamedSamples:
    """Blocks (B, D) that ``read`` yields anew each time it is called; one is held at a time.

    ``read(index)`` yields the blocks, as float tensors on the device. Where ``pick`` is given, it
    returns single rows without going through all of them, as a memory map can.
    """

    def __init__(
        self,
        read: Callable[[], Iterator[Tensor]],
        sizes: list[int],
        d: int,
        device: torch.device,
        dtype: torch.dtype,
        pick: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        self.read, self.sizes, self.pick = read, sizes, pick
        self.n, self.d, self.device, self.dtype = sum(sizes), d, device, dtype

    def blocks(self) -> Iterator[tuple[slice, Block]]:
        start = 0
        step = dense_rows(self.d, self.device)
        for number, x in enumerate(self.read()):
            if number >= len(self.sizes) or len(x) != self.sizes[number]:
                break
            for s in range(0, len(x), step):
                part = x[s : s + step]
                yield slice(start + s, start + s + len(part)), _Dense(part, part)
            start += len(x)
        if start != self.n:
            raise ValueError(
                f"X: expected the same {len(self.sizes)} blocks each time it is iterated, "
                f"{self.n} rows in all; got other ones after row {start}"
            )

    def rows(self, index: Tensor) -> Tensor:
        if self.pick is not None:
            return self.pick(index)
        found = dict(_by_piece(index, self.sizes))
        return torch.cat([x[found[i]] for i, x in enumerate(self.read()) if i in found])


def _by_piece(index: Tensor, sizes: list[int]) -> Iterator[tuple[int, Tensor]]:
    """Ascending row numbers, as pairs of a piece and the row numbers within it."""
    starts = torch.tensor([0, *sizes]).cumsum(0).to(index.device)
    ends = torch.searchsorted(index, starts).tolist()
    for i, (a, b) in enumerate(pairwise(ends)):
        if b > a:
            yield i, index[a:b] - starts[i]
