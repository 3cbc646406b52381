"""The optimizer steps within one ``training_step``: their batches and results."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

import torch
from lightning.pytorch.core.optimizer import LightningOptimizer
from torch import Tensor
from torch.nn import Parameter
from torch.optim import Optimizer

from softmax_torch.data.batches import Batch, Steps
from softmax_torch.training.epoch_metrics import SampleFigures

__all__ = [
    "DIVERGED",
    "GradientFunction",
    "Rows",
    "StepFunction",
    "StepHistory",
    "batches_of",
    "one_by_one",
]

DIVERGED = "the optimization diverged; try a smaller learning rate"

Rows = Tensor | SampleFigures | None
"""What the metrics of training need of a batch, without a graph: its logits (b, C), or the figures
of its samples where no logits are formed; None if its samples have no class."""

GradientFunction = Callable[[LightningOptimizer, Batch], tuple[Tensor, Rows]]
"""Computes the gradient on a batch into ``grad`` of the parameters. Returns the objective, without
a graph, and the rows of the batch."""

StepFunction = Callable[[Callable[[], Tensor]], object]
"""Makes a step of the optimizer, given the closure that computes gradient and objective."""


def batches_of(batch: Steps | tuple[Tensor, Tensor]) -> Steps | list[Batch]:
    """Return the batches in the argument of a ``training_step``: several, or one pair (x, y)."""
    return batch if isinstance(batch, Steps) else [Batch(*batch, batch[1])]


@contextmanager
def one_by_one(optimizer: Optimizer) -> Iterator[None]:
    """Tell an optimizer, within the context, what it else finds out anew in every step.

    For parameters on a CPU torch chooses the loop over single tensors where neither ``foreach`` nor
    ``fused`` is set. Its choice takes 11 of the 65 us of a step of SGD. Checkpoints keep what the
    user chose.
    """
    groups = [
        group
        for group in optimizer.param_groups
        if "foreach" in group
        and group["foreach"] is None
        and group.get("fused") is None
        and all(p.is_cpu for p in group["params"])
    ]
    for group in groups:
        group["foreach"] = False
    try:
        yield
    finally:
        for group in groups:
            group["foreach"] = None


class StepHistory:
    """Results of the steps within one ``training_step``, kept on the device until its end.

    Args:
        step: optimizer steps of the fit so far.

    Attributes:
        step: optimizer steps of the fit so far; the caller that makes a step adds 1.
        steps: for each batch, the number of its step, from 1.
        objectives: for each batch, the objective, a scalar.
        logits, targets: for each batch with logits, logits (b, C) and class indices (b,).
        figures: for each batch without logits, the figures of its samples.
        rates: for each batch, the learning rate of the first parameter group.
    """

    def __init__(self, step: int) -> None:
        self.step = step
        self.steps: list[int] = []
        self.objectives: list[Tensor] = []
        self.logits: list[Tensor] = []
        self.targets: list[Tensor] = []
        self.figures: list[SampleFigures] = []
        self.rates: list[float] = []

    def add(self, objective: Tensor, rows: Rows, targets: Tensor, optimizer: Optimizer) -> None:
        """Add the results of a batch, without waiting for the device."""
        self.steps.append(self.step + 1)
        self.objectives.append(objective)
        if isinstance(rows, Tensor):
            self.logits.append(rows)
            self.targets.append(targets)
        elif rows is not None:
            self.figures.append(rows)
        self.rates.append(optimizer.param_groups[0]["lr"])

    def finite_objectives(self, parameters: Iterable[Parameter]) -> Tensor:
        """Return the objectives (K,) of the batches.

        This is the only time that a ``training_step`` waits for the device.

        Raises:
            FloatingPointError: an objective or a parameter is NaN or infinite. The message names
                the step.
        """
        objectives = torch.stack(self.objectives)
        finite = [objectives.isfinite().all(), *(p.isfinite().all() for p in parameters)]
        if torch.stack(finite).all():
            return objectives
        bad = (~objectives.isfinite()).nonzero().flatten().tolist()
        at, got = (bad[0], objectives[bad[0]].item()) if bad else (-1, "infinite parameters")
        raise FloatingPointError(
            f"train/loss: expected a finite number, got {got} in step {self.steps[at]}: {DIVERGED}"
        )
