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

__all__ = [
    "DIVERGED",
    "GradientFunction",
    "StepFunction",
    "StepHistory",
    "batches_of",
    "one_by_one",
]

DIVERGED = "the optimization diverged; try a smaller learning rate"

GradientFunction = Callable[[LightningOptimizer, Batch], tuple[Tensor, Tensor]]
"""Computes the gradient on a batch into ``grad`` of the parameters. Returns the objective, and the
logits (b, C) of the batch or the features (b, D) that a ``StepHistory`` counts, without a graph."""

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

    def add(self, objective: Tensor, logits: Tensor, targets: Tensor, optimizer: Optimizer) -> None:
        """Add the results of a batch, without waiting for the device."""
        self.steps.append(self.step + 1)
        self.objectives.append(objective)
        if self.count is None:
            self.logits.append(logits)
            self.targets.append(targets)
        else:
            self.count(logits, targets)
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
