"""Gradient accumulation: an optimizer step on several batches, as if they were one.

    F = sum_j m_j F_j / sum_j m_j        F_j the objective on batch j, m_j its samples

With class weights, m_j is the sum of the weights of the samples, by which the objective divides
too. The step is then the one of a single batch with all of these samples, also where the last batch
of an epoch is smaller, or its last group has fewer batches. A group ends with the epoch, which is
not known when it begins: the gradients of (m_j / m_1) F_j are added up, and their sum is divided by
sum_j m_j / m_1 right before the step. Dividing by m_1 keeps the numbers in the range of half
precision.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.optim import Optimizer

__all__ = ["GradientGroup"]


class GradientGroup:
    """The batches since the last optimizer step, whose gradients are added up."""

    def __init__(self) -> None:
        self._first: float | Tensor = 0.0  # m_1
        self._total: float | Tensor = 0.0  # sum_j m_j / m_1

    def add(self, whole: Tensor, weight: Tensor | None, begins: bool) -> float | Tensor:
        """Add a batch; return its factor m_j / m_1.

        Args:
            whole: class indices (B,) of the batch in all processes, or class probabilities (B, C).
            weight: class weights (C,), or None.
            begins: whether it is the first one of the group.
        """
        weighted = weight is not None and not whole.is_floating_point()
        samples = weight[whole].sum() if weighted and weight is not None else float(len(whole))
        if begins:
            self._first, self._total = samples, 0.0
        factor = samples / self._first
        self._total = self._total + factor
        return factor

    @torch.no_grad()
    def average(self, optimizer: Optimizer) -> None:
        """Divide the gradients by sum_j m_j / m_1."""
        for group in optimizer.param_groups:
            gradients = [p.grad for p in group["params"] if p.grad is not None]
            if gradients:
                torch._foreach_div_(gradients, self._total)
