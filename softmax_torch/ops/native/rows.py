"""The numbers of rows of logits, and gradients of their weighted sums: ``ops.interfaces.Kernels``.

Logits (N, C) or (N, C, M) of any floating-point dtype and any strides, class indices, class vectors
and weights are passed to the library as they are. The arithmetic is float64 for float64 logits and
float32 for others. The results have the same bits for any number of threads.
"""

from __future__ import annotations

import torch
from torch import Tensor

from softmax_torch.maths import RowValues, RowWeights, Target, sum_dtype
from softmax_torch.ops.native import calls
from softmax_torch.ops.native.calls import Array, Rows, array

__all__ = ["mean_nll", "row_values", "row_vjp", "weighted_total"]


def row_values(z: Tensor, target: Target, lse: bool = False) -> RowValues:
    """Return the row numbers of logits z, in float32 where z is float16 or bfloat16."""
    shape, dtype = z.shape[:1] + z.shape[2:], sum_dtype(z.dtype)
    needed = (target.y is not None, target.u is not None, lse)
    result = RowValues(*[z.new_empty(shape, dtype=dtype) if n else None for n in needed])
    _run(z, target, RowWeights(), False, result, None)
    return result


def row_vjp(z: Tensor, target: Target, g: RowValues, dz: Tensor | None = None) -> Tensor:
    """Return the gradient dz, of z's shape and dtype; write it into ``dz`` if given."""
    if dz is None:
        dz = torch.empty_like(z)
        calls.advise_huge_pages(dz)
    _run(z, target, RowWeights(*g), True, RowValues(), dz)
    return dz


def weighted_total(
    z: Tensor, target: Target, weights: RowWeights, dz: Tensor | None = None
) -> Tensor:
    """Return the scalar sum over rows of a nll + b smooth + c lse^2; write its gradient to dz.

    dz may be z itself.
    """
    if dz is not None and dz is not z:
        calls.advise_huge_pages(dz)
    total = _run(z, target, weights, False, RowValues(), dz)
    return torch.scalar_tensor(total, dtype=sum_dtype(z.dtype), device=z.device)


def _run(
    z: Tensor,
    target: Target,
    weights: RowWeights,
    are_gradients: bool,
    values: RowValues,
    dz: Tensor | None,
) -> float:
    """Run the kernel once and return the weighted total."""
    shape, dtype = z.shape[:1] + z.shape[2:], sum_dtype(z.dtype)
    z, (y, u) = z.resolve_neg(), target
    if y is not None:
        y = y.contiguous()
    if u is not None:
        u = u.resolve_neg() if u.dtype in calls.DTYPES else u.to(dtype)
    # the tensors of a, b and c have to live until the call is over
    (a, a_tensor), (b, b_tensor), (c, c_tensor) = (
        calls.weight_of(w, shape, dtype) for w in weights
    )
    results = [None if v is None else v.data_ptr() for v in values]
    call = Rows(
        array(z),
        z.shape[0],
        z.shape[1],
        z.shape[2] if z.dim() == 3 else 1,
        None if y is None else y.data_ptr(),
        array(u),
        a,
        b,
        c,
        are_gradients,
        *results,
        Array() if dz is None else array(dz),
        0.0,
        -1,
        calls.threads_for(z.numel()),
    )
    calls.run_rows(call, y)
    del a_tensor, b_tensor, c_tensor
    total: float = call.total
    return total


def mean_nll(z: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Return the mean of nll over float32 logits (N, C) without negative bit, and its gradient.

    Raises:
        IndexError: a class index is not in [0, C).
    """
    N, C = z.shape
    if z.is_contiguous():  # empty_like is the quickest way to allocate
        dz = torch.empty_like(z)
    else:
        dz = z.new_empty((N, C))
        if z.stride(1) != 1:
            z = z.contiguous()
    y, mean = y.contiguous(), z.new_empty(())
    elements = N * C
    if elements > calls.SERIAL_WORK:
        calls.advise_huge_pages(dz)
    status = calls.functions().mean_nll(
        z.data_ptr(),
        z.stride(0),
        y.data_ptr(),
        dz.data_ptr(),
        N,
        C,
        calls.threads_for(elements),
        mean.data_ptr(),
    )
    if status != calls.DONE:
        raise IndexError("class index out of range")
    return mean, dz
