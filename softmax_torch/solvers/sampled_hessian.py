"""The Hessian of the mean negative log-likelihood, estimated from a sample of the rows.

With w_i the weight of sample i, p_ik its class probabilities and S = sum_i w_i, classes k and l are
coupled by the block (P, P)

    H_kl  =  1/S sum_i w_i p_ik ([k = l] - p_il) [x_i, 1] [x_i, 1]^T

Its sums over all samples are estimated from rows that are drawn by their curvatures c_i >= 0: row i
is drawn with probability pi_i and has the sampling weight 1 / pi_i:

    pi_i  =  min(1, N (c_i / sum c + l_i / sum l) / 2),    l_i = c_i/S sum_j [x_i, 1]_j^2 / G_jj

The first half favours rows with much curvature, the second half rows that make up much of the
diagonal entry G_jj of some column j: l_i approximates the leverage score of row i, by which rows
are drawn for least squares (Drineas, Mahoney & Muthukrishnan 2008, "Relative-error CUR matrix
decompositions"). With the first half alone a dummy column that is 1 in ten of 100,000 rows is
hardly ever drawn.

With several processes each draws from its own rows, and the sums are added up.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from softmax_torch.solvers.objective import Objective

__all__ = ["RowSample", "SampledHessian", "shortfall"]

GRAM_LEAST_ROWS, GRAM_ROWS_PER_COLUMN = 2000, 2.5
"""Rows drawn for the Gram matrix of a preconditioner, at least, and per column. On MNIST, from 4,
2.5 and 2 rows per column L-BFGS takes 34.5, 37 and 39.5 passes at C = 1, and 91, 92 and 103 at
C = 100 (means of three draws). 4 rows in place of 2.5 cost 0.15 s at C = 1, the time of 5 passes by
matrix products or 15 native ones."""

LEAST_ROWS, ROWS_PER_COLUMN = 3000, 4
"""Rows drawn for a Hessian that couples the classes, at least, and per column."""

ALL_ROWS = 5 * 10**9
"""Multiplications up to which ``whole`` sums over all rows: 50 ms on two cores."""

PART_NUMBERS = 1 << 25
"""Numbers held at a time when the drawn rows are read in parts."""


class RowSample(NamedTuple):
    """Ascending row numbers (N,), and the sampling weight of each, 1 / (pi S)."""

    rows: Tensor
    factor: Tensor


class SampledHessian:
    """The Hessian at one theta, without the penalty.

    Attributes:
        p: class probabilities at theta (n, K).
        w: weights (n,).
        n: number of samples in this process.
        rows_to_draw: number of rows to draw.
    """

    def __init__(self, objective: Objective, theta: Tensor, seed: int, dtype: torch.dtype) -> None:
        self.objective, self.generator = objective, torch.Generator().manual_seed(seed)
        self.p = objective.probabilities(theta, dtype)
        self.w = objective.weights.to(dtype)
        self.n = len(self.p)
        self.rows_to_draw = max(GRAM_LEAST_ROWS, round(GRAM_ROWS_PER_COLUMN * objective.shape[1]))

    @property
    def uses_all_rows(self) -> bool:
        """Whether ``draw`` returns all rows."""
        return self.n <= self.rows_to_draw

    @cached_property
    def curvatures(self) -> Tensor:
        """c_ik = w_i p_ik (1 - p_ik) (n, K), with the digits of 1 - p_ik where p_ik is near 1."""
        p = self.p
        rest = 1 - p
        top = p.argmax(1, keepdim=True)
        rest.scatter_(1, top, p.scatter(1, top, 0.0).sum(1, keepdim=True))
        return rest.mul_(p).mul_(self.w.unsqueeze(1))

    def row_curvatures(self) -> Tensor:
        """Return c_i = w_i (1 - sum_k p_ik^2) (n,), the sum of the curvatures of a row."""
        return self.curvatures.sum(1)

    def diagonal(self, c: Tensor) -> Tensor:
        """Return 1/S sum_i c_im [x_i, 1]^2 (M, P) over all samples, float64."""
        return self.objective.squares(c)

    def leverages(self, c: Tensor, diagonal: Tensor) -> Tensor:
        """Return l_im (n, M) up to a factor, from half a pass."""
        if self.uses_all_rows:
            return c  # ``draw`` ignores it
        inverse = torch.where(diagonal > 0, diagonal, torch.inf).reciprocal().to(c.dtype)
        return self.objective.leverages(inverse).mul_(c)

    def all_rows(self) -> RowSample:
        """Return all rows, with the sampling weight 1 / S each."""
        index = torch.arange(self.n, device=self.p.device)
        return RowSample(index, torch.full_like(self.p[:, 0], 1 / self.objective.divisor))

    def draw(self, c: Tensor, leverage: Tensor) -> RowSample:
        """Return about ``rows_to_draw`` rows, drawn by curvature and leverage (n,); or all rows."""
        if self.uses_all_rows:
            return self.all_rows()
        probability = (_share(c) + _share(leverage)) * (self.rows_to_draw / 2)
        for _ in range(3):  # probability above 1 goes to the other rows
            probability.clamp_max_(1)
            probability *= self.rows_to_draw / probability.sum().clamp_min(1)
        chance = torch.rand(self.n, generator=self.generator).to(c.device)
        index = (chance < probability).nonzero().squeeze(1)
        factor = probability[index].clamp_max(1).reciprocal()
        return RowSample(index, factor / self.objective.divisor)

    def block(
        self, c: Tensor, scale: Tensor, leverage: Tensor, columns: Tensor | None = None
    ) -> Tensor:
        """Return 1/S sum_i c_i [x_i, 1] [x_i, 1]^T (P, P), scaled to a diagonal of about 1.

        Args:
            c: curvatures (n,).
            scale: square roots of the diagonal (P,) over all samples, by which it is divided.
            leverage: l_i (n,).
            columns: the columns of [x_i, 1] to take, in place of all.
        """
        drawn = self.draw(c, leverage)
        x = self._features(drawn.rows)
        if columns is not None:
            x, scale = x.index_select(1, columns), scale[columns]
        x *= (c[drawn.rows] * drawn.factor).sqrt().unsqueeze(1)
        x /= scale.to(x.dtype)
        gram = _symmetric_product(x)
        # The variance of each diagonal entry: 0 where every row with the column was taken.
        left_out = 1 - (drawn.factor * self.objective.divisor).reciprocal()
        noise = left_out.to(x.dtype) @ x.square_().square_()
        gram, noise = self.objective.summed(gram), self.objective.summed(noise)
        # With few drawn rows a column looks like a combination of others. Its diagonal is raised by
        # the variance of the estimate.
        gram.diagonal().add_(shortfall(gram.diagonal()) + noise.square())
        return gram

    def whole(self) -> Tensor:
        """Return H (K P, K P), float64, over all rows if that is cheap."""
        K, P = self.objective.shape
        if self.n * (K * P) ** 2 <= ALL_ROWS:
            drawn = self.all_rows()
        else:
            self.rows_to_draw = max(LEAST_ROWS, ROWS_PER_COLUMN * P)
            c = self.row_curvatures().unsqueeze(1)
            drawn = self.draw(c[:, 0], self.leverages(c, self.diagonal(c))[:, 0])
        H = self.p.new_zeros(K * P, K * P, dtype=torch.float64)
        for x, p, root, part in self._parts(drawn, K * P, torch.float64):
            px = ((root * p).unsqueeze(2) * x.unsqueeze(1)).flatten(1)
            sum_of_part = -(px.T @ px)
            blocks = sum_of_part.view(K, P, K, P)
            # p (1 - p) from ``curvatures``: p - p^2 has no digits left where p is near 1.
            c = self.curvatures[part.rows].double() * part.factor.unsqueeze(1)
            for k in range(K):
                blocks[k, :, k] = x.T @ (x * c[:, k : k + 1])
            H += sum_of_part
        return self.objective.summed(H)

    def at(self, k: Tensor, column: Tensor) -> Tensor:
        """Return H (M, M) in the coordinates of classes k (M,), ascending, and columns (M,)."""
        objective, counts = self.objective, torch.bincount(k)
        classes = counts.nonzero().squeeze(1)
        counts = counts[classes]
        self.rows_to_draw = max(LEAST_ROWS, ROWS_PER_COLUMN * len(k))
        c = self.curvatures[:, classes].sum(1)
        drawn = self.draw(c, c if self.uses_all_rows else c * objective.influence)
        H = torch.zeros(len(k), len(k), dtype=torch.float64, device=k.device)
        for x, p, root, part in self._parts(drawn, max(len(k), objective.samples.d), self.p.dtype):
            x = x[:, column]
            p_k = (p[:, classes] * root).repeat_interleave(counts, 1)
            sum_of_part = -_symmetric_product(x * p_k) if len(counts) > 1 else torch.zeros_like(H)
            start = 0
            for j, m in enumerate(counts.tolist()):
                own = slice(start, start + m)
                c_j = (self.curvatures[part.rows, classes[j]] * part.factor).sqrt()
                sum_of_part[own, own] = _symmetric_product(x[:, own] * c_j.unsqueeze(1))
                start += m
            H += sum_of_part
        return objective.summed(H)

    def _parts(
        self, drawn: RowSample, numbers_a_row: int, dtype: torch.dtype
    ) -> Iterator[tuple[Tensor, Tensor, Tensor, RowSample]]:
        """Yield the drawn rows in parts of at most ``PART_NUMBERS`` numbers.

        Each part has [x, 1] (N, P), p (N, K), the roots (N, 1) of its weights times its sampling
        weights, and its rows.
        """
        step = max(1, PART_NUMBERS // numbers_a_row)
        for rows, factor in zip(*(torch.split(each, step) for each in drawn), strict=True):
            root = (self.w[rows] * factor).to(dtype).sqrt().unsqueeze(1)
            x = self._features(rows).to(dtype)
            yield x, self.p[rows].to(dtype), root, RowSample(rows, factor)

    def _features(self, index: Tensor) -> Tensor:
        """Return the rows [x, 1] (N, P) at these ascending numbers."""
        x = self.objective.samples.rows(index)
        return torch.cat([x, x.new_ones(len(x), 1)], 1) if self.objective.bias else x


def shortfall(diagonal: Tensor) -> Tensor:
    """Return how far diagonal entries are below 1 in columns that the drawn rows hardly show."""
    return torch.where(diagonal < 0.5, 1 - diagonal, 0.0)


def _share(c: Tensor) -> Tensor:
    return c / c.sum().clamp_min(torch.finfo(c.dtype).tiny)


def _symmetric_product(x: Tensor) -> Tensor:
    """Return x^T x, by four strips that are each multiplied up to the diagonal: 5/8 of the work."""
    P = x.shape[1]
    product = x.new_empty(P, P)
    edges = [P * i // 4 for i in range(5)]
    for start, end in pairwise(edges):
        strip = x[:, start:end].T @ x[:, :end]
        product[start:end, :end] = strip
        product[:start, start:end] = strip[:, :start].T
    return product
