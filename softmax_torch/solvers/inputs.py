"""Checks and conversion of the samples, class indices, weights and options that callers pass.

X is a dense array in memory (a tensor, a numpy array, nested lists, a pandas or polars frame), a
``numpy.memmap``, a sparse matrix (torch CSR, any format of scipy, a sparse pandas frame), or blocks
of rows: an iterable that yields 2-dimensional arrays anew each time. Arrays in memory are moved to
the device at once. Every pass reads a memory map and blocks piece by piece and holds one piece at a
time.

All numbers of X reach ``Samples`` exactly: whole numbers stay integers or become float64 where
float32 would round them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from softmax_torch.solvers import samples
from softmax_torch.solvers.arrays import (
    as_tensor,
    check_stored,
    check_values,
    column_names,
    computable,
    floating,
    is_blocks,
    is_memmap,
    is_sparse_frame,
    refuse_unreal,
)
from softmax_torch.solvers.csr import csr, csr_of_dense, csr_transposed
from softmax_torch.solvers.processes import Processes
from softmax_torch.solvers.samples import (
    DenseSamples,
    Samples,
    SparseSamples,
    StreamedSamples,
)

__all__ = [
    "as_class_indices",
    "as_dtype",
    "as_sample_weight",
    "as_samples",
    "check_strength",
]

SMALL = 1 << 20
"""With at most so many numbers in X all passes use float64: the time it costs is not noticeable."""

READ_BYTES = 64 << 20
"""Bytes of a memory map that are read at a time."""

LARGEST_TOTAL, LEAST_TOTAL = 1e30, 1e-30
"""Bounds of the sum of the weights: sums of weights times features stay within float32, whose
numbers lie between 1.2e-38 and 3.4e38."""

STRONGEST = 1e30
"""The largest strength 1/(C S) of the penalty. The weight W is about the mean of a feature divided
by it, and below 1.2e-38 float32 rounds W to 0."""


def as_dtype(dtype: Any) -> torch.dtype | None:
    """Return the dtype of the passes, given as a dtype of torch or numpy, its name or None."""
    if dtype is None:
        return None
    name = str(getattr(dtype, "__name__", dtype)).removeprefix("torch.")
    if name not in ("float32", "float64"):
        raise ValueError(
            "dtype: expected torch.float32, torch.float64, their names or None, got "
            f"{dtype if isinstance(dtype, torch.dtype) else repr(dtype)}"
        )
    return torch.float32 if name == "float32" else torch.float64


def check_strength(C: float, total: float) -> None:
    """Raise ValueError if the penalty 1/(C S) of samples of total weight S cannot be computed."""
    if C == math.inf:
        return
    product = float(C) * float(total)
    if product == math.inf:
        raise ValueError(
            f"C: expected a finite C times the sum of the weights, got C={C:g} and the sum "
            f"{total:g}; C=math.inf is no penalty"
        )
    if not product >= 1 / STRONGEST:
        raise ValueError(
            f"C: expected C times the sum of the weights to be at least {1 / STRONGEST:g}, got "
            f"C={C:g} and the sum {total:g}"
        )


def as_samples(X: Any, device: torch.device | None, dtype: Any) -> Samples:
    """Return X (n, D) as samples for passes in ``dtype``, by default float32 unless X is small.

    Raises:
        TypeError: entries that are not real numbers.
        ValueError: not 2-dimensional, empty, or with missing, infinite or too large values.
    """
    dtype = as_dtype(dtype)
    names = column_names(X)
    if is_sparse_frame(X):
        X = X.sparse.to_coo()
    if hasattr(X, "tocsr"):
        _check_shape(X)
        return _sparse(_from_scipy(X), names, device, dtype)
    if isinstance(X, Tensor) and X.layout != torch.strided:
        _check_shape(X)
        refuse_unreal("X", X)
        X = X.detach()
        x = X if X.layout == torch.sparse_csr else X.to_sparse_csr()
        return _sparse(x, None, device, dtype)
    if is_memmap(X):
        return _mapped(X, device or torch.device("cpu"), dtype or torch.float32)
    if is_blocks(X):
        return _blocks(X, device or torch.device("cpu"), dtype or torch.float32)
    x = computable(as_tensor("X", X))
    _check_shape(x)
    check_values(x, names)
    return _dense(x if device is None else x.to(device), dtype)


def _dense(x: Tensor, dtype: torch.dtype | None) -> Samples:
    if dtype is None:
        dtype = torch.float64 if x.numel() <= SMALL else torch.float32
    x = x.double() if dtype == torch.float64 else floating(x)
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


def _sparse(
    x: Tensor, names: Sequence[Any] | None, device: torch.device | None, dtype: torch.dtype | None
) -> Samples:
    """Return a matrix in CSR as sparse samples on a CPU, as streamed dense blocks on a GPU."""
    values = computable(x.values())
    check_stored(values, x.col_indices(), names)
    n, d = x.shape
    if dtype is None:
        dtype = torch.float64 if len(values) <= SMALL else torch.float32
    whole = not x.dtype.is_floating_point
    if x.dtype != floating(values).dtype:
        x = csr(x.crow_indices(), x.col_indices(), floating(values), (n, d))
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
    # Passes in float32 are faster on blocks in float32, which round floats but no whole numbers.
    kept = x.dtype if whole else dtype

    def read() -> Iterator[Tensor]:
        return (piece.to_dense().to(kept) for piece in pieces)

    sizes = [piece.shape[0] for piece in pieces]
    return StreamedSamples(read, sizes, d, device, dtype, _picking(read, dtype))


def _mapped(X: Any, device: torch.device, dtype: torch.dtype) -> Samples:
    """Return a memory map as samples that copy one piece of it at a time."""
    import numpy as np

    _check_shape(X)
    n, d = X.shape
    step = max(1, READ_BYTES // (X.dtype.itemsize * d))

    def copied(part: Any) -> Tensor:
        return computable(as_tensor("X", np.array(part))).to(device)

    def read() -> Iterator[Tensor]:
        return (copied(X[start : start + step]) for start in range(0, n, step))

    for x in read():
        check_values(x)
    sizes = [min(step, n - start) for start in range(0, n, step)]
    return StreamedSamples(
        read, sizes, d, device, dtype, lambda i: copied(X[i.cpu().numpy()]).to(dtype)
    )


def _blocks(X: Any, device: torch.device, dtype: torch.dtype) -> Samples:
    """Return blocks of rows as samples; a first pass counts the rows and checks the values.

    Blocks without rows are skipped.
    """

    def converted(block: Any) -> Tensor:
        return computable(as_tensor("X", block)).to(device)

    def read() -> Iterator[Tensor]:
        return (x for x in map(converted, X) if len(x))

    sizes: list[int] = []
    d = None
    for number, block in enumerate(X):
        x = converted(block)
        if x.dim() == 2 and len(x) == 0:
            continue
        _check_shape(x, f" in block {number}")
        d = x.shape[1] if d is None else d
        if x.shape[1] != d:
            raise ValueError(
                f"X: expected blocks of {d} features like the first, got {x.shape[1]} in block "
                f"{number}"
            )
        check_values(x, column_names(block))
        sizes.append(len(x))
    if d is None:
        raise ValueError("X: expected at least one block with rows, got none")
    return StreamedSamples(read, sizes, d, device, dtype, _picking(read, dtype))


def _picking(
    read: Callable[[], Iterator[Tensor]], dtype: torch.dtype
) -> Callable[[Tensor], Tensor]:
    """Return a function of ascending row numbers that reads all blocks and keeps these rows."""

    def pick(index: Tensor) -> Tensor:
        picked, start = [], 0
        for x in read():
            here = index[(index >= start) & (index < start + len(x))] - start
            picked.append(x[here].to(dtype))
            start += len(x)
        return torch.cat(picked)

    return pick


def _check_shape(x: Any, where: str = "") -> None:
    shape = tuple(x.shape)
    if len(shape) != 2 or 0 in shape:
        raise ValueError(
            f"X: expected shape (n, D) with at least one sample and one feature, got {shape}{where}"
        )


def as_class_indices(
    y: Any, n: int, device: torch.device, processes: Processes
) -> tuple[Tensor, int]:
    """Return the class indices (n,), int64, and the number of classes, all of which occur.

    Raises:
        TypeError: not integers.
        ValueError: another length than X, negative, one class only, or a class without samples.
    """
    target = as_tensor("y", y)
    if target.dtype.is_floating_point:
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
    if most >= total:  # checked before bincount allocates as many counts
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
    """Return each sample's weight times the weight of its class (n,), float64; None if all are 1.

    Raises:
        ValueError: other shapes, negative or not finite, a class of total weight 0, or a sum that
            float32 cannot hold.
    """
    weight = None
    if sample_weight is not None:
        weight = as_tensor("sample_weight", sample_weight).to(y.device, torch.float64)
        if weight.dim() == 0:
            weight = weight.expand(len(y))
        _check_weights("sample_weight", weight, (len(y),))
        _check_totals("sample_weight", weight, y, classes, processes)
    if class_weight is not None:
        per_class = _class_weight(class_weight, weight, y, classes, processes)
        weight = per_class[y] if weight is None else weight * per_class[y]
        _check_totals("sample_weight and class_weight", weight, y, classes, processes)
    return weight


def _class_weight(
    class_weight: Any, weight: Tensor | None, y: Tensor, classes: int, processes: Processes
) -> Tensor:
    """Return the weight of each class (K,), float64.

    "balanced" is S / (K S_k), with S_k the sum of the sample weights of class k.
    """
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


def _check_totals(name: str, weight: Tensor, y: Tensor, classes: int, processes: Processes) -> None:
    """Raise ValueError unless every class has a weight > 0 and float32 can hold their sum."""
    sums = processes.summed(torch.bincount(y, weight, minlength=classes))
    if not sums.all():
        raise ValueError(
            f"{name}: expected samples of weight > 0 in every class, got none in class "
            f"{int((sums == 0).nonzero()[0])}"
        )
    total = float(sums.sum())
    if not LEAST_TOTAL <= total <= LARGEST_TOTAL:
        raise ValueError(
            f"{name}: expected weights with a sum from {LEAST_TOTAL:g} to {LARGEST_TOTAL:g}, got "
            f"{total:g}; scale the weights, and C the other way round"
        )


def _check_weights(name: str, weight: Tensor, shape: tuple[int]) -> None:
    """Raise ValueError unless weights have this shape and are finite and at least 0."""
    if tuple(weight.shape) != shape:
        raise ValueError(f"{name}: expected shape {shape}, got {tuple(weight.shape)}")
    if not weight.isfinite().all() or weight.amin() < 0:
        wrong = weight[~(weight.isfinite() & (weight >= 0))][0]
        raise ValueError(f"{name}: expected finite numbers >= 0, got {float(wrong)}")


def _from_scipy(X: Any) -> Tensor:
    """Return a scipy sparse matrix as a torch CSR matrix without duplicate entries."""
    X = X.tocsr()  # the caller's own matrix where that is in CSR: copied before it is changed
    if not X.has_canonical_format:
        X = X.copy()
        X.sum_duplicates()
    rows, columns, values = (as_tensor("X", part) for part in (X.indptr, X.indices, X.data))
    return csr(rows, columns, values, X.shape)


def _csr_in_rows(x: Tensor, step: int) -> Iterator[Tensor]:
    """Yield the rows of x in CSR in pieces of ``step`` rows."""
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
    """Return the share of numbers that are not 0, from a thousand evenly spaced rows."""
    some = x[:: max(1, len(x) // 1000)]
    return int(torch.count_nonzero(some)) / some.numel()
