"""Checkpoints are read here, always without running code that may be in them.

A checkpoint is a dict that ``torch.save`` wrote. Its pickle is read by torch's own unpickler, which
makes tensors, numbers, strings and containers of them, and stops at anything else.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

__all__ = ["check", "load"]


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
