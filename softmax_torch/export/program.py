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
        # Exported files name their buffers after ``front`` and ``network``.
        self.front = input_module
        # A copy, since torch.export needs contiguous weights; without gradients, so that the
        # outputs of the exported program can be converted to NumPy.
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

    The graph holds nothing about the machine or the data: the example inputs, which torch stores,
    are zeros, and the stack trace of each operation is removed.
    """
    # Two samples: tracing would treat a batch size of 1 as a constant.
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
