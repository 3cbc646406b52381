"""A .pt2 file: the program of torch.export, for batches of any size, run by torch alone.

>>> program = torch.export.load("model.pt2").module()  # doctest: +SKIP
>>> label, probabilities = program(images)  # doctest: +SKIP

Conformal sets are a third output. The metadata are an extra file in it, ``metadata.json``.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from softmax_torch.export.input_modules import InputModule, Interface, Runner, TensorSpec
from softmax_torch.export.metadata import metadata_of, to_json
from softmax_torch.export.program import output_specs, trace
from softmax_torch.predictor import Predictor

__all__ = ["METADATA_FILE", "interface", "open_runner", "usage", "write"]

METADATA_FILE = "metadata.json"


def write(path: Path, predictor: Predictor, input_module: InputModule) -> None:
    extra = {METADATA_FILE: to_json(metadata_of(predictor, input_module.inputs))}
    content = BytesIO()  # torch reports a disk error as a C++ trace without the file's name
    torch.export.save(trace(predictor, input_module), content, extra_files=extra)
    path.write_bytes(content.getbuffer())


def open_runner(path: Path, input_module: InputModule) -> Runner:
    with warnings.catch_warnings():
        # torch 2.11 views the bytes that it read as a tensor, and copies them after that.
        warnings.filterwarnings("ignore", message="The given buffer is not writable")
        program = torch.export.load(path).module()

    @torch.inference_mode()
    def run(samples: Any) -> tuple[Tensor, ...]:
        return tuple(program(*input_module.tensors(samples)))

    return run


def interface(input_module: InputModule, predictor: Predictor) -> Interface:
    """Return inputs, by position, and outputs."""
    return input_module.inputs, output_specs(predictor)


def usage(path: Path, input_module: InputModule, outputs: Sequence[TensorSpec]) -> str:
    names, given = (", ".join(spec.name for spec in s) for s in (input_module.inputs, outputs))
    file = json.dumps(str(path), ensure_ascii=False)
    return f"{given} = torch.export.load({file}).module()({names})"
