"""A block of rows x (B, D), and the passes that a full-batch solver makes over it.

For coefficients theta (M, P) with P = D, or P = D + 1 with a bias, and residuals r (B, M):

    logits             [x, 1] theta^T                                              (B, M)
    transposed         r^T [x, 1]                                                  (M, P)
    loss_and_gradient  sum_i w_i nll_i,  sum_i w_i (p_i - e_{y_i}) [x_i, 1]^T
    hessian_product    sum_i w_i ((diag p_i - p_i p_i^T) v [x_i, 1]) [x_i, 1]^T

Each has two forms, of which a block makes the one that its attribute ``native`` says. A native pass
(``ops.native.passes``) reads the rows once and sums in float64. It blocks for the cache itself, and
so takes all rows that are in memory. The other form makes the two matrix products of torch, ``dot``
and ``transposed_dot``, one after the other, so that the second finds a small block in the cache.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from functools import cached_property

import torch
from torch import Tensor

from softmax_torch.maths import RowWeights, Target
from softmax_torch.ops import backends, interfaces
from softmax_torch.ops.full_precision import full_precision
from softmax_torch.ops.sample_rows import MOST_COLUMNS, CsrRows, DenseRows, SampleRows
from softmax_torch.solvers import csr

__all__ = ["Block", "DenseBlock", "SparseBlock", "has_native_passes", "reads_natively", "subtract"]

READABLE = {torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.uint8}
"""Dtypes of dense rows that a native pass reads as they are."""


def has_native_passes(device: torch.device, columns: int | None) -> bool:
    """Return whether passes with so many columns of coefficients are native on this device.

    None asks for matrix products.
    """
    if columns is None or columns > MOST_COLUMNS:
        return False
    return backends.passes(device) is not None


def reads_natively(x: Tensor, columns: int | None) -> bool:
    """Return whether native passes with so many columns of coefficients read dense rows x."""
    rows_in_order = x.stride(1) == 1 or x.shape[1] == 1
    return x.dtype in READABLE and rows_in_order and has_native_passes(x.device, columns)


class Block(ABC):
    """Some rows x (B, D) of X.

    Attributes:
        d: D.
        native: whether passes are native.
    """

    d: int
    native: bool = False

    def native_rows(self, dtype: torch.dtype) -> SampleRows | None:
        """Return the rows that a native pass with coefficients in this dtype reads.

        None, which is the default, for blocks whose passes are two matrix products.
        """
        return None

    @abstractmethod
    def dot(self, W: Tensor, squared: bool = False) -> Tensor:
        """Return x W^T (B, M), in the dtype of W (M, D); of x * x if ``squared``."""

    @abstractmethod
    def transposed_dot(self, r: Tensor, squared: bool = False) -> Tensor:
        """Return r^T x (M, D), in the dtype of r (B, M); of x * x if ``squared``."""

    @abstractmethod
    def dense(self) -> Tensor:
        """Return the rows x (B, D), dense, in float64."""

    @abstractmethod
    def group_ranges(self, group: Tensor, groups: int) -> tuple[Tensor, Tensor]:
        """Return the least and the largest entry of each column per group of rows (groups, D).

        ``group`` (B,) assigns each row to a group in [0, groups), or to none by -1. Groups without
        rows have +inf as the least entry and -inf as the largest. The results are float64.
        """

    def _native(self, dtype: torch.dtype) -> tuple[interfaces.Passes, SampleRows] | None:
        rows = self.native_rows(dtype)
        passes = None if rows is None else backends.passes(torch.device("cpu"))
        return None if rows is None or passes is None else (passes, rows)

    def logits(self, theta: Tensor, bias: bool, squared: bool = False) -> Tensor:
        """Return [x, 1] theta^T (B, M), in the dtype of theta; of [x * x, 1] if ``squared``."""
        if found := self._native(theta.dtype):
            passes, rows = found
            return passes.logits(rows, theta, bias, squared)
        z = self.dot(theta[:, : self.d], squared)
        return z.add_(theta[:, -1]) if bias else z

    def transposed(self, r: Tensor, bias: bool, squared: bool = False) -> Tensor:
        """Return r^T [x, 1] (M, P), float64, for r (B, M); of [x * x, 1] if ``squared``."""
        if found := self._native(r.dtype):
            passes, rows = found
            return passes.transposed(rows, r, bias, squared)
        product = self.transposed_dot(r, squared).double()
        if not bias:
            return product
        return torch.cat([product, r.sum(0, dtype=torch.float64).unsqueeze(1)], 1)

    def loss_and_gradient(
        self, theta: Tensor, y: Tensor, weight: Tensor | None, classes: int, bias: bool
    ) -> tuple[Tensor, Tensor]:
        """Return the weighted sums of the NLL (J,) and their gradient (J K, P), float64.

        Args:
            theta: J sets of coefficients (J K, P), in the dtype of the pass.
            y: class indices (B,).
            weight: (B,), or None for ones.
            classes: K.
            bias: whether the last column of theta is a bias.
        """
        if found := self._native(theta.dtype):
            passes, rows = found
            sets = torch.split(theta, MOST_COLUMNS // classes * classes)
            sums = [passes.loss_and_gradient(rows, s, y, weight, classes, bias) for s in sets]
            return torch.cat([value for value, _ in sums]), torch.cat([g for _, g in sums])
        z = self.logits(theta, bias)
        w = RowWeights(1.0 if weight is None else weight.to(z.dtype))
        values = z.new_zeros(len(theta) // classes, dtype=torch.float64)
        for j, z_j in enumerate(torch.split(z, classes, 1)):
            # overwrites the logits with the residuals w (p - e_y)
            values[j] = backends.kernels(z_j).weighted_total(z_j, Target(y), w, dz=z_j)
        return values, self.transposed(z, bias)

    def hessian_product(self, v: Tensor, p: Tensor, weight: Tensor | None, bias: bool) -> Tensor:
        """Return the weighted sum of Hessian-vector products (K, P), float64.

        Args:
            v: (K, P), in the dtype of p.
            p: class probabilities (B, K).
            weight: (B,), or None for ones.
            bias: whether the last column of v is a bias.
        """
        if found := self._native(v.dtype):
            passes, rows = found
            return passes.hessian_product(rows, v, p, weight, bias)
        r = self.logits(v, bias).mul_(p)
        r -= p * r.sum(1, keepdim=True)
        if weight is not None:
            r *= weight.to(r.dtype).unsqueeze(1)
        return self.transposed(r, bias)


class DenseBlock(Block):
    """A dense block: ``x`` minus the offset, for passes in float32, and ``exact`` as given."""

    def __init__(
        self, x: Tensor, exact: Tensor, offset: Tensor | None = None, native: bool = False
    ) -> None:
        self.x, self.exact, self.offset = x, exact, offset
        self.d, self.native = x.shape[1], native
        self._last: Tensor | None = None

    def native_rows(self, dtype: torch.dtype) -> SampleRows | None:
        if not self.native:
            return None
        exact = dtype == torch.float64
        return DenseRows(self.exact, self.offset) if exact else DenseRows(self.x, None)

    def dot(self, W: Tensor, squared: bool = False) -> Tensor:
        with full_precision(W.dtype, W.device):
            return self._in(W.dtype, squared) @ W.T

    def transposed_dot(self, r: Tensor, squared: bool = False) -> Tensor:
        with full_precision(r.dtype, r.device):
            return r.T @ self._in(r.dtype, squared)

    def dense(self) -> Tensor:
        return subtract(self.exact, self.offset)

    def group_ranges(self, group: Tensor, groups: int) -> tuple[Tensor, Tensor]:
        least = self.x.new_full((groups, self.d), math.inf, dtype=torch.float64)
        most, x = -least, self._in(torch.float64)
        for g in set(group[group >= 0].tolist()):
            least[g], most[g] = torch.aminmax(x[group == g], dim=0)
        return least, most

    def _in(self, dtype: torch.dtype, squared: bool = False) -> Tensor:
        """Return x in this dtype, which both products of a pass use."""
        if self._last is None or self._last.dtype != dtype:
            exact = dtype == torch.float64
            self._last = self.dense() if exact else self.x.to(dtype)
        return self._last.square() if squared else self._last


class SparseBlock(Block):
    """A sparse block: rows in CSR.

    Products use torch matrices of the rows and of their transpose, made at the first product. With
    a transposed view a product takes 600 ms on MNIST in place of 6.

    Args:
        x: the rows as given.
        native: whether passes are native.
        dense: the same rows, dense, if they are in memory: transposing these takes less time.
    """

    def __init__(self, x: CsrRows, native: bool = False, dense: Tensor | None = None) -> None:
        self.x, self.rows_in_memory = x, dense
        self.d, self.native = x.d, native

    @cached_property
    def narrow(self) -> CsrRows:
        """The rows for passes in float32."""
        return self.x._replace(values=self.x.values.float())

    @cached_property
    def matrices(self) -> tuple[Tensor, Tensor]:
        """x and x^T as given."""
        x = csr.matrix_of_csr(self.x)
        if self.rows_in_memory is None:
            return x, csr.transposed(x)
        return x, csr.matrix_of_csr(csr.csr_of_dense(self.rows_in_memory.T.contiguous()))

    @cached_property
    def narrow_matrices(self) -> tuple[Tensor, Tensor]:
        """x and x^T in float32."""
        x, xt = self.matrices
        return csr.recast(x, torch.float32), csr.recast(xt, torch.float32)

    def native_rows(self, dtype: torch.dtype) -> SampleRows | None:
        if not self.native:
            return None
        return self.x if dtype == torch.float64 else self.narrow

    def dot(self, W: Tensor, squared: bool = False) -> Tensor:
        product: Tensor = self._in(W.dtype, 0, squared) @ W.T.contiguous()
        return product

    def transposed_dot(self, r: Tensor, squared: bool = False) -> Tensor:
        product: Tensor = self._in(r.dtype, 1, squared) @ r
        return product.T

    def dense(self) -> Tensor:
        if self.rows_in_memory is not None:
            return self.rows_in_memory.double()
        return self.dense_rows(torch.arange(len(self.x.crow) - 1), torch.float64)

    def group_ranges(self, group: Tensor, groups: int) -> tuple[Tensor, Tensor]:
        row_group = torch.repeat_interleave(group, self.x.crow.diff())
        stored = row_group >= 0
        cell = row_group[stored] * self.d + self.x.col[stored]
        values = self.x.values[stored].double()
        least = values.new_full((groups * self.d,), math.inf)
        most = -least
        least.scatter_reduce_(0, cell, values, "amin")
        most.scatter_reduce_(0, cell, values, "amax")
        # A cell with fewer stored entries than rows also has zeros.
        rows = torch.bincount(group[group >= 0], minlength=groups).repeat_interleave(self.d)
        with_zeros = torch.bincount(cell, minlength=groups * self.d) < rows
        least = torch.where(with_zeros, least.clamp_max(0), least)
        most = torch.where(with_zeros, most.clamp_min(0), most)
        return least.view(groups, self.d), most.view(groups, self.d)

    def dense_rows(self, index: Tensor, dtype: torch.dtype) -> Tensor:
        """Return the rows at these indices, dense."""
        x = self.x
        counts = x.crow.diff()[index]
        row = torch.repeat_interleave(counts)
        first = x.crow[index] - (counts.cumsum(0) - counts)
        entry = torch.arange(len(row)) + first[row]
        dense = x.values.new_zeros(len(index), self.d, dtype=dtype)
        # Duplicate entries are added up, as in products.
        return dense.index_put_(
            (row, x.col[entry].long()), x.values[entry].to(dtype), accumulate=True
        )

    def _in(self, dtype: torch.dtype, transposed: int, squared: bool) -> Tensor:
        if dtype == torch.float32:
            x = self.narrow_matrices[transposed]
        else:
            x = csr.recast(self.matrices[transposed], dtype)
        return csr.squared(x) if squared else x


def subtract(x: Tensor, offset: Tensor | None) -> Tensor:
    """Return x - offset in float64; x if there is no offset."""
    return x.double() if offset is None else x.double() - offset
