"""NumPy's files, .npz and .npy, as tables, some rows at a time.

A .npz has a column for each array, by its name; a matrix is columns name_0, name_1, ... A .npy has
the fields of a structured array, or a matrix with columns 0, 1, ...; it is mapped into memory, and
read as far as it is looked at.
"""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa

__all__ = ["FAULTS", "loaded", "tables"]

FAULTS = (ValueError, EOFError, OSError, zipfile.BadZipFile, zlib.error)
"""What NumPy raises for files that are none of its own, or damaged."""


def tables(path: Path, rows: int) -> Iterator[pa.Table]:
    """The rows of a file.

    Raises:
        ValueError: it holds something else, such as Python objects, which are never unpickled.
    """
    try:
        found = loaded(path, "r")
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
        yield from of_columns(arrays, rows)
    except (*FAULTS, pa.ArrowException) as error:
        raise ValueError(f"{path}: expected arrays of numbers or text, got {error}") from None


def loaded(path: Path, mode: Literal["r", "c"]) -> Any:
    """What NumPy finds, without Python objects: an array, mapped into memory, or several."""
    with path.open("rb") as file:
        if file.read(2) == b"PK" and not zipfile.is_zipfile(file):
            raise ValueError("an archive that is damaged")  # which NumPy would leave open
    return np.load(path, mmap_mode=mode, allow_pickle=False)


def of_columns(arrays: Mapping[str, np.ndarray[Any, Any]], rows: int) -> Iterator[pa.Table]:
    """Arrays of one length as columns; those with two dimensions as several."""
    flat: dict[str, np.ndarray[Any, Any]] = {}
    for name, array in arrays.items():
        if not isinstance(array, np.ndarray):  # but bytes, as of any other file in an archive
            raise ValueError(f"{name}, which is no array")
        if array.ndim == 1:
            flat[name] = array
        elif array.ndim == 2:
            flat |= {f"{name}_{k}": array[:, k] for k in range(array.shape[1])}
        else:
            raise ValueError(f"{name} of shape {array.shape}")
    lengths = {name: len(array) for name, array in flat.items()}
    if len(set(lengths.values())) > 1:
        raise ValueError(f"arrays of several lengths: {lengths}")
    for first in range(0, max(lengths.values(), default=0), rows):
        yield pa.table(
            {name: as_column(array[first : first + rows]) for name, array in flat.items()}
        )


def as_column(array: np.ndarray[Any, Any]) -> pa.Array:
    """Part of an array; bytes are text."""
    # A copy, in this machine's order of bytes, of what may be mapped or lie apart.
    array = np.ascontiguousarray(array).astype(array.dtype.newbyteorder("="))
    return pa.array(np.char.decode(array, "utf-8") if array.dtype.kind == "S" else array)
