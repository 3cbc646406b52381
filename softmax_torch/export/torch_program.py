"""A .pt2 file: the program of torch.export, for batches of any size, run by torch alone.

>>> program = torch.export.load("model.pt2").module()  # doctest: +SKIP
>>> label, probabilities = program(images)  # doctest: +SKIP

``metadata.json`` is an extra file in it.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from softmax_torch.export.metadata import described, text
from softmax_torch.export.program import outputs, traced
from softmax_torch.export.raw import Front, Value
from softmax_torch.predictor import Predictor

__all__ = ["METADATA", "interface", "opened", "usage", "write"]

METADATA = "metadata.json"


def write(path: Path, predictor: Predictor, front: Front) -> None:
    """Write a new file."""
    extra = {METADATA: text(described(predictor, front.inputs))}
    content = BytesIO()  # as an error of the disk, in torch, is a trace of C++ without its name
    torch.export.save(traced(predictor, front), content, extra_files=extra)
    path.write_bytes(content.getbuffer())


def opened(path: Path, front: Front) -> Callable[[Any], tuple[Tensor, Tensor]]:
    """What the file predicts of samples: labels and probabilities."""
    with warnings.catch_warnings():
        # torch 2.11 looks at the bytes that it has read as at a tensor, and copies them after that.
        warnings.filterwarnings("ignore", message="The given buffer is not writable")
        program = torch.export.load(path).module()

    @torch.inference_mode()
    def run(samples: Any) -> tuple[Tensor, Tensor]:
        label, p = program(*front.tensors(samples))
        return label, p

    return run


def interface(front: Front, C: int) -> tuple[tuple[Value, ...], tuple[Value, ...]]:
    """Inputs, by position, and outputs."""
    return front.inputs, outputs(C)


def usage(path: Path, front: Front) -> str:
    """How to use it, in a line."""
    names = ", ".join(tensor.name for tensor in front.inputs)
    return f'label, probabilities = torch.export.load("{path}").module()({names})'
