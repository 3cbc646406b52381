"""A .safetensors file: the weights of a net and its configuration, which run no code when read.

    tensors    the state_dict of the net, under its names in a checkpoint
    config     in the file's metadata, as JSON: the metadata of every exported model, and
               ``hyper_parameters``, from which the net is made again

A folder, as Hugging Face lays it out, has it as model.safetensors, and config.json beside it.
``softmax_torch.load`` reads either (``softmax_torch.storage.exported_weights``).
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor

from softmax_torch.export.metadata import described, text
from softmax_torch.export.raw import Front, Value
from softmax_torch.predictor import Predictor, load
from softmax_torch.storage.exported_weights import CONFIG_FILE, CONFIG_KEY, WEIGHTS_FILE

__all__ = ["interface", "opened", "usage", "write"]


def write(path: Path, predictor: Predictor, front: Front) -> None:
    """Write a new file, or a folder where the name does not end in .safetensors.

    Raises:
        ValueError: the net was made in Python, and could not be made again.
    """
    if predictor.hyper_parameters is None:
        raise ValueError(
            "source: expected a classifier that was loaded from a checkpoint, got one that was "
            "made in Python: weights alone do not say what to do with them"
        )
    config = described(predictor, ()) | {"hyper_parameters": predictor.hyper_parameters}
    # Copies: the format has no tensors that share memory, and none with channels last.
    tensors = {
        name: t.detach().clone(memory_format=torch.contiguous_format)
        for name, t in predictor.network.state_dict().items()
    }
    file = path
    if path.suffix != ".safetensors":
        path.mkdir()
        file = path / WEIGHTS_FILE
        (path / CONFIG_FILE).write_text(text(config, indent=2) + "\n", encoding="utf-8")
    # Not ``save_file``, which makes files that none but their owner can read.
    file.write_bytes(save(tensors, {"format": "pt", CONFIG_KEY: text(config)}))


def opened(path: Path, front: Front) -> Callable[[Any], tuple[Tensor, Tensor]]:
    """What the file or folder predicts of samples: labels and probabilities."""
    predictor = load(path)

    def run(samples: Any) -> tuple[Tensor, Tensor]:
        p = predictor.predict_proba(samples)
        return p.argmax(1), p

    return run


def interface(front: Front, C: int) -> tuple[tuple[Value, ...], tuple[Value, ...]]:
    """Inputs and outputs: none, as it is no program."""
    return (), ()


def usage(path: Path, front: Front) -> str:
    """How to use it, in a line."""
    return f'softmax_torch.load("{path}").predict(inputs)'
