"""Passes over samples X: every row is read once for both of its products.

    logits              z = X theta^T                               (n, M)
    transposed          r^T [X, 1]                                  (M, P)
    loss_and_gradient   sum_i w_i nll_i,  sum_i w_i (p_i - e_{y_i}) [x_i, 1]^T
    hessian_product     sum_i w_i ((diag p_i - p_i p_i^T) v [x_i, 1]) [x_i, 1]^T

theta (M, P) holds coefficients for each of d features, and with ``bias`` a last column for the
bias: P = d + bias. The arithmetic is in the dtype of the coefficients, float32 or float64, whatever
the dtype of X. Sums over rows are float64, and have the same bits for any number of threads.
"""

from __future__ import annotations

import torch
from torch import Tensor

from softmax_torch.ops.native import calls
from softmax_torch.ops.native.calls import DTYPES, Pass, Samples
from softmax_torch.ops.sample_rows import MOST_COLUMNS, CsrRows, DenseRows, SampleRows

__all__ = [
    "csr_of_dense",
    "hessian_product",
    "logits",
    "loss_and_gradient",
    "transposed",
]


def logits(x: SampleRows, theta: Tensor, bias: bool, squared: bool = False) -> Tensor:
    """Return X theta^T (n, M) in the dtype of theta; ``squared`` takes X * X for X."""
    samples = _samples(x, squared)
    z = theta.new_empty(samples.n, len(theta))
    call = _pass(samples, calls.LOGITS, len(theta), theta.dtype)
    theta = _coefficients(call, theta, bias)
    call.z = z.data_ptr()
    calls.run_pass(call)
    return z


def transposed(x: SampleRows, r: Tensor, bias: bool, squared: bool = False) -> Tensor:
    """Return r^T [X, 1] (M, P) in float64 for r (n, M); ``squared`` takes X * X for X."""
    r = r.contiguous()
    call = _pass(_samples(x, squared), calls.RESIDUALS, r.shape[1], r.dtype)
    call.p = r.data_ptr()
    gradient = _gradient(call, r.shape[1], bias)
    calls.run_pass(call)
    return gradient


def loss_and_gradient(
    x: SampleRows, theta: Tensor, y: Tensor, weight: Tensor | None, classes: int, bias: bool
) -> tuple[Tensor, Tensor]:
    """Return the weighted NLL of sets of coefficients, and its gradients.

    Args:
        x: the samples.
        theta: J sets of coefficients (J K, P).
        y: class indices (n,).
        weight: sample weights (n,), or None for ones.
        classes: K.
        bias: whether the last column of theta is a bias.

    Returns:
        Values (J,) and gradients (J K, P), float64.
    """
    samples, (M, dtype) = _samples(x), (len(theta), theta.dtype)
    call = _pass(samples, calls.LOSS, M, dtype)
    theta, y = _coefficients(call, theta, bias), y.contiguous()
    values = theta.new_empty(M // classes, dtype=torch.float64)
    a, weight = calls.weight_of(1.0 if weight is None else weight, y.shape, dtype)
    call.rows.classes, call.rows.positions = classes, 1
    call.rows.y, call.rows.a, call.totals = y.data_ptr(), a, values.data_ptr()
    gradient = _gradient(call, M, bias)
    calls.run_pass(call, y)
    return values, gradient


def hessian_product(
    x: SampleRows, v: Tensor, p: Tensor, weight: Tensor | None, bias: bool
) -> Tensor:
    """Return the product (K, P), float64, of the Hessian at probabilities p (n, K) with v (K, P).

    ``weight`` (n,) are sample weights, or None for ones.
    """
    p = p.contiguous()
    call = _pass(_samples(x), calls.HESSIAN, len(v), v.dtype)
    v = _coefficients(call, v, bias)
    a, weight = calls.weight_of(1.0 if weight is None else weight, p.shape[:1], v.dtype)
    call.p, call.rows.a = p.data_ptr(), a
    gradient = _gradient(call, len(v), bias)
    calls.run_pass(call)
    return gradient


def csr_of_dense(x: Tensor) -> CsrRows:
    """Return the entries other than 0 of x (n, d), float32 or float64, in CSR."""
    n, d = x.shape
    samples, threads = _samples(DenseRows(x)), calls.threads_for(x.numel())
    crow = x.new_zeros(n + 1, dtype=torch.int64)
    calls.csr(samples, crow, None, None, threads)
    crow = crow.cumsum(0)
    col = x.new_empty(int(crow[-1]), dtype=torch.int32)
    values = x.new_empty(len(col))
    calls.advise_huge_pages(col)
    calls.advise_huge_pages(values)
    calls.csr(samples, crow, col, values, threads)
    return CsrRows(crow, col, values, d)


def _samples(x: SampleRows, squared: bool = False) -> Samples:
    if isinstance(x, CsrRows):
        return Samples(
            x.values.data_ptr(),
            DTYPES[x.values.dtype],
            0,
            None,
            x.crow.data_ptr(),
            x.col.data_ptr(),
            len(x.crow) - 1,
            x.d,
            squared,
        )
    rows, offset = x
    assert rows.stride(1) == 1 or rows.shape[1] == 1, "expected adjacent columns"
    return Samples(
        rows.data_ptr(),
        DTYPES[rows.dtype],
        rows.stride(0),
        None if offset is None else offset.data_ptr(),
        None,
        None,
        *rows.shape,
        squared,
    )


def _pass(samples: Samples, middle: int, columns: int, dtype: torch.dtype) -> Pass:
    """Return a pass without coefficients and results."""
    if columns > MOST_COLUMNS:
        raise ValueError(f"expected at most {MOST_COLUMNS} columns in a pass, got {columns}")
    call = Pass(samples, middle, columns)
    call.dtype = DTYPES[dtype]
    call.threads = calls.threads_for(samples.n * samples.d * columns // 16)
    return call


def _coefficients(call: Pass, theta: Tensor, bias: bool) -> Tensor:
    """Set the coefficients of a pass, and return the tensor that it points to."""
    theta = theta.contiguous()
    size = theta.element_size()
    call.weight, call.weight_stride = theta.data_ptr(), theta.shape[1]
    if bias:
        call.bias = theta.data_ptr() + (theta.shape[1] - 1) * size
        call.bias_stride = theta.shape[1]
    return theta


def _gradient(call: Pass, M: int, bias: bool) -> Tensor:
    """Set the result r^T [X, 1] of a pass, and return it (M, P), float64."""
    d = call.samples.d
    gradient = torch.empty(M, d + bias, dtype=torch.float64, device="cpu")
    call.dweight, call.dweight_stride = gradient.data_ptr(), d + bias
    call.gradient_dtype = DTYPES[torch.float64]
    if bias:
        call.dbias, call.dbias_stride = gradient.data_ptr() + d * 8, d + bias
    return gradient
