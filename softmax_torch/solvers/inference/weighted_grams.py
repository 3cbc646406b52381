"""Sums of outer products of the rows of X with several weights: sum_i c_iq x_i x_i^T.

The information of softmax regression consists of such sums, one for each pair of classes. They are
symmetric, so half of their entries are computed:

 - few columns, more weights than half of them: each row's P (P + 1) / 2 products x_ij x_il are
   formed once, and all sums are one matrix product with c;
 - other columns, mostly zeros: the products of a column with itself and the denser columns, all
   weights at once, over the rows where it is not 0. On MNIST, with 19% of the entries not 0, this
   leaves 3.5% of the multiplications that all entries take;
 - other columns, few zeros: for each weight the rows times sqrt(c_iq) are multiplied with
   themselves, in strips of columns on and above the diagonal.

All sums are float64. For 60000 x 785 and the 45 pairs of 10 classes the products of the last form
are 2e12 multiplications and additions after symmetry, 10 to 15 s of two cores with AVX2.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["WeightedGrams"]

FEW = 48
"""Columns up to which the products of each row are formed. Beyond it they fill the cache."""

PRODUCTS = 1 << 20
"""Products that are formed at a time, 8 MB."""

STRIP = 200
"""Columns of a strip: a strip of the diagonal computes both halves of its entries."""

SPARSE = 0.25
"""Share of the multiplications below which the products of a column skip its zeros. They run at a
quarter of the speed of strips: rows are gathered, and products have as few rows as weights."""


class WeightedGrams:
    """Sums (Q, P, P), float64, of rows x (B, P) with weights c (B, Q) >= 0, added piece by piece.

    >>> sums = WeightedGrams(1, 2, torch.device("cpu"))
    >>> sums.add(torch.tensor([[1.0, 2.0]]).double(), torch.tensor([[3.0]]).double())
    >>> sums.result()
    tensor([[[ 3.,  6.],
             [ 6., 12.]]], dtype=torch.float64)
    """

    def __init__(self, Q: int, P: int, device: torch.device) -> None:
        self.Q, self.P = Q, P
        self.forms_products = P <= min(FEW, 2 * Q)
        self.row, self.column = torch.triu_indices(P, P, device=device)
        shape = (Q, len(self.row)) if self.forms_products else (P, Q, P)
        self.sums = torch.zeros(shape, dtype=torch.float64, device=device)
        self.order: Tensor | None = None  # of the columns, from the sparsest to the densest

    def add(self, x: Tensor, c: Tensor) -> None:
        """Add the rows x (B, P) with weights c (B, Q)."""
        if self.forms_products:
            step = max(1, PRODUCTS // len(self.row))
            for x_part, c_part in zip(torch.split(x, step), torch.split(c, step), strict=True):
                columns = x_part.T.contiguous()  # of adjacent numbers, copied five times as fast
                products = columns[self.row].mul_(columns[self.column])
                self.sums.addmm_(c_part.T, products.T)
            return
        if self.order is None:
            entries = (x != 0).sum(0)
            self.order = entries.argsort()
            after = torch.arange(self.P, 0, -1, device=x.device)
            share = float((entries[self.order] * after).sum()) / (len(x) * self.P**2)
            self.add_ordered = self._add_columns if share < SPARSE else self._add_strips
        self.add_ordered(x[:, self.order], c)

    def _add_columns(self, x: Tensor, c: Tensor) -> None:
        for j, column in enumerate(x.unbind(1)):
            rows = column.nonzero().squeeze(1)
            if len(rows):
                scaled = c.index_select(0, rows) * column.index_select(0, rows).unsqueeze(1)
                self.sums[j, :, j:].addmm_(scaled.T, x[:, j:].index_select(0, rows))

    def _add_strips(self, x: Tensor, c: Tensor) -> None:
        for q, root in enumerate(c.sqrt().unbind(1)):
            scaled = x * root.unsqueeze(1)
            for start in range(0, self.P, STRIP):
                strip = scaled[:, start : start + STRIP]
                self.sums[start : start + STRIP, q, start:] += strip.T @ scaled[:, start:]

    def result(self) -> Tensor:
        """Return the sums (Q, P, P)."""
        if self.forms_products:
            upper = self.sums.new_zeros(self.Q, self.P, self.P)
            upper[:, self.row, self.column] = self.sums
            return upper + upper.triu(1).mT
        upper = self.sums.transpose(0, 1).triu()
        if self.order is None:
            return upper
        place = self.order.argsort()
        whole = upper.add_(upper.triu(1).mT)
        return whole[:, place][:, :, place]
