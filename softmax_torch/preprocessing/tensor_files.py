"""Inputs and class indices from files, mapped into memory: what is not looked at is not read.

    data.pt, data.safetensors     x (N, ...) and y (N,) by these names
    x.npy and y.npy               an array each; .pt files with a tensor each as well

Nothing in a file is run: no pickles but torch's of tensors.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from softmax_torch.preprocessing.arrays import FAULTS, loaded
from softmax_torch.storage.safe_read import read_safetensors, read_torch_file, require_file

__all__ = ["mapped", "read_inputs", "read_pair"]

SUFFIXES = ".npy, .pt or .safetensors"


def read_pair(files: str | Sequence[str]) -> tuple[Tensor, Tensor]:
    """x (N, ...), numbers, and y (N,), int64, of a file with both or of a file each.

    Raises:
        FileNotFoundError, ValueError, TypeError: a file is not there or cannot be read, or holds
            something else.
    """
    paths = [Path(files)] if isinstance(files, str) else [Path(file) for file in files]
    if len(paths) == 1:
        found = read(paths[0])
        if not isinstance(found, dict) or not {"x", "y"} <= found.keys():
            got = ", ".join(map(str, found)) if isinstance(found, dict) else "one tensor"
            raise ValueError(f"{paths[0]}: expected tensors x and y, got {got}")
        x, y = found["x"], found["y"]
    elif len(paths) == 2:
        x, y = (single(path) for path in paths)
    else:
        raise ValueError(f"expected a file with x and y, or one for each, got {len(paths)} files")
    return x, as_labels(y, len(x), paths[-1])


def read_inputs(path: Path) -> Tensor:
    """x (N, ...) of a file, alone in it or beside others; errors are those of ``read_pair``."""
    found = read(path)
    if isinstance(found, dict):
        if "x" not in found:
            raise ValueError(f"{path}: expected a tensor x, got {', '.join(map(str, found))}")
        found = found["x"]
    if len(found) == 0:
        raise ValueError(f"{path}: expected at least one row, got none")
    return found


def as_labels(y: Tensor, n: int, path: Path) -> Tensor:
    """Class indices (n,), int64, in memory."""
    if y.is_floating_point() or y.is_complex() or y.dtype == torch.bool:
        raise TypeError(f"{path}: expected class indices of an integer type, got {y.dtype}")
    if tuple(y.shape) != (n,):
        raise ValueError(
            f"{path}: expected a class index for each of {n} samples, got shape {tuple(y.shape)}"
        )
    return y.long().clone()


def single(path: Path) -> Tensor:
    """The one tensor in a file."""
    found = read(path)
    if isinstance(found, dict):
        raise ValueError(f"{path}: expected one tensor, got {', '.join(map(str, found))}")
    return found


def read(path: Path) -> Tensor | dict[str, Tensor]:
    """What is in a file: a tensor, or tensors by name."""
    if path.suffix.lower() == ".npy":
        return torch.from_numpy(mapped(path))
    if path.suffix.lower() not in (".pt", ".safetensors"):
        raise ValueError(f"{path}: expected a file that ends in {SUFFIXES}")
    found: Tensor | dict[str, Tensor] = (
        read_safetensors(path, "tensors")[0]
        if path.suffix.lower() == ".safetensors"
        else read_torch_file(path, "tensors", mmap=True)
    )
    tensors = found.values() if isinstance(found, dict) else [found]
    if not all(isinstance(x, Tensor) and is_plain(x) for x in tensors):
        raise ValueError(
            f"{path}: expected a tensor, or tensors by name, of real numbers, a row a sample, got "
            "something else"
        )
    return found


def is_plain(x: Tensor) -> bool:
    """Whether it has rows of real numbers, each of which lies in memory as it is."""
    dense = x.layout == torch.strided and not x.is_quantized
    return dense and x.dim() > 0 and not x.is_complex()


def mapped(path: Path) -> np.ndarray[Any, Any]:
    """The array of a .npy file, mapped into memory, of which a change would not reach the file.

    Raises:
        FileNotFoundError, ValueError: there is no such file, or it holds no array of numbers.
    """
    require_file(path, "a .npy file")
    try:
        raw: np.ndarray[Any, Any] = loaded(path, "c")
    except FAULTS as error:
        raise ValueError(f"{path}: expected a .npy file of numbers, got another: {error}") from None
    numbers = isinstance(raw, np.ndarray) and raw.dtype.kind in "biuf" and raw.ndim > 0
    # Torch has neither the order of bytes of another machine nor 16 bytes a number.
    if not numbers or not raw.dtype.isnative or raw.dtype.itemsize > 8:
        got = getattr(raw, "dtype", type(raw).__name__)
        raise ValueError(f"{path}: expected an array of numbers, a row a sample, got {got}")
    if len(raw) == 0:
        raise ValueError(f"{path}: expected at least one row, got none")
    return raw
