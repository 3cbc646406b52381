"""A .safetensors file: the weights of a net and its configuration; reading it runs no code.

    tensors    the state_dict of the net, under its names in a checkpoint; and the tensors of a
               Laplace approximation, under "laplace."
    config     in the file's metadata, as JSON: the metadata of every exported model, and
               ``hyper_parameters``, from which the net is rebuilt

A folder, in Hugging Face's layout, has the same as model.safetensors, and config.json beside it.
``softmax_torch.load`` reads either.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor

from softmax_torch.backbones import is_import_path
from softmax_torch.export.input_modules import InputModule, Interface, Runner, TensorSpec
from softmax_torch.export.metadata import metadata_of, to_json
from softmax_torch.predictor import Predictor, load
from softmax_torch.storage.exported_weights import (
    CONFIG_KEY,
    LAPLACE_PREFIX,
    WEIGHTS_CONFIG_FILE,
    WEIGHTS_FILE,
    read_exported_weights,
)

__all__ = ["interface", "open_runner", "usage", "write"]


def write(path: Path, predictor: Predictor, input_module: InputModule) -> None:
    """Write a new file, or a folder if the name does not end in .safetensors.

    Raises:
        ValueError: the net was made in Python, and no configuration can rebuild it.
    """
    if predictor.hyper_parameters is None:
        raise ValueError(
            "source: expected a classifier that was loaded from a checkpoint, got one that was "
            "made in Python: its weights alone cannot rebuild it"
        )
    config = metadata_of(predictor, ()) | {"hyper_parameters": predictor.hyper_parameters}
    # Copies: the format has neither tensors that share memory nor the channels-last layout.
    tensors = {
        name: t.detach().clone(memory_format=torch.contiguous_format)
        for name, t in predictor.network.state_dict().items()
    }
    if predictor.laplace is not None:
        posterior = predictor.laplace.state_dict()
        tensors |= {
            f"{LAPLACE_PREFIX}{name}": posterior[name].contiguous()
            for name in predictor.laplace.tensors
        }
    file = path
    if path.suffix != ".safetensors":
        path.mkdir()
        file = path / WEIGHTS_FILE
        (path / WEIGHTS_CONFIG_FILE).write_text(to_json(config, indent=2) + "\n", encoding="utf-8")
    # Not ``save_file``, whose files only their owner can read.
    file.write_bytes(save(tensors, {"format": "pt", CONFIG_KEY: to_json(config)}))


def open_runner(path: Path, input_module: InputModule) -> Runner:
    predictor = load(path, backbone=imported_backbone(path))  # the exporter's caller named it

    def run(samples: Any) -> tuple[Tensor, ...]:
        x = predictor.preprocessing.tensor(samples)
        plain = predictor.conformal is None
        logits, *sets = (predictor.logits(x),) if plain else predictor.logits_and_sets(x)
        p = logits.softmax(1)
        return p.argmax(1), p, *sets

    return run


def interface(input_module: InputModule, predictor: Predictor) -> Interface:
    """Return no inputs and outputs: weights are no program."""
    return (), ()


def usage(path: Path, input_module: InputModule, outputs: Sequence[TensorSpec]) -> str:
    backbone = imported_backbone(path)
    named = "" if backbone is None else f', backbone="{backbone}"'
    return f"softmax_torch.load({json.dumps(str(path), ensure_ascii=False)}{named}).predict(inputs)"


def imported_backbone(path: Path) -> str | None:
    """Return the import path of the net in exported weights; None if it has another name."""
    name: str | None = read_exported_weights(path)["hyper_parameters"].get("backbone")
    return name if name is not None and is_import_path(name) else None
