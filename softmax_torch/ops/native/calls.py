"""The structures of src/interface.h, made from tensors, and calls of the library with them.

A structure holds addresses, not tensors: whoever makes one keeps its tensors alive until the call
is over. Sizes and strides are the tensors' own, so that any layout is read without a copy.
"""

from __future__ import annotations

import ctypes
import functools
from ctypes import POINTER, Structure, byref, c_double, c_float, c_int64, c_void_p
from typing import Any

import torch
from torch import Tensor

from softmax_torch.maths import RowWeight
from softmax_torch.ops.native import library

__all__ = [
    "DTYPES",
    "HESSIAN",
    "LOGITS",
    "LOSS",
    "RESIDUALS",
    "Array",
    "Pass",
    "Rows",
    "Samples",
    "Statistics",
    "Weight",
    "advise_huge_pages",
    "array",
    "csr",
    "functions",
    "run_pass",
    "run_rows",
    "run_statistics",
    "threads_for",
    "weight_of",
]

DTYPES = {
    torch.float32: 0,
    torch.float64: 1,
    torch.bfloat16: 2,
    torch.float16: 3,
    torch.uint8: 4,
}

LOGITS, LOSS, HESSIAN, RESIDUALS = range(4)
"""What a pass does between its two products: ``Middle`` of interface.h."""

DONE, WRONG_CLASS = 0, 1

SERIAL_WORK = 1 << 16
"""Logits, or multiplications divided by 16, that the calling thread computes by itself: some 60 us.
Waking a second thread takes 5 us, and milliseconds where its core is busy."""

HUGE_PAGES_FROM = 4 << 20
"""Bytes of a gradient from which huge pages are asked for. At 4096 x 32000 a fresh gradient of 524
MB costs 128,000 page faults, half of the time; with pages of 2 MiB it costs 250."""


class Weight(Structure):
    _fields_ = [("values", c_void_p), ("value", c_double), ("present", c_int64)]


class Array(Structure):
    _fields_ = [
        ("data", c_void_p),
        ("dtype", c_int64),
        ("row", c_int64),
        ("column", c_int64),
        ("position", c_int64),
    ]


class Rows(Structure):
    _fields_ = [
        ("z", Array),
        ("samples", c_int64),
        ("classes", c_int64),
        ("positions", c_int64),
        ("y", c_void_p),
        ("u", Array),
        ("a", Weight),
        ("b", Weight),
        ("c", Weight),
        ("c_is_gradient", c_int64),
        ("nll", c_void_p),
        ("smooth", c_void_p),
        ("lse", c_void_p),
        ("dz", Array),
        ("total", c_double),
        ("wrong_row", c_int64),
        ("threads", c_int64),
    ]


class Statistics(Structure):
    _fields_ = [
        ("z", Array),
        ("samples", c_int64),
        ("classes", c_int64),
        ("positions", c_int64),
        ("y", c_void_p),
        ("lse", c_void_p),
        ("entropy", c_void_p),
        ("argmax", c_void_p),
        ("rank", c_void_p),
        ("threads", c_int64),
    ]


class Samples(Structure):
    _fields_ = [
        ("x", c_void_p),
        ("dtype", c_int64),
        ("stride", c_int64),
        ("offset", c_void_p),
        ("crow", c_void_p),
        ("col", c_void_p),
        ("n", c_int64),
        ("d", c_int64),
        ("squared", c_int64),
    ]


class Pass(Structure):
    _fields_ = [
        ("samples", Samples),
        ("middle", c_int64),
        ("columns", c_int64),
        ("weight", c_void_p),
        ("weight_stride", c_int64),
        ("bias", c_void_p),
        ("bias_stride", c_int64),
        ("dtype", c_int64),
        ("p", c_void_p),
        ("rows", Rows),
        ("totals", c_void_p),
        ("z", c_void_p),
        ("dweight", c_void_p),
        ("dweight_stride", c_int64),
        ("dbias", c_void_p),
        ("dbias_stride", c_int64),
        ("gradient_dtype", c_int64),
        ("dx", c_void_p),
        ("dx_stride", c_int64),
        ("wrong_row", c_int64),
        ("threads", c_int64),
    ]


class Functions:
    """The functions of the library, with their argument types."""

    def __init__(self, loaded: ctypes.CDLL) -> None:
        self.rows = _typed(loaded.softmax_torch_rows, POINTER(Rows))
        self.statistics = _typed(loaded.softmax_torch_statistics, POINTER(Statistics))
        self.run_pass = _typed(loaded.softmax_torch_pass, POINTER(Pass))
        self.csr = _typed(
            loaded.softmax_torch_csr, POINTER(Samples), c_void_p, c_void_p, c_void_p, c_int64
        )
        p, n = c_void_p, c_int64
        self.gather = _typed(loaded.softmax_torch_gather, p, p, n, n, c_float, p, n)
        self.mean_nll = _typed(loaded.softmax_torch_mean_nll, p, n, p, p, n, n, n, p)
        self.linear_mean_nll = _typed(
            loaded.softmax_torch_linear_mean_nll, p, n, p, p, p, n, n, n, n, p, p, p, p, p
        )
        self.advise = loaded.softmax_torch_advise_huge_pages
        self.advise.argtypes, self.advise.restype = [c_void_p, c_int64], None


def _typed(function: Any, *types: Any) -> Any:
    function.argtypes, function.restype = types, c_int64
    return function


@functools.cache
def functions() -> Functions:
    """Return the functions of the library, which ``ops.backends`` has found to be there."""
    loaded = library.load()
    assert loaded is not None, library.reason()
    return Functions(loaded.functions)


def threads_for(work: int) -> int:
    """Return on how many threads so much work runs (see ``SERIAL_WORK``)."""
    return 1 if work <= SERIAL_WORK else torch.get_num_threads()


def array(x: Tensor | None) -> Array:
    """Return x as (N, C) or (N, C, M), or as a class vector (C,) of all rows."""
    if x is None:
        return Array()
    strides = x.stride() if x.dim() > 1 else (0, *x.stride())
    return Array(x.data_ptr(), DTYPES[x.dtype], *strides)


def weight_of(
    weight: RowWeight, shape: torch.Size, dtype: torch.dtype
) -> tuple[Weight, Tensor | None]:
    """Return a row weight for rows of this shape, and the tensor that it points to."""
    if weight is None:
        return Weight(), None
    if not isinstance(weight, Tensor):
        return Weight(None, weight, 1), None
    if weight.dim() == 0:
        return Weight(None, weight.item(), 1), None
    values = weight.resolve_neg().to(dtype).expand(shape).contiguous()
    return Weight(values.data_ptr(), 0.0, 1), values


def run_rows(call: Rows, y: Tensor | None) -> None:
    """Run a call on rows with class indices y.

    Raises:
        IndexError: a class index is out of range.
        MemoryError: there is no memory left for the scratch space.
    """
    status = functions().rows(byref(call))
    if status != DONE:
        raise _error(status, call.wrong_row, y, call.classes)


def run_statistics(call: Statistics) -> None:
    """Run a call on rows.

    Raises:
        MemoryError: there is no memory left for the scratch space.
    """
    status = functions().statistics(byref(call))
    if status != DONE:
        raise _error(status, -1, None, call.classes)


def run_pass(call: Pass, y: Tensor | None = None) -> None:
    """Run a pass over samples with class indices y.

    Raises:
        IndexError: a class index is out of range.
        MemoryError: there is no memory left for the scratch space.
    """
    status = functions().run_pass(byref(call))
    if status != DONE:
        raise _error(status, call.wrong_row, y, call.rows.classes)


def _error(status: int, wrong_row: int, y: Tensor | None, classes: int) -> Exception:
    if status == WRONG_CLASS and y is not None:
        got = int(y.flatten()[wrong_row])
        return IndexError(f"target: expected class indices in [0, {classes}), got {got}")
    return MemoryError("no memory left for the scratch space of a kernel")


def csr(
    samples: Samples, crow: Tensor, col: Tensor | None, values: Tensor | None, threads: int
) -> None:
    """Count the entries other than 0 of rows into crow[1:], or copy them to col and values."""
    pointers = [None if t is None else t.data_ptr() for t in (crow, col, values)]
    functions().csr(byref(samples), *pointers, threads)


def advise_huge_pages(fresh: Tensor) -> None:
    """Ask for huge pages for a tensor that was just allocated, if it is large (Linux)."""
    size = fresh.numel() * fresh.element_size()
    if size >= HUGE_PAGES_FROM:
        functions().advise(fresh.data_ptr(), size)
