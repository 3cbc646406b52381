"""CPU kernels in C++, for the processors that they were compiled for. ``library`` loads them."""

from softmax_torch.ops.native.gather import gather_bytes
from softmax_torch.ops.native.rows import mean_nll, row_values, row_vjp, weighted_total
from softmax_torch.ops.native.statistics import row_statistics

__all__ = [
    "gather_bytes",
    "mean_nll",
    "row_statistics",
    "row_values",
    "row_vjp",
    "weighted_total",
]
