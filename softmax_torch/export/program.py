"""The whole of a classifier as one program: raw inputs -> class index and probabilities.

x = front(raw)    z = net(x)    p = softmax(calibration(z))    label = argmax p
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from softmax_torch.export.raw import Front, Value
from softmax_torch.predictor import Predictor

__all__ = ["OUTPUTS", "Program", "outputs", "traced"]

OUTPUTS = ("label", "probabilities")
"""Names of what a program gives."""


class Program(nn.Module):
    """A predictor from the tensors of its raw inputs on."""

    scale: Tensor
    shift: Tensor

    def __init__(self, front: Front, predictor: Predictor) -> None:
        super().__init__()
        # A copy, as torch.export wants no weights with channels last. None asks for a gradient,
        # or whoever runs the program could not take its results for numpy's.
        network = copy.deepcopy(predictor.network).requires_grad_(False)
        self.front, self.network = front, network.to(memory_format=torch.contiguous_format)
        self.dtype, self.calibrated = predictor.dtype, predictor.calibration is not None
        if predictor.calibration is not None:
            self.register_buffer("scale", predictor.calibration.scale.float())
            self.register_buffer("shift", predictor.calibration.shift.float())

    def forward(self, *tensors: Tensor) -> tuple[Tensor, Tensor]:
        """Class indices (n,) and probabilities (n, C)."""
        z = self.network(self.front(*tensors).to(self.dtype)).float()
        if self.calibrated:
            z = z * self.scale + self.shift
        p = z.softmax(1)
        return p.argmax(1), p


def outputs(C: int) -> tuple[Value, ...]:
    """What a program for C classes gives."""
    label, probabilities = OUTPUTS
    return Value(label, "int64", ("n",)), Value(probabilities, "float32", ("n", C))


def traced(predictor: Predictor, front: Front) -> ExportedProgram:
    """The program as a graph for batches of any size.

    It says nothing of the machine that it was made on, nor of the data: torch keeps the example
    that it traces, which is of zeros, and with each operation a trace of the stack.
    """
    # Of two samples, as the size of a batch of one would be taken for a constant.
    example = tuple(
        torch.zeros(2, *map(int, value.shape[1:]), dtype=getattr(torch, value.type))
        for value in front.inputs
    )
    n = Dim("n")
    program = torch.export.export(
        Program(front, predictor).eval(),
        example,
        dynamic_shapes=(tuple({0: n} for _ in example),),
        strict=False,
    )
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)
    return program
