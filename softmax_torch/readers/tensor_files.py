"""Read inputs and class indices from .pt, .safetensors and .npy files, mapped into memory.

    data.pt, data.safetensors     x (N, ...) and y (N,) under these names
    x.npy and y.npy               one array each; also .pt files with one tensor each

Only the parts that are used are read from disk. No code in a file is run: torch's restricted
unpickler reads .pt files, and Python objects are refused.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from softmax_torch.readers.numpy_files import map_numbers
from softmax_torch.storage.safe_read import read_safetensors, read_torch_file

__all__ = ["read_inputs", "read_pair"]

SUFFIX_TEXT = ".npy, .pt or .safetensors"


def read_pair(files: str | Sequence[str]) -> tuple[Tensor, Tensor]:
    """Return x (N, ...), real numbers, and y (N,), int64, from one file with both or two files.

    Raises:
        FileNotFoundError, ValueError, TypeError: a file is not there, cannot be read, or holds
            something else.
    """
    paths = [Path(files)] if isinstance(files, str) else [Path(file) for file in files]
    if len(paths) == 1:
        content = read_tensors(paths[0])
        if not isinstance(content, dict) or not {"x", "y"} <= content.keys():
            got = ", ".join(map(str, content)) if isinstance(content, dict) else "one tensor"
            raise ValueError(f"{paths[0]}: expected tensors x and y, got {got}")
        x, y = content["x"], content["y"]
    elif len(paths) == 2:
        x, y = (read_single(path) for path in paths)
    else:
        raise ValueError(f"expected a file with x and y, or one for each, got {len(paths)} files")
    return x, class_indices(y, len(x), paths[-1])


def read_inputs(path: Path) -> Tensor:
    """Return x (N, ...) from a file that holds it alone or with others; errors as ``read_pair``."""
    content = read_tensors(path)
    if isinstance(content, dict):
        if "x" not in content:
            raise ValueError(f"{path}: expected a tensor x, got {', '.join(map(str, content))}")
        content = content["x"]
    if len(content) == 0:
        raise ValueError(f"{path}: expected at least one row, got none")
    return content


def class_indices(y: Tensor, n: int, path: Path) -> Tensor:
    """Return class indices (n,) as int64, copied into memory; raise an error for any other y."""
    if y.is_floating_point() or y.is_complex() or y.dtype == torch.bool:
        raise TypeError(f"{path}: expected class indices of an integer type, got {y.dtype}")
    if tuple(y.shape) != (n,):
        raise ValueError(
            f"{path}: expected a class index for each of {n} samples, got shape {tuple(y.shape)}"
        )
    return y.long().clone()


def read_single(path: Path) -> Tensor:
    """Return the tensor of a file with one tensor."""
    content = read_tensors(path)
    if isinstance(content, dict):
        raise ValueError(f"{path}: expected one tensor, got {', '.join(map(str, content))}")
    return content


def read_tensors(path: Path) -> Tensor | dict[str, Tensor]:
    """Return the tensor in a file, or its tensors by name."""
    if path.suffix.lower() == ".npy":
        return torch.from_numpy(map_numbers(path))
    if path.suffix.lower() not in (".pt", ".safetensors"):
        raise ValueError(f"{path}: expected a file that ends in {SUFFIX_TEXT}")
    content: Tensor | dict[str, Tensor] = (
        read_safetensors(path, "tensors")[0]
        if path.suffix.lower() == ".safetensors"
        else read_torch_file(path, "tensors", mmap=True)
    )
    tensors = content.values() if isinstance(content, dict) else [content]
    if not all(isinstance(x, Tensor) and has_real_rows(x) for x in tensors):
        raise ValueError(
            f"{path}: expected tensors of real numbers with a row for each sample, got something "
            "else"
        )
    return content


def has_real_rows(x: Tensor) -> bool:
    """Return whether x is a dense tensor of real numbers with at least one dimension."""
    dense = x.layout == torch.strided and not x.is_quantized
    return dense and x.dim() > 0 and not x.is_complex()
