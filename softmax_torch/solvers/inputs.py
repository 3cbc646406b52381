"""What callers hand over, as ``Samples``, class indices and weights; the rest is refused.

X is a dense array in memory (torch or numpy), a ``numpy.memmap``, a sparse matrix (torch CSR, scipy
in any format), or blocks of rows: anything that yields 2-dimensional arrays each time it is
iterated. Arrays in memory are taken to the device whole. A memory map and blocks are read piece by
piece in every pass and never held as a whole.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from softmax_torch.solvers import samples
from softmax_torch.solvers.processes import Processes
from softmax_torch.solvers.samples import (
    DenseSamples,
    Samples,
    SparseSamples,
    StreamedSamples,
    csr,
    csr_of_dense,
    csr_transposed,
)

__all__ = ["as_class_indices", "as_sample_weight", "as_samples", "as_tensor"]

SMALL = 1 << 20
"""Up to so many numbers X is computed with in float64: it costs nothing that could be felt."""

READ_BYTES = 64 << 20
"""What is read of a memory map at a time."""


def as_samples(X: Any, device: torch.device | None, dtype: torch.dtype | None) -> Samples:
    """X (n, D) for passes in ``dtype``, by default float32, float64 where X is small.

    Raises:
        TypeError, ValueError: not 2-dimensional, not of numbers, empty, NaN or infinite.
    """
    if dtype not in (None, torch.float32, torch.float64):
        raise ValueError(f"dtype: expected torch.float32, torch.float64 or None, got {dtype}")
    if hasattr(X, "tocsr"):
        return _sparse(_from_scipy(X), device, dtype)
    if isinstance(X, Tensor) and X.layout != torch.strided:
        return _sparse(X if X.layout == torch.sparse_csr else X.to_sparse_csr(), device, dtype)
    if _is_memmap(X):
        return _mapped(X, device or torch.device("cpu"), dtype or torch.float32)
    if _is_blocks(X):
        return _blocks(X, device or torch.device("cpu"), dtype or torch.float32)
    x = as_tensor("X", X)
    _check(x)
    return _dense(x if device is None else x.to(device), dtype)


def as_tensor(name: str, value: Any) -> Tensor:
    """A tensor of an array, a list or a frame, sharing its memory where that can be."""
    if isinstance(value, Tensor):
        return value.detach()
    import numpy as np

    array = np.asarray(value)
    if array.dtype.kind not in "fiub":
        raise TypeError(f"{name}: expected numbers, got dtype {array.dtype}")
    # What torch cannot share: numbers of another machine or of 10 bytes, backward strides, and
    # memory that must not be written to.
    dtype = array.dtype.newbyteorder("=") if array.dtype.itemsize <= 8 else np.dtype(np.float64)
    if dtype != array.dtype or min(array.strides, default=0) < 0 or not array.flags.writeable:
        array = array.astype(dtype, order="C", copy=True)
    return torch.from_numpy(array)


def _dense(x: Tensor, dtype: torch.dtype | None) -> Samples:
    if dtype is None:
        dtype = torch.float64 if x.numel() <= SMALL else torch.float32
    if dtype == torch.float64 or x.dtype in (torch.int32, torch.int64):  # exact only in float64
        x = x.double()
    elif not x.dtype.is_floating_point:
        x = x.float()
    fast = x.float() if x.dtype == torch.float64 and dtype == torch.float32 else x
    mkl: bool = torch.backends.mkl.is_available()  # type: ignore[no-untyped-call] # torch's own
    worth_it = x.device.type == "cpu" and x.numel() > SMALL and mkl
    if worth_it and _density(x) < samples.SPARSE_BELOW:
        pieces = _in_rows(x, samples.SPARSE_ROWS)
        return SparseSamples(
            ((csr_of_dense(piece), csr_of_dense(piece.T.contiguous())) for piece in pieces),
            dtype,
            dense=fast,
        )
    return DenseSamples(x, fast)


def _sparse(x: Tensor, device: torch.device | None, dtype: torch.dtype | None) -> Samples:
    _check_shape(x)
    _check_finite(x.values())
    n, d = x.shape
    if dtype is None:
        dtype = torch.float64 if len(x.values()) <= SMALL else torch.float32
    if not x.dtype.is_floating_point:
        x = csr(x.crow_indices(), x.col_indices(), x.values().to(dtype), (n, d))
    device = x.device if device is None else device
    if device.type == "cpu":
        x = x.cpu()
        return SparseSamples(
            ((piece, csr_transposed(piece)) for piece in _csr_in_rows(x, samples.SPARSE_ROWS)),
            dtype,
        )
    # A GPU multiplies dense pieces faster than sparse ones.
    step = samples.dense_rows(d, device)
    pieces = [piece.to(device) for piece in _csr_in_rows(x, step)]
    return StreamedSamples(
        lambda: (piece.to_dense().to(dtype) for piece in pieces),
        [piece.shape[0] for piece in pieces],
        d,
        device,
        dtype,
    )


def _mapped(X: Any, device: torch.device, dtype: torch.dtype) -> Samples:
    """A memory map, of which a piece at a time is copied."""
    import numpy as np

    _check_shape(X)
    n, d = X.shape
    step = max(1, READ_BYTES // (4 * d))

    def copied(part: Any) -> Tensor:
        x = torch.from_numpy(np.array(part)).to(device)
        return x if x.dtype.is_floating_point else x.to(dtype)

    def read() -> Iterator[Tensor]:
        return (copied(X[start : start + step]) for start in range(0, n, step))

    for x in read():
        _check_finite(x)
    sizes = [min(step, n - start) for start in range(0, n, step)]
    return StreamedSamples(read, sizes, d, device, dtype, lambda i: copied(X[i.cpu()]).to(dtype))


def _blocks(X: Any, device: torch.device, dtype: torch.dtype) -> Samples:
    """Blocks of rows, which are counted and looked at in a first pass."""

    def read() -> Iterator[Tensor]:
        for block in X:
            x = as_tensor("X", block).to(device)
            yield x if x.dtype.is_floating_point else x.to(dtype)

    sizes: list[int] = []
    d = None
    for x in read():
        _check(x)
        d = x.shape[1] if d is None else d
        if x.shape[1] != d:
            raise ValueError(
                f"X: expected blocks of {d} features as the first, got {x.shape[1]} in block "
                f"{len(sizes)}"
            )
        sizes.append(len(x))
    if d is None:
        raise ValueError("X: expected at least one block of rows, got none")
    return StreamedSamples(read, sizes, d, device, dtype)


def as_class_indices(
    y: Any, n: int, device: torch.device, processes: Processes
) -> tuple[Tensor, int]:
    """Class indices (n,), int64, and the number of classes, each of which occurs.

    Raises:
        TypeError, ValueError: not integers, another length than X, negative, one class only, or a
            class without samples.
    """
    target = as_tensor("y", y)
    if target.dtype.is_floating_point or target.dtype.is_complex:
        raise TypeError(f"y: expected class indices of an integer type, got {target.dtype}")
    if target.dim() != 1 or len(target) != n:
        raise ValueError(
            f"y: expected shape ({n},), a class index for each row of X, got {tuple(target.shape)}"
        )
    target = target.to(device, torch.int64)
    least = int(target.amin())
    if least < 0:
        raise ValueError(f"y: expected class indices of at least 0, got {least}")
    most = int(processes.largest(target.amax()))
    total = int(processes.summed(torch.tensor(n, device=device)))
    if most >= total:  # before anything of that size is made
        raise ValueError(
            f"y: expected class indices 0, 1, ... that all occur, got {most} among {total} samples"
        )
    counts = processes.summed(torch.bincount(target, minlength=most + 1))
    if len(counts) < 2:
        raise ValueError("y: expected samples of at least 2 classes, got class 0 alone")
    if not counts.all():
        raise ValueError(
            f"y: expected samples of every class in [0, {len(counts)}), got none of class "
            f"{int((counts == 0).nonzero()[0])}"
        )
    return target, len(counts)


def as_sample_weight(
    sample_weight: Any, class_weight: Any, y: Tensor, classes: int, processes: Processes
) -> Tensor | None:
    """The weight of each sample, its class weight included, float64; None where all are 1.

    Raises:
        ValueError: other shapes, negative, not finite, or a class that weighs nothing.
    """
    weight = None
    if sample_weight is not None:
        weight = as_tensor("sample_weight", sample_weight).to(y.device, torch.float64)
        if weight.dim() == 0:
            weight = weight.expand(len(y))
        _check_weights("sample_weight", weight, (len(y),))
    if class_weight is not None:
        per_class = _class_weight(class_weight, weight, y, classes, processes)
        weight = per_class[y] if weight is None else weight * per_class[y]
    if weight is None:
        return None
    heavy = processes.summed(torch.bincount(y, weight, minlength=classes))
    if not heavy.all():
        raise ValueError(
            "sample_weight and class_weight: expected samples of weight > 0 in every class, got "
            f"none in class {int((heavy == 0).nonzero()[0])}"
        )
    return weight


def _class_weight(
    class_weight: Any, weight: Tensor | None, y: Tensor, classes: int, processes: Processes
) -> Tensor:
    """One weight a class; "balanced" is S / (K S_k), with the sums of the sample weights."""
    if isinstance(class_weight, str):
        if class_weight != "balanced":
            raise ValueError(
                f'class_weight: expected "balanced", numbers or None, got {class_weight!r}'
            )
        sums = processes.summed(torch.bincount(y, weight, minlength=classes).double())
        return sums.sum() / (classes * sums)
    if isinstance(class_weight, dict):
        unknown = [key for key in class_weight if key not in range(classes)]
        if unknown:
            raise ValueError(
                f"class_weight: expected classes in [0, {classes}), got {unknown[0]!r}"
            )
        class_weight = [class_weight.get(k, 1.0) for k in range(classes)]
    per_class = as_tensor("class_weight", class_weight).to(y.device, torch.float64)
    _check_weights("class_weight", per_class, (classes,))
    return per_class


def _check_weights(name: str, weight: Tensor, shape: tuple[int]) -> None:
    if tuple(weight.shape) != shape:
        raise ValueError(f"{name}: expected shape {shape}, got {tuple(weight.shape)}")
    if not weight.isfinite().all() or weight.amin() < 0:
        wrong = weight[~(weight.isfinite() & (weight >= 0))][0]
        raise ValueError(f"{name}: expected finite numbers >= 0, got {float(wrong)}")


def _check(x: Tensor) -> None:
    _check_shape(x)
    _check_finite(x)


def _check_shape(x: Any) -> None:
    shape = tuple(x.shape)
    if len(shape) != 2 or 0 in shape:
        raise ValueError(
            f"X: expected shape (n, D) with at least one sample and one feature, got {shape}"
        )


def _check_finite(x: Tensor) -> None:
    if not x.dtype.is_floating_point or bool(x.sum().isfinite()):
        return  # a sum of finite numbers may overflow, hence the second look
    if not x.isfinite().all():
        what = "NaN" if bool(x.isnan().any()) else "infinity"
        raise ValueError(f"X: expected finite numbers, got {what}")


def _from_scipy(X: Any) -> Tensor:
    X = X.tocsr()  # itself where it is in CSR, and then it is the caller's
    if not X.has_canonical_format:
        X = X.copy()
        X.sum_duplicates()
    rows, columns, values = (as_tensor("X", part) for part in (X.indptr, X.indices, X.data))
    return csr(rows, columns, values, X.shape)


def _csr_in_rows(x: Tensor, step: int) -> Iterator[Tensor]:
    """x in CSR, in pieces of so many rows."""
    starts = x.crow_indices().long()
    for first in range(0, x.shape[0], step):
        last = min(first + step, x.shape[0])
        at = slice(int(starts[first]), int(starts[last]))
        yield csr(
            starts[first : last + 1] - starts[first],
            x.col_indices()[at],
            x.values()[at],
            (last - first, x.shape[1]),
        )


def _in_rows(x: Tensor, step: int) -> Iterator[Tensor]:
    return (x[start : start + step] for start in range(0, len(x), step))


def _density(x: Tensor) -> float:
    """The share of numbers that are not 0, from a thousand rows here and there."""
    some = x[:: max(1, len(x) // 1000)]
    return int(torch.count_nonzero(some)) / some.numel()


def _is_memmap(X: Any) -> bool:
    return any(f"{t.__module__}.{t.__name__}" == "numpy.memmap" for t in type(X).__mro__)


def _is_blocks(X: Any) -> bool:
    """Whether X yields blocks of rows rather than being an array, a frame or a list of numbers."""
    if isinstance(X, Tensor) or hasattr(X, "__array__") or hasattr(X, "__dataframe__"):
        return False
    if isinstance(X, (list, tuple)):
        return len(X) > 0 and getattr(X[0], "ndim", 0) == 2
    if iter(X) is X:
        raise TypeError(
            "X: expected blocks that can be iterated again and again, such as a list or an object "
            f"with __iter__; got {type(X).__name__}, which is used up by one pass"
        )
    return True
