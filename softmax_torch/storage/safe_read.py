"""Read files of tensors without running code that may be in them.

``torch.save`` writes pickles, such as checkpoints. They are read by torch's restricted unpickler,
which makes tensors, numbers, strings and containers of them, and stops at anything else. A
safetensors file, such as exported weights, holds tensors and JSON alone.
"""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor

__all__ = ["read_safetensors", "read_torch_file", "require_file", "unpickle"]


def read_torch_file(path: Path, expected: str, mmap: bool = False) -> Any:
    """Return the content of a file written by ``torch.save``, with its tensors on the CPU.

    Args:
        path: the file.
        expected: name of the expected content for messages, such as "a checkpoint of a run".
        mmap: whether to map tensors into memory where the format allows it, so that their bytes
            are read on first use.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is damaged, or has another content.
    """
    require_file(path, expected)
    mapped = mmap and zipfile.is_zipfile(path)  # torch 1.5 and earlier wrote no archive
    return unpickle(path, path, expected, mapped)


def unpickle(source: Path | IO[bytes], path: Path, expected: str, mmap: bool = False) -> Any:
    """Return the content of ``source``, the file ``path`` or an open one; see ``read_torch_file``.

    Raises:
        ValueError: the file is damaged, or has another content.
    """
    try:
        return torch.load(source, map_location="cpu", mmap=mmap, weights_only=True)
    except Exception as error:  # torch lets errors of any type through
        raise ValueError(
            f"{path}: expected {expected}, got a file that is damaged or of another kind: "
            f"{type(error).__name__} on reading it"
        ) from None


def read_safetensors(path: Path, expected: str) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return the tensors of a .safetensors file by name, mapped into memory, and its metadata.

    Args:
        path, expected: see ``read_torch_file``.

    Raises:
        FileNotFoundError, ValueError: see ``read_torch_file``.
        ImportError: safetensors is not installed.
    """
    try:
        from safetensors import SafetensorError, safe_open
    except ImportError as error:
        raise ImportError(
            f"{path}: {error}, which is needed to read it: pip install 'softmax-torch[export]'"
        ) from None

    require_file(path, expected)
    try:
        with safe_open(path, framework="pt") as file:
            names = file.keys()  # the file is no mapping and cannot be iterated over itself
            return {name: file.get_tensor(name) for name in names}, file.metadata() or {}
    except SafetensorError as error:
        raise ValueError(
            f"{path}: expected {expected}, got a file that is damaged or of another kind: {error}"
        ) from None


def require_file(path: Path, expected: str) -> None:
    """Raise FileNotFoundError unless ``path`` is a file; ``expected`` names its content."""
    if not path.is_file():
        found = "a folder" if path.is_dir() else "no such file"
        raise FileNotFoundError(f"{path}: expected {expected}, got {found}")
