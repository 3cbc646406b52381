"""What was trained is read here, always without running code that may be in it.

A checkpoint is a dict that ``torch.save`` wrote. Its pickle is read by torch's own unpickler, which
makes tensors, numbers, strings and containers of them, and stops at anything else. Exported weights
are a file of safetensors, which is tensors and JSON.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

__all__ = ["CONFIG", "CONFIG_FILE", "FORMAT", "WEIGHTS_FILE", "check", "load", "load_weights"]

WEIGHTS_FILE, CONFIG_FILE = "model.safetensors", "config.json"
"""What is in a folder with exported weights."""

CONFIG = "config"
"""Key of the same configuration in the metadata of the weights."""

FORMAT = 1
"""Of that configuration; another one means something else."""


def check(path: Path) -> None:
    """Whether it can be read as a checkpoint, without running code from it.

    Raises:
        FileNotFoundError, ValueError: it is not there, or is something else.
    """
    load(path)


def load(path: Path) -> dict[str, Any]:
    """What is in a checkpoint; see ``check``."""
    if not path.is_file():
        raise FileNotFoundError(f"--ckpt_path: expected a file, got {path}, which does not exist")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises whatever its unpickler stumbles over
        raise ValueError(
            f"{path}: expected a checkpoint of a run, got a file that is damaged or another thing: "
            f"{type(error).__name__} on reading it"
        ) from None
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
    try:
        from safetensors import SafetensorError, safe_open
    except ImportError as error:
        raise ImportError(
            f"{path}: {error}, which it takes to read it: pip install 'softmax-torch[export]'"
        ) from None

    file = path / WEIGHTS_FILE if path.is_dir() else path
    if not file.is_file():
        raise FileNotFoundError(f"{file}: expected a file of weights, got no such file")
    try:
        with safe_open(file, framework="pt") as opened:
            state = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
            text = (opened.metadata() or {}).get(CONFIG, "{}")
        if path.is_dir():
            text = (path / CONFIG_FILE).read_text(encoding="utf-8")
        config = json.loads(text)
    except (SafetensorError, json.JSONDecodeError) as error:
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
