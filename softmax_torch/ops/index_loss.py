"""The loss of class indices that a GPU computes as a whole, from the targets to the scalar."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["IndexLoss"]


class IndexLoss(NamedTuple):
    """A mean or a sum of the loss over the rows that are not ignored; see ``triton_index_loss``.

    Attributes:
        weight: a weight of each class, float32 (C,) and contiguous; None for 1.
        ignore_index: class index of the rows to leave out.
        label_smoothing: in [0, 1].
        z_loss: weight of the squared log-sum-exp, at least 0.
        mean: whether to divide by the weight of the rows, the z-loss by their number.
        dtype: of the result.
    """

    weight: Tensor | None
    ignore_index: int
    label_smoothing: float
    z_loss: float
    mean: bool
    dtype: torch.dtype
