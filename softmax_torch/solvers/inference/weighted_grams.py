"""Sums of outer products of the rows of X with several weights: sum_i c_iq x_i x_i^T.

The information of softmax regression consists of such sums, one for each pair of classes. They are
symmetric, so half of their entries are computed:

 - few columns: each row's P (P + 1) / 2 products x_ij x_il are formed once, and all sums are one
   matrix product with c;
 - many columns: for each weight the rows times sqrt(c_iq) are multiplied with themselves, in strips
   of columns on and above the diagonal.
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
        self.few = P <= FEW
        self.row, self.column = torch.triu_indices(P, P, device=device)
        shape = (Q, len(self.row)) if self.few else (Q, P, P)
        self.sums = torch.zeros(shape, dtype=torch.float64, device=device)

    def add(self, x: Tensor, c: Tensor) -> None:
        """Add the rows x (B, P) with weights c (B, Q)."""
        if self.few:
            step = max(1, PRODUCTS // len(self.row))
            for start in range(0, len(x), step):
                part = x[start : start + step]
                self.sums.addmm_(
                    c[start : start + step].T, part[:, self.row] * part[:, self.column]
                )
            return
        roots = c.sqrt()
        for q in range(self.Q):
            scaled = x * roots[:, q : q + 1]
            for start in range(0, self.P, STRIP):
                strip = scaled[:, start : start + STRIP]
                self.sums[q, start : start + STRIP, start:].addmm_(strip.T, scaled[:, start:])

    def result(self) -> Tensor:
        """Return the sums (Q, P, P)."""
        if self.few:
            upper = self.sums.new_zeros(self.Q, self.P, self.P)
            upper[:, self.row, self.column] = self.sums
        else:
            upper = self.sums.triu()
        return upper + upper.triu(1).mT
