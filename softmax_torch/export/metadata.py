"""What an exported model says of itself, as JSON: how raw inputs are treated, and what classes are.

format          1; another one means something else
softmax_torch   the version that wrote it, and ``torch`` that of torch
class_names     a name for each class index
preprocessing   the state of it (``softmax_torch.preprocessing``)
calibration     scale and shift of the logits, or null
inputs          name, type and shape of each
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import torch

from softmax_torch import __version__
from softmax_torch.export.raw import Value
from softmax_torch.predictor import Predictor
from softmax_torch.storage.exported_weights import EXPORT_FORMAT

__all__ = ["described", "text"]


def described(predictor: Predictor, takes: Sequence[Value]) -> dict[str, Any]:
    """All of the above."""
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
            {"name": name, "type": type, "shape": list(shape)} for name, type, shape in takes
        ],
    }


def text(content: dict[str, Any], indent: int | None = None) -> str:
    """As JSON, with names as they are written."""
    return json.dumps(content, ensure_ascii=False, allow_nan=False, indent=indent)
