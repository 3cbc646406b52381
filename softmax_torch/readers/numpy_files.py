"""Open NumPy files (.npy, .npz) without unpickling Python objects.

A .npy is mapped into memory, so that only the parts that are used are read.
"""

from __future__ import annotations

import zipfile
import zlib
from pathlib import Path
from typing import Any, Literal

import numpy as np

from softmax_torch.storage.safe_read import require_file

__all__ = ["NUMPY_ERRORS", "Array", "load_numpy", "map_numbers"]

Array = np.ndarray[Any, Any]

NUMPY_ERRORS = (ValueError, EOFError, OSError, zipfile.BadZipFile, zlib.error)
"""Exceptions that NumPy raises for damaged files and other kinds of files."""


def map_numbers(path: Path) -> Array:
    """Return the array of numbers in a .npy file, mapped into memory (copy on write).

    Raises:
        FileNotFoundError, ValueError: there is no such file, or it holds no array of numbers.
    """
    require_file(path, "a .npy file")
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
