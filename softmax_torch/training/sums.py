"""Sums over the steps of an epoch that come out the same in any order.

Numbers are rounded to multiples of 2^-20 and added up as integers, which are associative where
floating-point numbers are not: an epoch gives the same bits with any number of steps in a call, in
any number of processes with the same batches, and when it was interrupted. Rounding changes a mean
over n samples by some 3e-7 / sqrt(n). The sum may reach 8e12.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from softmax_torch.functional import cross_entropy
from softmax_torch.maths import upcast

__all__ = ["EpochSums"]

UNIT = 1 << 20


class EpochSums:
    """Objective, NLL and accuracy of an epoch, kept on the device of the steps."""

    def __init__(self) -> None:
        self.sums: Tensor | None = None  # objective, NLL, right ones, samples, steps

    def add_steps(self, objectives: Tensor) -> None:
        """Objectives (K,) of some steps.

        What was added is on the device still: nothing here waits for it.
        """
        value, zero = _whole(objectives), objectives.new_zeros((), dtype=torch.long)
        self._add([value, zero, zero, zero, zero + len(objectives)])

    def add_rows(self, logits: Tensor, targets: Tensor) -> None:
        """Logits (n, C) and class indices (n,) of samples of those steps."""
        nll = cross_entropy(logits.float(), targets, reduction="none")
        right = (logits.argmax(1) == targets).sum()
        zero = torch.zeros_like(right)
        self._add([zero, _whole(nll), right, zero + len(targets), zero])

    def _add(self, terms: list[Tensor]) -> None:
        sums = torch.stack(terms)
        self.sums = sums if self.sums is None else self.sums + sums

    def result(self, reduce: Callable[[Tensor], Tensor]) -> dict[str, Tensor]:
        """Means of the epoch; ``reduce`` adds a tensor up over the processes. Starts anew."""
        assert self.sums is not None, "no step was made"
        objective, nll, right, n, K = reduce(self.sums).tolist()
        self.sums = None
        figures = {"loss": torch.tensor(objective / UNIT / K)}
        if n:  # of mixed images there are none
            figures |= {
                "accuracy": torch.tensor(right / n),
                "nll": torch.tensor(nll / UNIT / n),
            }
        return figures


def _whole(x: Tensor) -> Tensor:
    """The sum of x, in units of 1 / UNIT; the factor is a power of 2 and loses nothing.

    A float16 ends at 65504 and would be infinite.
    """
    return (upcast(x) * UNIT).round().long().sum()
