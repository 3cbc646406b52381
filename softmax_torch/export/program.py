"""A whole classifier as one torch program: raw inputs -> class index, probabilities, sets.

x = front(raw)    z = net(x)    p = softmax(calibration(z))    label = argmax p    sets(z)

With a Laplace approximation, p is that of its probit formula.
"""

from __future__ import annotations

import copy
from typing import cast

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from softmax_torch.calibration import Calibration
from softmax_torch.conformal import ConformalSets
from softmax_torch.export.input_modules import InputModule, TensorSpec
from softmax_torch.modules import Classifier
from softmax_torch.predictor import Predictor

__all__ = ["Program", "output_specs", "trace"]


class SetsModule(nn.Module):
    """Conformal sets as a module, from logits (n, C) that are not calibrated to bool (n, C)."""

    threshold: Tensor

    def __init__(self, sets: ConformalSets) -> None:
        super().__init__()
        self.sets = sets._replace(threshold=torch.empty(0), calibration=None)
        self.register_buffer("threshold", sets.threshold)
        self.calibrated = sets.calibration is not None
        for name, value in (sets.calibration._asdict() if sets.calibration else {}).items():
            self.register_buffer(name, value.clone())  # they may share memory

    def forward(self, z: Tensor) -> Tensor:
        """Return which classes are in the set of each sample."""
        sets = self.sets._replace(threshold=self.threshold)
        if self.calibrated:
            scale, shift = (self.get_buffer(name) for name in Calibration._fields)
            sets = sets._replace(calibration=Calibration(scale, shift))
        return sets(z)


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
        self.sets = None if predictor.conformal is None else SetsModule(predictor.conformal)
        self.laplace = None
        if predictor.laplace_method == "sampling":
            raise ValueError(
                "laplace: expected probit, as a program draws no samples, got sampling; "
                "weights (.safetensors, or a folder) take it"
            )
        if predictor.laplace_method is not None and predictor.laplace is not None:
            self.laplace = predictor.laplace.to("cpu", torch.float32)

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """Return what ``output_specs`` describes."""
        x = self.front(*tensors).to(self.dtype)
        if self.laplace is None:
            z = self.network(x).float()
        else:
            features, z = (t.float() for t in cast(Classifier, self.network).features_and_logits(x))
        sets = () if self.sets is None else (self.sets(z),)
        if self.calibrated:
            z = z * self.scale + self.shift
        p = z.softmax(1) if self.laplace is None else self.laplace.probit(z, features).exp()
        return p.argmax(1), p, *sets


def output_specs(predictor: Predictor) -> tuple[TensorSpec, ...]:
    """Return the outputs of a program, in their order."""
    C = len(predictor.class_names)
    specs = (TensorSpec("label", "int64", ("n",)), TensorSpec("probabilities", "float32", ("n", C)))
    return specs if predictor.conformal is None else (*specs, TensorSpec("sets", "bool", ("n", C)))


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
