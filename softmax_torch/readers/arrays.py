"""Read NumPy files (.npz, .npy) without unpickling Python objects.

As a table, a .npz has one column for each array, under its name; a matrix gives the columns name_0,
name_1, ... A .npy has the fields of a structured array, or a matrix with the columns 0, 1, ... A
.npy is mapped into memory, so that only the parts that are used are read.
"""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa

from softmax_torch.saved import check_file

__all__ = ["Array", "map_numbers", "read_tables"]

Array = np.ndarray[Any, Any]

NUMPY_ERRORS = (ValueError, EOFError, OSError, zipfile.BadZipFile, zlib.error)
"""Exceptions that NumPy raises for files that are damaged or not its own."""


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


def map_numbers(path: Path) -> Array:
    """Return the array of numbers in a .npy file, mapped into memory (copy on write).

    Raises:
        FileNotFoundError, ValueError: there is no such file, or it holds no array of numbers.
    """
    check_file(path, "a .npy file")
    try:
        array: Array = load_numpy(path, "c")
    except NUMPY_ERRORS as error:
        raise ValueError(f"{path}: expected a .npy file of numbers, got another: {error}") from None
    numbers = isinstance(array, np.ndarray) and array.dtype.kind in "biuf" and array.ndim > 0
    # torch has neither foreign byte orders nor numbers of 16 bytes.
    if not numbers or not array.dtype.isnative or array.dtype.itemsize > 8:
        got = getattr(array, "dtype", type(array).__name__)
        raise ValueError(f"{path}: expected an array of numbers, a row a sample, got {got}")
    if len(array) == 0:
        raise ValueError(f"{path}: expected at least one row, got none")
    return array


def load_numpy(path: Path, mode: Literal["r", "c"]) -> Any:
    """Return the mapped array of a .npy file, or the open archive of a .npz file."""
    with path.open("rb") as file:
        if file.read(2) == b"PK" and not zipfile.is_zipfile(file):
            raise ValueError("an archive that is damaged")  # NumPy would leave the file open
    return np.load(path, mmap_mode=mode, allow_pickle=False)


def tables_of_arrays(arrays: Mapping[str, Array], rows: int) -> Iterator[pa.Table]:
    """Yield tables of vectors, and of matrices column by column; all must have the same length."""
    columns: dict[str, Array] = {}
    for name, array in arrays.items():
        if not isinstance(array, np.ndarray):  # NumPy gives bytes for other files in an archive
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
