"""The statistics of rows of logits: ``maths.row_statistics`` in one call of the library."""

from __future__ import annotations

import torch
from torch import Tensor

from softmax_torch.maths import RowStatistics, sum_dtype
from softmax_torch.ops.native import calls
from softmax_torch.ops.native.calls import Statistics, array

__all__ = ["row_statistics"]


def row_statistics(z: Tensor, y: Tensor | None = None) -> RowStatistics:
    """Return the statistics of logits (N, C) or (N, C, M) of any dtype and strides."""
    shape, z = z.shape[:1] + z.shape[2:], z.detach().resolve_neg()
    y = None if y is None else y.contiguous()
    lse, entropy = (z.new_empty(shape, dtype=torch.float64) for _ in range(2))
    argmax = z.new_empty(shape, dtype=torch.int64)
    rank = None if y is None else torch.empty_like(argmax)
    call = Statistics(
        array(z),
        z.shape[0],
        z.shape[1],
        z.shape[2] if z.dim() == 3 else 1,
        None if y is None else y.data_ptr(),
        lse.data_ptr(),
        entropy.data_ptr(),
        argmax.data_ptr(),
        None if rank is None else rank.data_ptr(),
        calls.threads_for(z.numel()),
    )
    calls.run_statistics(call)
    dtype = sum_dtype(z.dtype)
    return RowStatistics(lse.to(dtype), entropy.to(dtype), argmax, rank)
