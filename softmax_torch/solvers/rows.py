"""Rows drawn by their curvature, which stand for all samples in sums over their squares.

For curvatures c_i >= 0 the sum

    G = 1/S sum_i c_i [x_i, 1] [x_i, 1]^T

is estimated from rows that are drawn with probability pi_i and counted 1 / pi_i fold, with

    pi_i  =  min(1, N (c_i / sum c + l_i / sum l) / 2),    l_i = c_i/S sum_j [x_i, 1]_j^2 / G_jj

The first half favours rows with much curvature, the second rows that make up much of the diagonal
entry G_jj of some column j: l_i approximates the leverage of row i, by which rows are drawn for
least squares (Drineas, Mahoney & Muthukrishnan 2008, "Relative-error CUR matrix decompositions").
By the first half alone a dummy column that is 1 in ten of 100,000 rows is hardly ever seen.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from softmax_torch.solvers.objective import Objective

__all__ = ["Drawn", "Rows", "missing", "symmetric_product"]

ROWS = 3000
"""Rows drawn for a Gram matrix, at least."""

ROWS_PER_COLUMN = 4
"""Rows drawn for each of its columns, at least."""

PART_NUMBERS = 1 << 25
"""Numbers that are held of the drawn rows at a time where these are read in parts."""


class Drawn(NamedTuple):
    """Ascending numbers of rows (N,), and what each counts for, 1 / pi, over S."""

    numbers: Tensor
    factor: Tensor

    def split(self, numbers_a_row: int) -> Iterator[Drawn]:
        """Yield parts, whose rows fit into little memory at so many numbers a row."""
        step = max(1, PART_NUMBERS // numbers_a_row)
        for numbers, factor in zip(*(torch.split(part, step) for part in self), strict=True):
            yield Drawn(numbers, factor)


class Rows:
    """Probabilities p (n, K) and weights w (n,) at theta, and sums over drawn rows.

    With several processes each draws from its own rows, and the sums are added up.
    """

    def __init__(
        self,
        objective: Objective,
        theta: Tensor,
        generator: torch.Generator,
        dtype: torch.dtype,
    ) -> None:
        self.objective, self.generator = objective, generator
        self.p = objective.probabilities(theta, dtype)
        w = objective.weight
        self.w = torch.ones_like(self.p[:, 0]) if w is None else w.to(dtype)
        self.n, P = len(self.p), objective.shape[1]
        self.wanted = max(ROWS, ROWS_PER_COLUMN * P)

    @cached_property
    def curvatures(self) -> Tensor:
        """c_ik = w_i p_ik (1 - p_ik) (n, K), with the digits of 1 - p_ik."""
        p = self.p
        rest = 1 - p
        top = p.argmax(1, keepdim=True)
        rest.scatter_(1, top, p.scatter(1, top, 0.0).sum(1, keepdim=True))
        return rest.mul_(p).mul_(self.w.unsqueeze(1))

    def spread(self) -> Tensor:
        """Return c_i = w_i (1 - sum_k p_ik^2) (n,), the sum of the curvatures of a row."""
        return self.curvatures.sum(1)

    def diagonal(self, c: Tensor) -> Tensor:
        """Return 1/S sum_i c_im [x_i, 1]^2 (M, P) over all samples, float64."""
        return self.objective.squares(c)

    def leverages(self, c: Tensor, diagonal: Tensor) -> Tensor:
        """Return l_im (n, M) up to a factor, from half a pass if not all rows are used anyway."""
        if self.n <= self.wanted:
            return c
        inverse = torch.where(diagonal > 0, diagonal, torch.inf).reciprocal().to(c.dtype)
        return self.objective.leverages(inverse).mul_(c)

    def gram(self, c: Tensor, scale: Tensor, leverage: Tensor) -> Tensor:
        """Return G (P, P) in units of the scale (P,), the square roots of its diagonal."""
        drawn = self.draw(c, leverage)
        x = self.features(drawn.numbers)
        x *= (c[drawn.numbers] * drawn.factor).sqrt().unsqueeze(1)
        x /= scale.to(x.dtype)
        gram = symmetric_product(x)
        # The variance of each diagonal entry: 0 where every row with the column was taken.
        left_out = 1 - (drawn.factor * self.objective.divisor).reciprocal()
        noise = left_out.to(x.dtype) @ x.square_().square_()
        gram, noise = self.objective.summed(gram), self.objective.summed(noise)
        # A column of which few rows were drawn looks like a combination of others. Its diagonal is
        # raised by as much as the draw may be off.
        gram.diagonal().add_(missing(gram.diagonal()) + noise.square())
        return gram

    def all(self) -> Drawn:
        """Return all rows."""
        index = torch.arange(self.n, device=self.p.device)
        return Drawn(index, torch.full_like(self.p[:, 0], 1 / self.objective.divisor))

    def draw(self, c: Tensor, leverage: Tensor) -> Drawn:
        """Return about as many rows as wanted, drawn by c (n,) and leverage; or all of them."""
        if self.n <= self.wanted:
            return self.all()
        probability = (_share(c) + _share(leverage)) * (self.wanted / 2)
        for _ in range(3):  # what is cut off at 1 goes to the others
            probability.clamp_max_(1)
            probability *= self.wanted / probability.sum().clamp_min(1)
        chance = torch.rand(self.n, generator=self.generator).to(c.device)
        index = (chance < probability).nonzero().squeeze(1)
        factor = probability[index].clamp_max(1).reciprocal()
        return Drawn(index, factor / self.objective.divisor)

    def features(self, index: Tensor) -> Tensor:
        """Return the rows [x, 1] (N, P) at these ascending numbers."""
        x = self.objective.samples.rows(index)
        return torch.cat([x, x.new_ones(len(x), 1)], 1) if self.objective.bias else x


def missing(diagonal: Tensor) -> Tensor:
    """Return what drawn rows lack of a diagonal entry of 1 where they hardly show the column."""
    return torch.where(diagonal < 0.5, 1 - diagonal, 0.0)


def _share(c: Tensor) -> Tensor:
    return c / c.sum().clamp_min(torch.finfo(c.dtype).tiny)


def symmetric_product(x: Tensor) -> Tensor:
    """Return x^T x, by four strips each of which is multiplied up to the diagonal: 5/8 the work."""
    P = x.shape[1]
    product = x.new_empty(P, P)
    edges = [P * i // 4 for i in range(5)]
    for start, end in pairwise(edges):
        strip = x[:, start:end].T @ x[:, :end]
        product[start:end, :end] = strip
        product[:start, start:end] = strip[:, :start].T
    return product
