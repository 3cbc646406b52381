"""Read NumPy files (.npz, .npy) as pyarrow tables.

A .npz has one column for each array, under its name; a matrix gives the columns name_0, name_1, ...
A .npy has the fields of a structured array, or a matrix with the columns 0, 1, ...
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import pyarrow as pa

from softmax_torch.readers.numpy_files import NUMPY_ERRORS, Array, load_numpy

__all__ = ["read_tables"]


def read_tables(path: Path, rows: int) -> Iterator[pa.Table]:
    """Yield the rows of a .npz or .npy file as tables of at most ``rows`` rows.

    Raises:
        ValueError: the file holds something else than arrays of numbers or text.
    """
    try:
        found = load_numpy(path, "r")
        if isinstance(found, np.ndarray):
            fields = found.dtype.names
            if fields is None and found.ndim != 2:
                raise ValueError(
                    f"an array of shape {found.shape}, neither a matrix nor with fields"
                )
            arrays = (
                {name: found[name] for name in fields}
                if fields
                else {str(k): found[:, k] for k in range(found.shape[1])}
            )
        else:
            with found:
                arrays = {name: found[name] for name in found.files}
        yield from tables_of_arrays(arrays, rows)
    except (*NUMPY_ERRORS, pa.ArrowException) as error:
        raise ValueError(f"{path}: expected arrays of numbers or text, got {error}") from None


def tables_of_arrays(arrays: Mapping[str, Array], rows: int) -> Iterator[pa.Table]:
    """Yield tables of vectors, and of matrices column by column; all must have the same length."""
    columns: dict[str, Array] = {}
    for name, array in arrays.items():
        if not isinstance(array, np.ndarray):  # NumPy returns bytes for other files in an archive
            raise ValueError(f"{name}, which is no array")
        if array.ndim == 1:
            columns[name] = array
        elif array.ndim == 2:
            columns |= {f"{name}_{k}": array[:, k] for k in range(array.shape[1])}
        else:
            raise ValueError(f"{name} of shape {array.shape}")
    lengths = {name: len(column) for name, column in columns.items()}
    if len(set(lengths.values())) > 1:
        raise ValueError(f"arrays of several lengths: {lengths}")
    for first in range(0, max(lengths.values(), default=0), rows):
        yield pa.table(
            {name: to_arrow(column[first : first + rows]) for name, column in columns.items()}
        )


def to_arrow(array: Array) -> pa.Array:
    """Return a vector as a pyarrow array; bytes are decoded as UTF-8 text."""
    # pyarrow needs contiguous memory in native byte order; the array may be mapped or strided.
    array = np.ascontiguousarray(array).astype(array.dtype.newbyteorder("="))
    return pa.array(np.char.decode(array, "utf-8") if array.dtype.kind == "S" else array)
