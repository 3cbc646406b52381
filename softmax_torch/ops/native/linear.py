"""Cross-entropy of a linear layer with few classes, from one reading of its input.

Logits, loss, dW, db and where asked dx are computed block by block of rows that stay in the cache
(see ``passes``), for float32 and float64 layers of at most ``MOST_COLUMNS`` classes. Larger layers
are matrix products of torch with the kernels of ``rows`` between them: ``ops.linear_rows``.
"""

from __future__ import annotations

import torch
from torch import Tensor

from softmax_torch.maths import RowWeights, Target
from softmax_torch.ops.native import calls
from softmax_torch.ops.native.calls import DTYPES, Pass, Samples, array
from softmax_torch.ops.sample_rows import MOST_COLUMNS

__all__ = ["applies", "mean_nll", "total_and_gradients"]


def total_and_gradients(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    target: Target,
    weights: RowWeights,
    needed: tuple[bool, ...],
    z: Tensor | None = None,
) -> tuple[Tensor, tuple[Tensor | None, Tensor | None, Tensor | None]]:
    """Return the weighted total of a linear layer's rows, and the gradients that are needed.

    Args:
        x: input (N, D) with adjacent columns, float32 or float64, N > 0.
        weight, bias: (C, D) and (C,) or None, of the dtype of x.
        target, weights: as in ``maths.weighted_total``.
        needed: whether the gradients of x, weight and bias are needed.
        z: the logits (N, C), contiguous and of the dtype of x, are written to it if given.

    Raises:
        IndexError: a class index is out of range.
    """
    dtype, (y, u) = x.dtype, target
    y = None if y is None else y.contiguous()
    u = None if u is None else u.resolve_neg()
    total = x.new_empty(1, dtype=torch.float64)
    call, layer_tensors = _layer(x, weight, bias)
    # these tensors, too, have to live until the call is over
    (a, a_tensor), (b, b_tensor), (c, c_tensor) = (
        calls.weight_of(w, x.shape[:1], dtype) for w in weights
    )
    rows = call.rows
    rows.classes, rows.positions, rows.u = len(weight), 1, array(u)
    rows.y = None if y is None else y.data_ptr()
    rows.a, rows.b, rows.c = a, b, c
    call.totals = total.data_ptr()
    dx = torch.empty_like(x, memory_format=torch.contiguous_format) if needed[0] else None
    # The kernel sums both gradients in one go.
    dweight, dbias = _gradients(call, weight, bias) if needed[1] or needed[2] else (None, None)
    if dx is not None:
        calls.advise_huge_pages(dx)
        call.dx, call.dx_stride = dx.data_ptr(), dx.stride(0)
    if z is not None:
        call.z = z.data_ptr()
    calls.run_pass(call, y)
    del layer_tensors, a_tensor, b_tensor, c_tensor
    return total[0].to(dtype), (
        dx,
        dweight if needed[1] else None,
        dbias if needed[2] else None,
    )


def mean_nll(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    y: Tensor,
    dweight: Tensor | None = None,
    dbias: Tensor | None = None,
    dx: Tensor | None = None,
    z: Tensor | None = None,
) -> Tensor:
    """Return the mean NLL of a float32 layer, a scalar; write its gradients and logits.

    This is ``total_and_gradients`` in the fewest steps.

    Args:
        x: input (N, D) with adjacent columns, N > 0.
        weight, bias: (C, D) and (C,) or None, contiguous.
        y: class indices (N,), contiguous.
        dweight, dbias, dx, z: where to write the gradients and the logits (N, C), contiguous; None
            for those that are not needed. dbias comes with dweight alone.

    Raises:
        IndexError: a class index is out of range.
    """
    (N, D), C = x.shape, weight.shape[0]  # len of a tensor takes 2 us
    mean = x.new_empty(())
    status = calls.functions().linear_mean_nll(
        x.data_ptr(),
        x.stride(0),
        weight.data_ptr(),
        None if bias is None else bias.data_ptr(),
        y.data_ptr(),
        N,
        D,
        C,
        calls.threads_for(N * D * C // 16),
        None if dweight is None else dweight.data_ptr(),
        None if dbias is None else dbias.data_ptr(),
        None if dx is None else dx.data_ptr(),
        None if z is None else z.data_ptr(),
        mean.data_ptr(),
    )
    if status != calls.DONE:
        raise IndexError("class index out of range")
    return mean


def applies(x: Tensor, weight: Tensor) -> bool:
    """Return whether one pass serves a layer with this input: see the top of this file."""
    return (
        x.dtype in (torch.float32, torch.float64)
        and x.dim() == 2
        and weight.dim() == 2
        and weight.shape[0] <= MOST_COLUMNS
    )


def _layer(x: Tensor, weight: Tensor, bias: Tensor | None) -> tuple[Pass, tuple[Tensor, ...]]:
    """Return a pass over a layer's input, and the tensors that it points to."""
    x, weight = x.resolve_neg(), weight.resolve_neg().contiguous()
    if x.stride(1) != 1 and x.shape[1] > 1:
        x = x.contiguous()
    N, D = x.shape
    call = Pass(Samples(x.data_ptr(), DTYPES[x.dtype], x.stride(0), None, None, None, N, D, 0))
    call.middle, call.columns, call.dtype = calls.LOSS, len(weight), DTYPES[x.dtype]
    call.weight, call.weight_stride = weight.data_ptr(), D
    if bias is not None:
        bias = bias.resolve_neg().contiguous()
        call.bias, call.bias_stride = bias.data_ptr(), 1
    call.threads = calls.threads_for(N * D * len(weight) // 16)
    return call, (x, weight) if bias is None else (x, weight, bias)


def _gradients(call: Pass, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Set the results dW and db of a pass, and return them."""
    dweight = torch.empty_like(weight, memory_format=torch.contiguous_format)
    dbias = None if bias is None else torch.empty_like(bias)
    call.gradient_dtype = DTYPES[weight.dtype]
    call.dweight, call.dweight_stride = dweight.data_ptr(), weight.shape[1]
    if dbias is not None:
        call.dbias, call.dbias_stride = dbias.data_ptr(), 1
    return dweight, dbias
