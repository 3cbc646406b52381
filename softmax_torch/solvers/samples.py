"""Samples X (n, D) in dense, sparse and streamed form: products with X by blocks, and single rows.

A full-batch solver needs two products with its samples, for coefficients W (M, D) and residuals
r (n, M),

    X W^T    and    r^T X,

and sometimes single rows. ``blocks`` cuts X into blocks of rows. The two products of a block are
computed one after the other, so that the second finds the block in the cache. Measured on MNIST
(60000 x 784, 10 classes, float32, 2 cores; both products):

 - dense, in blocks of 2048 rows: 36 ms; as a whole 50 ms;
 - sparse (19% of the pixels are not 0): 12 ms, from a matrix with 32-bit indices and its transpose.
   With 64-bit indices it takes 49 ms, with a transposed view 600 ms.

So dense data that are mostly zeros are converted to sparse ones, at the cost of some twelve passes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from itertools import pairwise
from typing import Protocol

import torch
from torch import Tensor

from softmax_torch.solvers.csr import csr_shifted, csr_squared, csr_transposed, recast

__all__ = ["Block", "DenseSamples", "Samples", "SparseSamples", "StreamedSamples"]

DENSE_ROWS = 2048
"""Rows of a dense block on a CPU: at D = 784 passes with 128, 512, 2048 and 4096 rows take 51, 40,
37 and 50 ms."""

BLOCK_BYTES = 6 << 20
"""Bytes of a dense block on a CPU, at most: its size at D = 784."""

DEVICE_BLOCK_BYTES = 1 << 30
"""Bytes of a dense block on a GPU, where the number of calls matters and the cache does not."""

SPARSE_ROWS = 8192
"""Rows of a sparse block: MNIST is converted in 0.39 s by blocks, and in 0.86 s as a whole."""

SPARSE_BELOW = 0.25
"""Share of entries other than 0 below which dense data are converted to sparse ones on a CPU."""


class Block(Protocol):
    """Some rows x (B, D) of X."""

    def dot(self, W: Tensor) -> Tensor:
        """Return x W^T (B, M), in the dtype of W (M, D)."""
        ...

    def transposed_dot(self, r: Tensor) -> Tensor:
        """Return r^T x (M, D), in the dtype of r (B, M)."""
        ...

    def square_dot(self, W: Tensor) -> Tensor:
        """Return (x * x) W^T (B, M), in the dtype of W (M, D)."""
        ...

    def transposed_square_dot(self, r: Tensor) -> Tensor:
        """Return r^T (x * x) (M, D), in the dtype of r (B, M)."""
        ...

    def group_ranges(self, group: Tensor, groups: int) -> tuple[Tensor, Tensor]:
        """Return the least and the largest entry of each column per group of rows (groups, D).

        ``group`` (B,) assigns each row to a group in [0, groups), or to none by -1. Groups without
        rows have +inf as the least entry and -inf as the largest. The results are float64.
        """
        ...


class Samples(Protocol):
    """X (n, D) on a device; ``dtype`` is the dtype in which passes over it are fastest."""

    n: int
    d: int
    device: torch.device
    dtype: torch.dtype

    def blocks(self) -> Iterator[tuple[slice, Block]]:
        """Yield the blocks in order, each with its slice of the rows."""
        ...

    def rows(self, index: Tensor, dtype: torch.dtype | None = None) -> Tensor:
        """Return the rows (len(index), D) at these ascending indices, dense.

        The result has this dtype, by default ``self.dtype``.
        """
        ...

    def shifted(self, offset: Tensor) -> Samples:
        """Return the samples X - offset, for an offset (D,) in float64.

        The difference is taken in float64, before anything is rounded to float32.
        """
        ...


class _Dense:
    """A dense block: ``x`` minus the offset, for passes in float32, and ``exact`` as given."""

    def __init__(self, x: Tensor, exact: Tensor, offset: Tensor | None = None) -> None:
        self.x, self.exact, self.offset = x, exact, offset

    def _in(self, dtype: torch.dtype) -> Tensor:
        return _subtract(self.exact, self.offset) if dtype == torch.float64 else self.x.to(dtype)

    def dot(self, W: Tensor) -> Tensor:
        return self._in(W.dtype) @ W.T

    def transposed_dot(self, r: Tensor) -> Tensor:
        return r.T @ self._in(r.dtype)

    def square_dot(self, W: Tensor) -> Tensor:
        return self._in(W.dtype).square() @ W.T

    def transposed_square_dot(self, r: Tensor) -> Tensor:
        return r.T @ self._in(r.dtype).square()

    def group_ranges(self, group: Tensor, groups: int) -> tuple[Tensor, Tensor]:
        least = self.x.new_full((groups, self.x.shape[1]), math.inf, dtype=torch.float64)
        most = -least
        for g in set(group[group >= 0].tolist()):
            least[g], most[g] = torch.aminmax(self._in(torch.float64)[group == g], dim=0)
        return least, most


class _Sparse:
    """A sparse block: rows and their transpose in CSR, as given and in the dtype of the passes."""

    def __init__(self, x: Tensor, xt: Tensor, dtype: torch.dtype) -> None:
        self.x, self.xt = x, xt
        self.fast = tuple(recast(m, dtype) for m in (x, xt))

    def _in(self, dtype: torch.dtype) -> tuple[Tensor, ...]:
        if dtype == self.fast[0].dtype:
            return self.fast
        return tuple(recast(m, dtype) for m in (self.x, self.xt))

    def dot(self, W: Tensor) -> Tensor:
        product: Tensor = self._in(W.dtype)[0] @ W.T.contiguous()
        return product

    def transposed_dot(self, r: Tensor) -> Tensor:
        product: Tensor = self._in(r.dtype)[1] @ r
        return product.T

    def square_dot(self, W: Tensor) -> Tensor:
        product: Tensor = csr_squared(self._in(W.dtype)[0]) @ W.T.contiguous()
        return product

    def transposed_square_dot(self, r: Tensor) -> Tensor:
        product: Tensor = csr_squared(self._in(r.dtype)[1]) @ r
        return product.T

    def group_ranges(self, group: Tensor, groups: int) -> tuple[Tensor, Tensor]:
        D = self.x.shape[1]
        row_group = torch.repeat_interleave(group, self.x.crow_indices().diff())
        stored = row_group >= 0
        cell = row_group[stored] * D + self.x.col_indices()[stored]
        values = self.x.values()[stored].double()
        least = values.new_full((groups * D,), math.inf).scatter_reduce_(0, cell, values, "amin")
        most = values.new_full((groups * D,), -math.inf).scatter_reduce_(0, cell, values, "amax")
        # A cell with fewer stored entries than rows also has zeros.
        rows = torch.bincount(group[group >= 0], minlength=groups).repeat_interleave(D)
        with_zeros = torch.bincount(cell, minlength=groups * D) < rows
        least = torch.where(with_zeros, least.clamp_max(0), least)
        most = torch.where(with_zeros, most.clamp_min(0), most)
        return least.view(groups, D), most.view(groups, D)

    def rows(self, index: Tensor, dtype: torch.dtype) -> Tensor:
        """Return the rows at these indices, dense."""
        x = self._in(dtype)[0]
        starts = x.crow_indices().long()
        counts = (starts[1:] - starts[:-1])[index]
        row = torch.repeat_interleave(counts)
        first = starts[index] - (counts.cumsum(0) - counts)
        entry = torch.arange(len(row)) + first[row]
        dense = x.values().new_zeros(len(index), x.shape[1])
        # Duplicate entries are added up, as in products.
        return dense.index_put_(
            (row, x.col_indices()[entry].long()), x.values()[entry], accumulate=True
        )


def dense_rows(d: int, device: torch.device) -> int:
    """Return the number of rows of a dense block of d columns."""
    if device.type == "cpu":
        return max(64, min(DENSE_ROWS, BLOCK_BYTES // (4 * d)))
    return max(64, DEVICE_BLOCK_BYTES // (4 * d))


class DenseSamples:
    """A tensor (n, D) of any floating-point dtype, minus an offset (D,) if one is given.

    Passes in float32 read ``fast``, a float32 copy with the offset subtracted; by default X itself.
    """

    def __init__(self, X: Tensor, fast: Tensor | None = None, offset: Tensor | None = None) -> None:
        self.X, self.fast, self.offset = X, X if fast is None else fast, offset
        self.n, self.d = X.shape
        self.device = X.device
        self.dtype = torch.float64 if self.fast.dtype == torch.float64 else torch.float32

    def blocks(self) -> Iterator[tuple[slice, Block]]:
        step = dense_rows(self.d, self.device)
        for start in range(0, self.n, step):
            at = slice(start, min(start + step, self.n))
            yield at, _Dense(self.fast[at], self.X[at], self.offset)

    def rows(self, index: Tensor, dtype: torch.dtype | None = None) -> Tensor:
        dtype = dtype or self.dtype
        if dtype == torch.float64:
            return _subtract(self.X[index], self.offset)
        return self.fast[index].to(dtype)

    def shifted(self, offset: Tensor) -> Samples:
        if self.dtype == torch.float64:
            return DenseSamples(_subtract(self.X, offset))
        parts = [_subtract(self.X[at], offset).float() for at, _ in self.blocks()]
        return DenseSamples(self.X, torch.cat(parts), offset)


class SparseSamples:
    """Sparse rows on a CPU: pieces (x, x^T) in CSR of consecutive rows.

    Single rows are read from ``dense``, the dense X that the pieces come from, if there is one.
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

    def rows(self, index: Tensor, dtype: torch.dtype | None = None) -> Tensor:
        dtype = dtype or self.dtype
        if self.dense is not None and dtype == self.dtype:
            return self.dense[index].to(dtype)
        sizes = [piece.x.shape[0] for piece in self.pieces]
        return torch.cat([self.pieces[i].rows(at, dtype) for i, at in _by_piece(index, sizes)])

    def shifted(self, offset: Tensor) -> Samples:
        pieces = (csr_shifted(piece.x, offset) for piece in self.pieces)
        return SparseSamples(((x, csr_transposed(x)) for x in pieces), self.dtype)


class StreamedSamples:
    """Blocks (B, D) that are read again in each pass; one is held at a time.

    Args:
        read: a function that yields the blocks as tensors on the device, in any dtype.
        sizes: the number of rows of each block.
        d: number of features.
        device: the device of the blocks.
        dtype: the dtype of the passes.
        pick: a function from ascending row numbers to these rows, for sources such as memory maps
            that can read single rows; by default all blocks are read for them.
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
                f"{self.n} rows in all; got different blocks after row {start}"
            )

    def rows(self, index: Tensor, dtype: torch.dtype | None = None) -> Tensor:
        dtype = dtype or self.dtype
        if self.pick is not None:
            return self.pick(index).to(dtype)
        found, none = dict(_by_piece(index, self.sizes)), index[:0]
        return torch.cat([x[found.get(i, none)].to(dtype) for i, x in enumerate(self.read())])

    def shifted(self, offset: Tensor) -> Samples:
        read, pick = self.read, self.pick
        return StreamedSamples(
            lambda: (_subtract(x, offset) for x in read()),
            self.sizes,
            self.d,
            self.device,
            self.dtype,
            None if pick is None else lambda index: _subtract(pick(index), offset),
        )


def _subtract(x: Tensor, offset: Tensor | None) -> Tensor:
    """Return x - offset in float64; x if there is no offset."""
    return x.double() if offset is None else x.double() - offset


def _by_piece(index: Tensor, sizes: list[int]) -> Iterator[tuple[int, Tensor]]:
    """Split ascending row numbers into pairs of a piece's index and row numbers within it."""
    starts = torch.tensor([0, *sizes]).cumsum(0).to(index.device)
    ends = torch.searchsorted(index, starts).tolist()
    for i, (a, b) in enumerate(pairwise(ends)):
        if b > a:
            yield i, index[a:b] - starts[i]
