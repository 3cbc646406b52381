"""Conversion of arrays, lists, frames and numbers to tensors and Python numbers, with checks.

The containers are tensors, numpy arrays, nested lists, frames and series of pandas or polars, and
tables and arrays of pyarrow. Conversions are exact, and share memory if torch can. Anything that is
not a real number raises an error: strings, complex numbers, objects, and missing values (None,
pandas.NA, polars' null, entries under the mask of a masked array). NaN is a number here.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from decimal import Decimal
from numbers import Integral, Real
from typing import Any

import torch
from torch import Tensor

__all__ = [
    "LARGEST",
    "as_number",
    "as_tensor",
    "as_whole_number",
    "check_stored",
    "check_values",
    "column_names",
    "computable",
    "floating",
    "has_missing",
    "is_blocks",
    "is_memmap",
    "is_sparse_frame",
    "refuse_masked",
    "refuse_unreal",
]

LARGEST = 1e15
"""The largest magnitude allowed in X. Passes in float32 sum squares over samples: the squares of
3e8 samples stay below float32's largest number, 3.4e38. Fill values for missing data (1e20,
NetCDF's 9.96921e36) lie above the limit. Unix times in microseconds (1.7e15) must be scaled."""

EXACT = {
    torch.bool: torch.uint8,
    torch.uint16: torch.float32,
    torch.uint32: torch.float64,
    torch.uint64: torch.float64,
}
"""From dtypes with few operations in torch to dtypes that hold their numbers up to LARGEST."""


def as_tensor(name: str, value: Any) -> Tensor:
    """Return a dense tensor of an array, a list, a frame or a series, without its gradient.

    Raises:
        TypeError: an entry is not a real number, or a tensor has no dense storage.
        ValueError: values are missing.
    """
    if isinstance(value, Tensor):
        if value.layout != torch.strided:
            raise TypeError(f"{name}: expected a dense tensor, got layout {value.layout}")
        refuse_unreal(name, value)
        return value.detach()
    import numpy as np

    names = column_names(value)
    if names is None:
        refuse_masked(name, value)
        if has_missing(value):
            raise ValueError(f"{name}: expected no missing values, got some")
        array = _numeric(name, np.asarray(value))
    elif _has_one_numpy_dtype(value):
        array = _numeric(name, np.asarray(value), names)  # shares the memory of the frame
    else:
        array = _from_columns(name, value, names)
    # torch cannot share arrays of foreign byte order, long doubles, arrays with negative strides
    # and read-only memory.
    dtype = array.dtype.newbyteorder("=") if array.dtype.itemsize <= 8 else np.dtype(np.float64)
    if dtype != array.dtype or min(array.strides, default=0) < 0 or not array.flags.writeable:
        array = array.astype(dtype, order="C", copy=True)
    return torch.from_numpy(array)


def as_number(name: str, value: Any) -> float:
    """Return the Python float of a number: a Python or numpy scalar or a 0-dimensional tensor.

    Raises:
        TypeError: ``value`` is not a number.
        ValueError: ``value`` is too large for a float.
    """
    try:
        if getattr(value, "ndim", 0) != 0 or not hasattr(value, "__float__"):
            raise TypeError  # float() would take strings and arrays of one entry
        number = float(value)
    except OverflowError:
        number = math.inf
    except (TypeError, ValueError, RuntimeError):
        raise TypeError(f"{name}: expected a number, got {value!r}") from None
    if math.isinf(number) and abs(value) != math.inf:
        raise ValueError(f"{name}: expected a number that a float can hold (up to 1.8e308)")
    return number


def as_whole_number(name: str, value: Any) -> int:
    """Return the Python int of a whole number, which may have a floating-point type.

    Raises:
        TypeError: ``value`` is not a number.
        ValueError: ``value`` is not whole.
    """
    number = as_number(name, value)
    if not number.is_integer():
        raise ValueError(f"{name}: expected a whole number, got {value!r}")
    return int(number)


def computable(x: Tensor) -> Tensor:
    """Return x in a dtype that torch computes with and that holds all its numbers exactly."""
    if x.dtype.is_floating_point and x.dtype.itemsize == 1:
        return x.float()
    return x.to(EXACT.get(x.dtype, x.dtype))


def floating(x: Tensor) -> Tensor:
    """Return x in a floating-point dtype that holds all its numbers exactly."""
    if x.dtype.is_floating_point:
        return x
    if x.dtype.itemsize > 2 and x.numel():
        low, high = _range(x)
        if low < -(1 << 24) or high > 1 << 24:
            return x.double()
    return x.float()


def _range(x: Tensor) -> tuple[float, float]:
    """Return the least and the largest number of x; NaN if x has one."""
    # On a CPU aminmax takes 12 ms for 60000 x 784, as long as a sum, but 220 ms for its transpose.
    low, high = torch.aminmax(x) if x.is_contiguous() else (x.amin(), x.amax())
    return low.item(), high.item()


def check_values(x: Tensor, names: Sequence[Any] | None = None) -> None:
    """Raise ValueError unless all of x (n, D) is finite and at most LARGEST in magnitude."""
    if _within(*_range(x)):
        return
    lows, highs = (ends.tolist() for ends in (x.amin(0), x.amax(0)))
    wrong = [not _within(*both) for both in zip(lows, highs, strict=True)].index(True)
    _refuse(x[:, wrong], column(wrong, names))


def check_stored(values: Tensor, columns: Tensor, names: Sequence[Any] | None) -> None:
    """Raise ValueError unless all stored values of a sparse X are as ``check_values`` demands."""
    if len(values) == 0 or _within(*_range(values)):
        return
    fits = (values.double() >= -LARGEST) & (values.double() <= LARGEST)
    wrong = int(columns[~fits].amin())
    _refuse(values[columns == wrong], column(wrong, names))


def _within(low: float, high: float) -> bool:
    """Return whether an interval lies within the allowed values; NaN never does."""
    return -LARGEST <= low and high <= LARGEST


def _refuse(x: Tensor, where: str) -> None:
    """Raise ValueError with the worst of the values x of a column."""
    x = x.double()
    if x.isnan().any():
        raise ValueError(f"X: expected finite numbers, got NaN in {where}")
    if x.isinf().any():
        raise ValueError(f"X: expected finite numbers, got infinity in {where}")
    largest = float(x[x.abs().argmax()])
    raise ValueError(
        f"X: expected numbers of magnitude at most {LARGEST:g}, got {largest:g} in {where}; drop "
        "the column if this is a fill value for missing data (NetCDF's is 9.96921e+36), otherwise "
        "scale it"
    )


def refuse_unreal(name: str, x: Tensor) -> None:
    """Raise TypeError unless x is a tensor of real numbers or booleans with storage."""
    if x.is_meta:
        raise TypeError(f"{name}: expected a tensor with data, got one on the meta device")
    if x.is_quantized:
        raise TypeError(f"{name}: expected real numbers, got {x.dtype}; call dequantize() first")
    if x.is_complex():
        raise TypeError(
            f"{name}: expected real numbers, got {x.dtype}; pass the real and the imaginary part "
            "as columns of their own"
        )


def refuse_masked(name: str, value: Any) -> None:
    """Raise ValueError if entries of a numpy masked array are masked."""
    import numpy as np

    if not isinstance(value, np.ma.MaskedArray) or not np.ma.is_masked(value):
        return
    where = ""
    if value.ndim == 2:
        where = f" in {column(int(np.ma.getmaskarray(value).any(0).argmax()))}"
    raise ValueError(f"{name}: expected no missing values, got masked entries{where}")


def column_names(X: Any) -> list[Any] | None:
    """Return the column names of a frame of pandas or polars or a table of pyarrow, or None."""
    if all(hasattr(X, attribute) for attribute in ("shape", "dtypes", "columns")):
        return list(X.columns)
    if _is_table(X):
        return list(X.column_names)
    return None


def _is_table(X: Any) -> bool:
    """Return whether X is a table of pyarrow."""
    return hasattr(X, "column_names") and hasattr(X, "itercolumns")


def column(index: int, names: Sequence[Any] | None = None) -> str:
    """Return a column's index, and its name if that is a string, for messages."""
    if names is None or not isinstance(names[index], str):
        return f"column {index}"
    return f"column {index} ({names[index]!r})"


def is_sparse_frame(X: Any) -> bool:
    """Return whether X is a pandas frame whose columns are all sparse with fill value 0."""
    return (
        column_names(X) is not None
        and hasattr(X, "sparse")
        and all(dtype.fill_value == 0 for dtype in X.dtypes)
    )


def is_memmap(X: Any) -> bool:
    """Return whether X is a ``numpy.memmap``."""
    return any(f"{t.__module__}.{t.__name__}" == "numpy.memmap" for t in type(X).__mro__)


def is_blocks(X: Any) -> bool:
    """Return whether X is an iterable of blocks, not an array, a frame or a list of numbers."""
    if isinstance(X, Tensor) or hasattr(X, "__array__") or hasattr(X, "__dataframe__"):
        return False
    if isinstance(X, (list, tuple)):
        return len(X) > 0 and len(getattr(X[0], "shape", ())) == 2
    if not hasattr(X, "__iter__") or isinstance(X, (str, bytes, dict, set)):
        raise TypeError(
            "X: expected an array, a frame, a sparse matrix or an iterable of blocks, got "
            f"{type(X).__name__}"
        )
    if iter(X) is X:
        raise TypeError(
            "X: expected blocks that can be iterated again and again, such as a list or an object "
            f"with __iter__; got {type(X).__name__}, which can be iterated only once"
        )
    return True


def _has_one_numpy_dtype(frame: Any) -> bool:
    """Return whether all columns of a frame are plain numpy arrays of the same dtype."""
    import numpy as np

    if _is_table(frame):
        return False
    dtypes = list(frame.dtypes)
    return all(isinstance(dtype, np.dtype) and dtype == dtypes[0] for dtype in dtypes)


def _from_columns(name: str, frame: Any, names: list[Any]) -> Any:
    """Return the numpy array (n, D) of a frame in the common dtype of its columns.

    That dtype holds all columns exactly, except whole numbers above 2^53 in a frame with floats,
    which are rounded. ``numpy.asarray(frame)`` would have dtype object for a frame with booleans
    and numbers.
    """
    import numpy as np

    arrays = []
    for j in range(len(names)):
        if _is_table(frame):
            series = frame.column(j)
        else:
            series = frame.iloc[:, j] if hasattr(frame, "iloc") else frame[:, j]
        if has_missing(series):
            raise ValueError(f"{name}: expected no missing values, got some in {column(j, names)}")
        arrays.append(_numeric(name, np.asarray(series), names, j))
    return np.stack(arrays, axis=1)


def has_missing(series: Any) -> bool:
    """Return whether a series has missing values. NaN in a plain numpy array is not missing."""
    import numpy as np

    count = getattr(series, "null_count", None)  # a method in polars, a number in pyarrow
    if count is not None:
        return bool(count() if callable(count) else count)
    if not hasattr(series, "isna") or isinstance(series.dtype, np.dtype):
        return False
    return bool(series.isna().any())


def _numeric(
    name: str, array: Any, names: Sequence[Any] | None = None, only: int | None = None
) -> Any:
    """Return a numpy array of real numbers or booleans, from one that may hold Python objects.

    Errors name the column of the entry: ``only`` if it is given, an index into ``names``, and
    otherwise the index of the entry in the last dimension of an array (n, D).
    """
    if array.dtype.kind in "fiub":
        return array
    if array.dtype.kind != "O":
        where = "" if names is None else f" in {column(only or 0, names)}"
        raise TypeError(f"{name}: expected numbers, got dtype {array.dtype}{where}")
    import numpy as np

    entries = array.ravel().tolist()
    for i, entry in enumerate(entries):
        if isinstance(entry, (Real, Decimal, np.bool_)):
            continue
        if only is not None:
            where = column(only, names)
        elif array.ndim == 2:
            where = column(i % array.shape[1], names)
        else:
            where = f"entry {i}"
        if entry is None or type(entry).__name__ in ("NAType", "NaTType"):  # pandas' NA and NaT
            raise ValueError(f"{name}: expected no missing values, got {entry} in {where}")
        kind = type(entry).__name__
        raise TypeError(f"{name}: expected numbers, got {kind} {entry!r:.40} in {where}")
    whole = all(isinstance(entry, (Integral, np.bool_)) for entry in entries)
    for dtype in (np.int64, np.float64) if whole and entries else (np.float64,):
        try:
            return np.array(entries, dtype).reshape(array.shape)
        except OverflowError:  # an int that the dtype cannot hold
            pass
    raise ValueError(
        f"{name}: expected numbers that a float can hold, got one of 309 digits or more"
    )
