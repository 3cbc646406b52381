"""The optimizer steps within one ``training_step``: their batches and results."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from lightning.pytorch.core.optimizer import LightningOptimizer
from torch import Tensor
from torch.nn import Parameter

from softmax_torch.data.batches import Batch, Steps

__all__ = ["DIVERGED", "GradientFunction", "StepHistory", "batches_of"]

DIVERGED = "the optimization diverged; try a smaller learning rate"

GradientFunction = Callable[[LightningOptimizer, Batch], tuple[Tensor, Tensor]]
"""Computes the gradient on a batch into ``grad`` of the parameters. Returns the objective, and the
logits (b, C) of the batch or the features (b, D) that a ``StepHistory`` counts."""


def batches_of(batch: Steps | tuple[Tensor, Tensor]) -> Steps | list[Batch]:
    """Return the batches in the argument of a ``training_step``: several, or one pair (x, y)."""
    return batch if isinstance(batch, Steps) else [Batch(*batch, batch[1])]


class StepHistory:
    """Results of the steps within one ``training_step``, kept on the device until its end.

    Args:
        step: optimizer steps of the fit so far.
        count: called with the logits (or features) and targets of a batch; None to keep logits and
            targets instead.

    Attributes:
        step: optimizer steps of the fit so far; the caller that makes a step adds 1.
        steps: for each batch, the number of its step, from 1.
        objectives: for each batch, the objective, a scalar.
        logits, targets: for each batch, logits (b, C) and class indices (b,), if they are kept.
        rates: for each batch, the learning rate of the first parameter group.
    """

    def __init__(self, step: int, count: Callable[[Tensor, Tensor], None] | None = None) -> None:
        self.step, self.count = step, count
        self.steps: list[int] = []
        self.objectives: list[Tensor] = []
        self.logits: list[Tensor] = []
        self.targets: list[Tensor] = []
        self.rates: list[float] = []

    def add(
        self, objective: Tensor, logits: Tensor, targets: Tensor, optimizer: LightningOptimizer
    ) -> None:
        """Add the results of a batch, without waiting for the device."""
        self.steps.append(self.step + 1)
        self.objectives.append(objective.detach())
        if self.count is None:
            self.logits.append(logits.detach())
            self.targets.append(targets)
        else:
            self.count(logits.detach(), targets)
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
