"""CPU kernels in C++, for the processors that they were compiled for. ``library`` loads them."""

from softmax_torch.ops.cpu import row_values, row_vjp, weighted_total

__all__ = ["row_values", "row_vjp", "weighted_total"]
