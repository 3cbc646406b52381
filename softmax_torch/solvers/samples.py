"""Samples X (n, D) in dense, sparse and streamed form: passes over X by blocks, and single rows.

A full-batch solver needs two products with its samples, for coefficients W (M, D) and residuals
r (n, M),

    X W^T    and    r^T X,

and sometimes single rows. ``blocks`` cuts X into blocks of rows, each of which makes both products
(see ``block``). Native passes block for the cache themselves: they get all rows that are in memory
as one block. Matrix products get small blocks, so that the second product of a block finds it in
the cache. Measured on MNIST (60000 x 784, 10 classes, float32, 2 cores; both products by torch):

 - dense, in blocks of 2048 rows: 36 ms; as a whole 50 ms;
 - sparse (19% of the pixels are not 0): 12 ms, from a matrix with 32-bit indices and its transpose.
   With 64-bit indices it takes 49 ms, with a transposed view 600 ms.

So dense data that are mostly zeros are converted to sparse ones, at the cost of some twelve passes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from itertools import pairwise
from typing import Protocol

import torch
from torch import Tensor

from softmax_torch.ops.sample_rows import CsrRows
from softmax_torch.solvers.block import (
    Block,
    DenseBlock,
    SparseBlock,
    has_native_passes,
    reads_natively,
    subtract,
)
from softmax_torch.solvers.csr import csr_part, csr_shifted

__all__ = ["DenseSamples", "Samples", "SparseSamples", "StreamedSamples"]

DENSE_ROWS = 2048
"""Rows of a dense block on a CPU, for matrix products: at D = 784 passes with 128, 512, 2048 and
4096 rows take 51, 40, 37 and 50 ms."""

BLOCK_BYTES = 6 << 20
"""Bytes of a dense block on a CPU, at most: its size at D = 784."""

DEVICE_BLOCK_BYTES = 1 << 30
"""Bytes of a dense block on a GPU, where the number of calls matters and the cache does not."""

SPARSE_ROWS = 8192
"""Rows of a sparse block: MNIST is converted in 0.39 s by blocks, and in 0.86 s as a whole."""

SPARSE_BELOW = 0.25
"""Share of entries other than 0 below which dense data are converted to sparse ones on a CPU."""


class Samples(Protocol):
    """X (n, D) on a device; ``dtype`` is the dtype in which passes over it are fastest."""

    n: int
    d: int
    device: torch.device
    dtype: torch.dtype

    def blocks(self, columns: int | None = None) -> Iterator[tuple[slice, Block]]:
        """Yield the blocks in order, each with its slice of the rows.

        Args:
            columns: columns M of the coefficients of the passes to make. None asks for blocks that
                are small.
        """
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

    def blocks(self, columns: int | None = None) -> Iterator[tuple[slice, Block]]:
        native = reads_natively(self.X, columns) and reads_natively(self.fast, columns)
        step = self.n if native else dense_rows(self.d, self.device)
        for start in range(0, self.n, step):
            at = slice(start, min(start + step, self.n))
            yield at, DenseBlock(self.fast[at], self.X[at], self.offset, native)

    def rows(self, index: Tensor, dtype: torch.dtype | None = None) -> Tensor:
        dtype = dtype or self.dtype
        if dtype == torch.float64:
            return subtract(self.X[index], self.offset)
        return self.fast.index_select(0, index).to(dtype)

    def shifted(self, offset: Tensor) -> Samples:
        if self.dtype == torch.float64:
            return DenseSamples(subtract(self.X, offset))
        parts = [subtract(self.X[at], offset).float() for at, _ in self.blocks()]
        return DenseSamples(self.X, torch.cat(parts), offset)


class SparseSamples:
    """Sparse rows on a CPU.

    Args:
        parts: X in CSR, in parts of consecutive rows; in float64 if the passes are.
        dtype: the dtype of the passes.
        dense: the dense X that the rows come from, if there is one. Single rows are read from it.
    """

    def __init__(
        self, parts: Sequence[CsrRows], dtype: torch.dtype, dense: Tensor | None = None
    ) -> None:
        self.sizes, self.d = [len(part.crow) - 1 for part in parts], parts[0].d
        self.n, self.device, self.dtype = sum(self.sizes), torch.device("cpu"), dtype
        self.dense = dense
        self.parts = [SparseBlock(part, native=True) for part in parts]

    @cached_property
    def pieces(self) -> list[SparseBlock]:
        """The blocks of matrix products: views of the parts, until the first product."""
        pieces, dense, end = [], None, 0
        for part in self.parts:
            rows = len(part.x.crow) - 1
            for start in range(0, rows, SPARSE_ROWS):
                x = csr_part(part.x, start, min(start + SPARSE_ROWS, rows))
                begin, end = end, end + len(x.crow) - 1
                dense = None if self.dense is None else self.dense[begin:end]
                pieces.append(SparseBlock(x, dense=dense))
        return pieces

    def blocks(self, columns: int | None = None) -> Iterator[tuple[slice, Block]]:
        native = has_native_passes(self.device, columns)
        end = 0
        for block in self.parts if native else self.pieces:
            start, end = end, end + len(block.x.crow) - 1
            yield slice(start, end), block

    def rows(self, index: Tensor, dtype: torch.dtype | None = None) -> Tensor:
        dtype = dtype or self.dtype
        if self.dense is not None:
            return self.dense.index_select(0, index).to(dtype)
        found = _by_part(index, self.sizes)
        return torch.cat([self.parts[i].dense_rows(at, dtype) for i, at in found])

    def shifted(self, offset: Tensor) -> Samples:
        return SparseSamples([csr_shifted(piece.x, offset) for piece in self.pieces], self.dtype)


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

    def blocks(self, columns: int | None = None) -> Iterator[tuple[slice, Block]]:
        start = 0
        for number, x in enumerate(self.read()):
            if number >= len(self.sizes) or len(x) != self.sizes[number]:
                break
            native = reads_natively(x, columns)
            step = len(x) if native else dense_rows(self.d, self.device)
            for s in range(0, len(x), step):
                part = x[s : s + step]
                yield slice(start + s, start + s + len(part)), DenseBlock(part, part, None, native)
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
        found, none = dict(_by_part(index, self.sizes)), index[:0]
        return torch.cat([x[found.get(i, none)].to(dtype) for i, x in enumerate(self.read())])

    def shifted(self, offset: Tensor) -> Samples:
        read, pick = self.read, self.pick
        return StreamedSamples(
            lambda: (subtract(x, offset) for x in read()),
            self.sizes,
            self.d,
            self.device,
            self.dtype,
            None if pick is None else lambda index: subtract(pick(index), offset),
        )


def _by_part(index: Tensor, sizes: list[int]) -> Iterator[tuple[int, Tensor]]:
    """Split ascending row numbers into pairs of a part's index and row numbers within it."""
    starts = torch.tensor([0, *sizes]).cumsum(0).to(index.device)
    ends = torch.searchsorted(index, starts).tolist()
    for i, (a, b) in enumerate(pairwise(ends)):
        if b > a:
            yield i, index[a:b] - starts[i]
