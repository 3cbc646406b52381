"""The objective of softmax regression over all samples: value, gradient, Hessian-vector product.

For samples x_i with classes y_i and weights w_i, S = sum_i w_i, coefficients theta = (W, b):

    F(theta) = 1/S sum_i w_i nll_i  +  l2/2 ||W||^2  +  l1 ||W||_1          logits z_i = W x_i + b
    dW       = 1/S sum_i w_i (p_i - e_{y_i}) x_i^T  +  l2 W
    H v      = 1/S sum_i w_i ((diag p_i - p_i p_i^T) v x_i) x_i^T  +  l2 v

scikit-learn's C and l1_ratio are l2 = (1 - l1_ratio) / (C S) and l1 = l1_ratio / (C S). The bias is
in neither penalty. The smooth part is everything but the l1 term.

theta is one tensor (K, P): the weight (K, D), and the bias as a last column where there is one, so
P = D + 1; in double precision, as are all sums over blocks. A pass over the samples is computed in
the type it is asked for. With several processes each holds some of the samples, and every sum over
samples is added up over all of them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

from softmax_torch.ops import backends
from softmax_torch.solvers.processes import Processes
from softmax_torch.solvers.samples import Block, Samples

__all__ = ["Evaluated", "Objective", "Penalty"]


class Penalty(NamedTuple):
    """l2/2 ||W||^2 + l1 ||W||_1."""

    l2: float
    l1: float = 0.0

    @classmethod
    def of_strength(cls, C: float, l1_ratio: float, total: float) -> Penalty:
        """scikit-learn's penalty for samples of this total weight; none for an infinite C."""
        if C == math.inf:
            return cls(0.0)
        return cls((1 - l1_ratio) / (C * total), l1_ratio / (C * total))

    def of(self, W: Tensor) -> float:
        """The penalty of the weight W."""
        smooth = self.l2 / 2 * float(W.square().sum())
        return smooth + self.l1 * float(W.abs().sum()) if self.l1 else smooth


class Evaluated(NamedTuple):
    """The smooth part of the objective and its gradient (K, P), float64."""

    value: float
    gradient: Tensor


class Objective:
    """The mean negative log-likelihood of samples, to which a penalty is added on each call.

    Args:
        samples: X (n, D), here those of this process.
        y: class indices (n,), int64, in [0, classes).
        classes: K.
        weight: sample weights (n,), >= 0, or None for ones.
        bias: whether there is one.
        processes: which sums over samples go over.

    Attributes:
        total: S, the sum of the weights.
        passes: how often all of X was read for both products, in any type.
    """

    def __init__(
        self,
        samples: Samples,
        y: Tensor,
        classes: int,
        weight: Tensor | None = None,
        bias: bool = True,
        processes: Processes | None = None,
    ) -> None:
        self.samples, self.y, self.classes, self.weight = samples, y, classes, weight
        self.bias, self.processes = bias, processes or Processes()
        self.passes = 0.0
        # In float64 from the start: float32 would put S, and F with it, off by up to 6e-8.
        own = float(samples.n) if weight is None else float(weight.double().sum())
        total = torch.tensor(own, dtype=torch.float64, device=samples.device)
        self.total = float(self.summed(total))

    @cached_property
    def mean(self) -> Tensor:
        """The weighted mean of the samples (D,), from half a pass."""
        w = self.y.new_ones(len(self.y), 1, dtype=torch.float64)
        w = w if self.weight is None else self.weight.double().unsqueeze(1)
        result = w.new_zeros(self.samples.d)
        for at, block in self.samples.blocks():
            result += block.transposed_dot(w[at].to(self.samples.dtype)).squeeze(0)
        self.passes += 0.5
        return self.summed(result) / self.total

    @property
    def shape(self) -> tuple[int, int]:
        """(K, P) of theta."""
        return self.classes, self.samples.d + self.bias

    def zeros(self) -> Tensor:
        """theta = 0."""
        return torch.zeros(self.shape, dtype=torch.float64, device=self.samples.device)

    def summed(self, x: Tensor) -> Tensor:
        """x added up over the processes, in place."""
        return self.processes.summed(x)

    def evaluate(self, theta: Tensor, penalty: Penalty, dtype: torch.dtype) -> Evaluated:
        """The smooth part and its gradient, from one pass in ``dtype``."""
        return self.evaluate_many([theta], [penalty], dtype)[0]

    def evaluate_many(
        self, thetas: Sequence[Tensor], penalties: Sequence[Penalty], dtype: torch.dtype
    ) -> list[Evaluated]:
        """The same for several theta: more columns of the products, and X is read once."""
        J, (K, P) = len(thetas), self.shape
        stacked = torch.cat(list(thetas)).to(dtype)
        sums = stacked.new_zeros(J * K * P + J, dtype=torch.float64)
        values, gradient = sums[:J], sums[J:].view(J * K, P)
        for at, block in self.samples.blocks():
            z = self._logits(block, stacked)
            y = self.y[at]
            w = 1.0 if self.weight is None else self.weight[at].to(dtype)
            for j in range(J):
                z_j = z[:, j * K : (j + 1) * K]
                # the residuals w (p - e_y) take the place of the logits
                values[j] += backends.kernels(z_j).weighted_total(
                    z_j, y, None, w, None, None, dz=z_j
                )
            self._add_transposed(gradient, block, z)
        self.passes += 1
        self.summed(sums).div_(self.total)
        results = []
        for j, (theta, penalty) in enumerate(zip(thetas, penalties, strict=True)):
            g = gradient[j * K : (j + 1) * K]
            W = self.weight_of(theta)
            self.weight_of(g).add_(W, alpha=penalty.l2)
            value = float(values[j]) + penalty.l2 / 2 * float(W.square().sum())
            results.append(Evaluated(value, g))
        return results

    def reweighted(self, weight: Tensor) -> Objective:
        """The same samples with other weights; one of 0 leaves a sample out."""
        return Objective(self.samples, self.y, self.classes, weight, self.bias, self.processes)

    def probabilities(self, theta: Tensor, dtype: torch.dtype) -> Tensor:
        """Class probabilities (n, K) of the samples, from half a pass."""
        return self.logits(theta, dtype).softmax(1)

    def logits(self, theta: Tensor, dtype: torch.dtype) -> Tensor:
        """Logits (n, K) of the samples, from half a pass."""
        theta = theta.to(dtype)
        z = theta.new_empty(self.samples.n, self.classes)
        for at, block in self.samples.blocks():
            z[at] = self._logits(block, theta)
        self.passes += 0.5
        return z

    def transposed(self, r: Tensor) -> Tensor:
        """sum_i r_i [x_i, 1]^T (K, P) of residuals r (n, K), from half a pass, in float64."""
        result = self.zeros()
        for at, block in self.samples.blocks():
            self._add_transposed(result, block, r[at])
        self.passes += 0.5
        return self.summed(result)

    def hessian_product(self, p: Tensor, v: Tensor, penalty: Penalty) -> Tensor:
        """H v (K, P) at the probabilities p (n, K), from one pass in the type of p."""
        result = self.zeros()
        v_fast = v.to(p.dtype)
        for at, block in self.samples.blocks():
            p_b = p[at]
            r = self._logits(block, v_fast).mul_(p_b)
            r -= p_b * r.sum(1, keepdim=True)
            if self.weight is not None:
                r *= self.weight[at].to(r.dtype).unsqueeze(1)
            self._add_transposed(result, block, r)
        self.passes += 1
        self.summed(result).div_(self.total)
        self.weight_of(result).add_(self.weight_of(v), alpha=penalty.l2)
        return result

    def weight_of(self, theta: Tensor) -> Tensor:
        """The weight (K, D) in theta, a view."""
        return theta[:, : self.samples.d]

    def _logits(self, block: Block, theta: Tensor) -> Tensor:
        z = block.dot(self.weight_of(theta))
        return z.add_(theta[:, -1]) if self.bias else z

    def _add_transposed(self, result: Tensor, block: Block, r: Tensor) -> None:
        """Add r^T [x, 1] to the result."""
        self.weight_of(result).add_(block.transposed_dot(r))
        if self.bias:
            result[:, -1] += r.sum(0, dtype=torch.float64)
