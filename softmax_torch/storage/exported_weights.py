"""Read exported weights: a .safetensors file with its configuration, or a folder with both.

    <name>.safetensors    the state_dict; in its metadata, under "config", the configuration as JSON
    <folder>              the same in Hugging Face's layout: model.safetensors and config.json

``softmax_torch.export.safetensors_file`` writes them.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from softmax_torch.storage.safe_read import read_safetensors

__all__ = [
    "CONFIG_KEY",
    "EXPORT_FORMAT",
    "LAPLACE_PREFIX",
    "WEIGHTS_CONFIG_FILE",
    "WEIGHTS_FILE",
    "holds_exported_weights",
    "read_exported_weights",
]

WEIGHTS_FILE, WEIGHTS_CONFIG_FILE = "model.safetensors", "config.json"
"""Files in a folder of exported weights."""

CONFIG_KEY = "config"
"""Key of the configuration in the metadata of a .safetensors file."""

LAPLACE_PREFIX = "laplace."
"""What the names of the tensors of a Laplace approximation begin with."""

EXPORT_FORMAT = 1
"""Version of that configuration; files of other versions are refused."""


def holds_exported_weights(folder: Path) -> bool:
    """Return whether a folder has the two files of exported weights."""
    return all((folder / name).is_file() for name in (WEIGHTS_FILE, WEIGHTS_CONFIG_FILE))


def read_exported_weights(path: Path) -> dict[str, Any]:
    """Return the content of exported weights, a .safetensors file or a folder with one.

    Returns:
        The keys that a checkpoint has: ``state_dict``, ``hyper_parameters``, ``preprocessing`` and
        what was fitted after the training (``softmax_torch.post_hoc``), with numbers and lists in
        place of small tensors, and None for what there is not.

    Raises:
        FileNotFoundError: there are no such weights.
        ValueError: the file is damaged, or was not written by an export of this format.
        ImportError: safetensors is not installed.
    """
    file = path / WEIGHTS_FILE if path.is_dir() else path
    state, metadata = read_safetensors(file, "exported weights")
    try:
        text = metadata.get(CONFIG_KEY, "{}")
        if path.is_dir():
            text = (path / WEIGHTS_CONFIG_FILE).read_text(encoding="utf-8")
        config = json.loads(text)
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(
            f"{path}: expected exported weights, got a damaged file: {error}"
        ) from None
    if not isinstance(config, dict) or config.get("format") != EXPORT_FORMAT:
        raise ValueError(
            f"{path}: expected weights with the configuration that export writes, of format "
            f"{EXPORT_FORMAT}, got others"
        )
    if config.get("laplace") is not None:
        names = [name for name in state if name.startswith(LAPLACE_PREFIX)]
        config["laplace"] |= {name.removeprefix(LAPLACE_PREFIX): state.pop(name) for name in names}
    return config | {"state_dict": state}
