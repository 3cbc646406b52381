"""A whole classifier as one torch program: raw inputs -> class index and probabilities.

x = front(raw)    z = net(x)    p = softmax(calibration(z))    label = argmax p
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from softmax_torch.export.input_modules import InputModule, TensorSpec
from softmax_torch.predictor import Predictor

__all__ = ["OUTPUTS", "Program", "output_specs", "trace"]

OUTPUTS = ("label", "probabilities")
"""Names of the outputs."""


class Program(nn.Module):
    """A predictor that takes its raw inputs as tensors."""

    scale: Tensor
    shift: Tensor

    def __init__(self, input_module: InputModule, predictor: Predictor) -> None:
        super().__init__()
        # The names ``front`` and ``network`` are part of exported files: of their buffers' names.
        self.front = input_module
        # A copy, since torch.export needs contiguous weights. None requires a gradient, or the
        # outputs of the exported program could not be converted to NumPy.
        network = copy.deepcopy(predictor.network).requires_grad_(False)
        self.network = network.to(memory_format=torch.contiguous_format)
        self.dtype, self.calibrated = predictor.dtype, predictor.calibration is not None
        if predictor.calibration is not None:
            self.register_buffer("scale", predictor.calibration.scale.float())
            self.register_buffer("shift", predictor.calibration.shift.float())

    def forward(self, *tensors: Tensor) -> tuple[Tensor, Tensor]:
        """Return class indices (n,) and probabilities (n, C)."""
        z = self.network(self.front(*tensors).to(self.dtype)).float()
        if self.calibrated:
            z = z * self.scale + self.shift
        p = z.softmax(1)
        return p.argmax(1), p


def output_specs(C: int) -> tuple[TensorSpec, ...]:
    """Return the outputs of a program for C classes."""
    label, probabilities = OUTPUTS
    return TensorSpec(label, "int64", ("n",)), TensorSpec(probabilities, "float32", ("n", C))


def trace(predictor: Predictor, input_module: InputModule) -> ExportedProgram:
    """Return the program as a graph for batches of any size.

    The graph tells nothing of the machine that made it, nor of the data. torch stores the example
    inputs of the trace, which are zeros, and a stack trace of each operation, which is removed.
    """
    # Two samples: tracing would take a batch size of 1 for a constant.
    example = tuple(
        torch.zeros(2, *map(int, spec.shape[1:]), dtype=getattr(torch, spec.dtype))
        for spec in input_module.inputs
    )
    n = Dim("n")
    program = torch.export.export(
        Program(input_module, predictor).eval(),
        example,
        dynamic_shapes=(tuple({0: n} for _ in example),),
        strict=False,
    )
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)
    return program
