"""Files with tensors are read here, always without running code that may be in them.

What ``torch.save`` wrote, such as a checkpoint, is a pickle. It is read by torch's own unpickler,
which makes tensors, numbers, strings and containers of them, and stops at anything else. A file of
safetensors, such as exported weights, is tensors and JSON.
"""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

__all__ = [
    "CONFIG",
    "CONFIG_FILE",
    "FORMAT",
    "WEIGHTS_FILE",
    "check",
    "check_file",
    "load",
    "load_weights",
    "safe_tensors",
    "unpickled",
]

WEIGHTS_FILE, CONFIG_FILE = "model.safetensors", "config.json"
"""What is in a folder with exported weights."""

CONFIG = "config"
"""Key of the same configuration in the metadata of the weights."""

FORMAT = 1
"""Of that configuration; another one means something else."""


def unpickled(path: Path, expected: str, mmap: bool = False) -> Any:
    """What ``torch.save`` wrote, on a CPU.

    Args:
        path: the file.
        expected: what it should be, in messages, such as "a checkpoint of a run".
        mmap: whether tensors are mapped into memory where they can be, and read as far as they are
            looked at.

    Raises:
        FileNotFoundError, ValueError: it is not there, or is something else.
    """
    check_file(path, expected)
    mapped = mmap and zipfile.is_zipfile(path)  # torch 1.5 and earlier wrote no archive
    try:
        return torch.load(path, map_location="cpu", mmap=mapped, weights_only=True)
    except Exception as error:  # torch raises whatever its unpickler stumbles over
        raise ValueError(
            f"{path}: expected {expected}, got a file that is damaged or another thing: "
            f"{type(error).__name__} on reading it"
        ) from None


def safe_tensors(path: Path, expected: str) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors by name in a .safetensors file, mapped into memory, and its metadata.

    Arguments and errors are those of ``unpickled``; and ImportError without safetensors.
    """
    try:
        from safetensors import SafetensorError, safe_open
    except ImportError as error:
        raise ImportError(
            f"{path}: {error}, which it takes to read it: pip install 'softmax-torch[export]'"
        ) from None

    check_file(path, expected)
    try:
        with safe_open(path, framework="pt") as file:
            names = file.keys()  # it is no mapping, and cannot be iterated over itself
            return {name: file.get_tensor(name) for name in names}, file.metadata() or {}
    except SafetensorError as error:
        raise ValueError(
            f"{path}: expected {expected}, got a file that is damaged or another thing: {error}"
        ) from None


def check_file(path: Path, expected: str) -> None:
    """FileNotFoundError where there is no file; ``expected`` says what it should be."""
    if not path.is_file():
        found = "a folder" if path.is_dir() else "no such file"
        raise FileNotFoundError(f"{path}: expected {expected}, got {found}")


def check(path: Path) -> None:
    """Whether it can be read as a checkpoint, without running code from it.

    Raises:
        FileNotFoundError, ValueError: it is not there, or is something else.
    """
    load(path)


def load(path: Path) -> dict[str, Any]:
    """What is in a checkpoint; see ``check``."""
    content = unpickled(path, "a checkpoint of a run")
    if not isinstance(content, dict) or not {"state_dict", "hyper_parameters"} <= content.keys():
        raise ValueError(
            f"{path}: expected a checkpoint of a run, with state_dict and hyper_parameters; got "
            f"{sorted(map(str, content)) if isinstance(content, dict) else type(content).__name__}"
        )
    return content


def load_weights(path: Path) -> dict[str, Any]:
    """What is in exported weights, a .safetensors file or a folder with one.

    Returns:
        The same as a checkpoint has: ``state_dict``, ``hyper_parameters``, ``preprocessing`` and,
        if they were exported with one, ``calibration`` (see ``softmax_torch.export.metadata``).

    Raises:
        FileNotFoundError, ValueError: they are not there, or are something else.
        ImportError: safetensors is not installed.
    """
    file = path / WEIGHTS_FILE if path.is_dir() else path
    state, metadata = safe_tensors(file, "exported weights")
    try:
        text = metadata.get(CONFIG, "{}")
        if path.is_dir():
            text = (path / CONFIG_FILE).read_text(encoding="utf-8")
        config = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(
            f"{path}: expected exported weights, got a damaged file: {error}"
        ) from None
    if not isinstance(config, dict) or config.get("format") != FORMAT:
        raise ValueError(
            f"{path}: expected weights with the configuration that export writes, of format "
            f"{FORMAT}, got others"
        )
    found = config.pop("calibration")
    if found is not None:
        config["calibration"] = {
            name: torch.tensor(value, dtype=torch.float64) for name, value in found.items()
        }
    return config | {"state_dict": state}
