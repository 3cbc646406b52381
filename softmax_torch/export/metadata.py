"""The metadata of exported models, as JSON: what they were made of, and with which versions.

format                 1; other numbers stand for other layouts
softmax_torch, torch   versions of the two packages
class_names            one name for each class index
preprocessing          state of the preprocessing (``softmax_torch.preprocessing``)
calibration            scale and shift of the logits, or null
conformal              thresholds of prediction sets, or null (``softmax_torch.conformal``)
laplace                structure, prior precision and method, or null (``softmax_torch.laplace``);
                       the method is null where the probabilities are without it
inputs                 name, type and shape of each input
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from softmax_torch import __version__
from softmax_torch.export.input_modules import TensorSpec
from softmax_torch.post_hoc import PostHoc
from softmax_torch.predictor import Predictor
from softmax_torch.storage.exported_weights import EXPORT_FORMAT

__all__ = ["metadata_of", "to_json"]

FITTED = ("calibration", "conformal", "laplace")
"""Of what was fitted after the training, the parts that exported models have."""


def metadata_of(predictor: Predictor, inputs: Sequence[TensorSpec]) -> dict[str, Any]:
    """Return the metadata of a classifier whose exported form takes these inputs."""
    post_hoc = PostHoc(predictor.calibration, predictor.conformal)
    fitted = dict.fromkeys(FITTED) | without_tensors(post_hoc.state_dict())
    if predictor.laplace is not None:
        fitted["laplace"] = {
            "structure": predictor.laplace.structure,
            "prior_precision": predictor.laplace.prior_precision,
            "method": predictor.laplace_method,
        }
    return {
        "format": EXPORT_FORMAT,
        "softmax_torch": __version__,
        "torch": torch.__version__,
        "class_names": list(predictor.class_names),
        "preprocessing": predictor.preprocessing.state_dict(),
        **fitted,
        "inputs": [
            {"name": name, "type": dtype, "shape": list(shape)} for name, dtype, shape in inputs
        ],
    }


def without_tensors(value: Any) -> Any:
    """Return nested dicts with numbers and lists in place of tensors."""
    if isinstance(value, dict):
        return {name: without_tensors(entry) for name, entry in value.items()}
    return value.tolist() if isinstance(value, Tensor) else value


def to_json(content: dict[str, Any], indent: int | None = None) -> str:
    """Return content as JSON, without escapes for non-ASCII names."""
    return json.dumps(content, ensure_ascii=False, allow_nan=False, indent=indent)
