"""The metadata of exported models, as JSON: preprocessing, class names, calibration and versions.

format                 1; other numbers stand for other layouts
softmax_torch, torch   versions of the two packages
class_names            one name for each class index
preprocessing          state of the preprocessing (``softmax_torch.preprocessing``)
calibration            scale and shift of the logits, or null
inputs                 name, type and shape of each input
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import torch

from softmax_torch import __version__
from softmax_torch.export.input_modules import TensorSpec
from softmax_torch.predictor import Predictor
from softmax_torch.storage.exported_weights import EXPORT_FORMAT

__all__ = ["metadata_of", "to_json"]


def metadata_of(predictor: Predictor, inputs: Sequence[TensorSpec]) -> dict[str, Any]:
    """Return the metadata of a classifier whose exported form takes these inputs."""
    calibration = predictor.calibration
    return {
        "format": EXPORT_FORMAT,
        "softmax_torch": __version__,
        "torch": torch.__version__,
        "class_names": list(predictor.class_names),
        "preprocessing": predictor.preprocessing.state_dict(),
        "calibration": None
        if calibration is None
        else {name: value.tolist() for name, value in calibration.state_dict().items()},
        "inputs": [
            {"name": name, "type": dtype, "shape": list(shape)} for name, dtype, shape in inputs
        ],
    }


def to_json(content: dict[str, Any], indent: int | None = None) -> str:
    """Return content as JSON, without escapes for non-ASCII names."""
    return json.dumps(content, ensure_ascii=False, allow_nan=False, indent=indent)
