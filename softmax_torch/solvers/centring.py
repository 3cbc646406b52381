"""Columns far from 0 are moved near to it, where a bias makes up for that.

For any offset o the logits are W x + b = W (x - o) + (b + W o). As the bias is not penalised, the
optimum for x - o has the same weight and the same F, with b + W o in place of b. Solvers compute
with x - o because a column such as a year or a time stamp, whose mean is many times its spread, is
all but a multiple of the intercept, and in float32 its values are all but equal: on iris + 1e5
L-BFGS ended 20% above the optimum, and an L1 fit of iris + 1e3 took 1000 iterations.

Where the mean is a few times the spread at most this gains nothing, and X stays as it is.
"""

from __future__ import annotations

import torch
from torch import Tensor

from softmax_torch.solvers.processes import Processes
from softmax_torch.solvers.samples import Samples

__all__ = ["offset_of"]

FAR = 10.0
"""Mean of a column, in units of its standard deviation, from which it is moved."""

ROWS, NUMBERS = 1000, 1 << 22
"""Rows that mean and spread are taken from, and numbers of these at most."""


def offset_of(samples: Samples, processes: Processes) -> Tensor | None:
    """Return the offset (D,) in float64, 0 for columns that stay; None where all stay.

    It is near the mean, from rows spread over the samples: how near makes no difference to the
    optimum. All processes get the same.
    """
    rows = max(1, min(ROWS, NUMBERS // samples.d))
    index = torch.arange(0, samples.n, -(-samples.n // rows), device=samples.device)
    x = samples.rows(index, torch.float64)
    n = processes.summed(torch.tensor(float(len(x)), device=x.device, dtype=torch.float64))
    mean = processes.summed(x.sum(0)) / n
    spread = (processes.summed((x - mean).square().sum(0)) / n).sqrt()
    far = mean.abs() > FAR * spread
    return torch.where(far, mean, 0.0) if far.any() else None
