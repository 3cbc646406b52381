"""The objective of softmax regression over all samples: value, gradient, Hessian-vector product.

For samples x_i with classes y_i and weights w_i, S = sum_i w_i, coefficients theta = (W, b):

    F(theta) = 1/S sum_i w_i nll_i  +  l2/2 ||W||^2  +  l1 ||W||_1          logits z_i = W x_i + b
    dW       = 1/S sum_i w_i (p_i - e_{y_i}) x_i^T  +  l2 W
    H v      = 1/S sum_i w_i ((diag p_i - p_i p_i^T) v x_i) x_i^T  +  l2 v

scikit-learn's C and l1_ratio give l2 = (1 - l1_ratio) / (C S) and l1 = l1_ratio / (C S). The bias
is not penalized. The smooth part of F is everything but the l1 term.

theta is one float64 tensor (K, P): the weight (K, D), and the bias as the last column if there is
one, so that P = D + 1. A pass over the samples is computed in the dtype that the caller asks for;
sums over blocks are float64. With several processes each holds some of the samples, and every sum
over samples is added up over all processes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import AbstractContextManager
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

from softmax_torch.solvers.processes import Processes
from softmax_torch.solvers.samples import Samples
from softmax_torch.threads import is_small_fit, one_thread_if

__all__ = ["Evaluated", "Objective", "Penalty"]


STRONGEST = 1e30
"""The largest strength 1/(C S) of the penalty. The weight W is about the mean of a feature divided
by it, and below 1.2e-38 float32 rounds W to 0."""


class Penalty(NamedTuple):
    """The penalty l2/2 ||W||^2 + l1 ||W||_1."""

    l2: float
    l1: float = 0.0

    @classmethod
    def of_strength(cls, C: float, l1_ratio: float, total: float) -> Penalty:
        """Return scikit-learn's penalty for samples of total weight S; none for an infinite C.

        Raises:
            ValueError: 1/(C S) cannot be computed.
        """
        if C == math.inf:
            return cls(0.0)
        product = float(C) * float(total)
        if product == math.inf:
            raise ValueError(
                f"C: expected a finite C times the sum of the weights, got C={C:g} and the sum "
                f"{total:g}; pass C=math.inf for no penalty"
            )
        if not product >= 1 / STRONGEST:
            raise ValueError(
                f"C: expected C times the sum of the weights to be at least {1 / STRONGEST:g}, got "
                f"C={C:g} and the sum {total:g}"
            )
        return cls((1 - l1_ratio) / (C * total), l1_ratio / (C * total))

    def of(self, W: Tensor) -> float:
        """Return the penalty of the weight W (K, D)."""
        smooth = self.l2 / 2 * float(W.square().sum())
        return smooth + self.l1 * float(W.abs().sum()) if self.l1 else smooth


class Evaluated(NamedTuple):
    """The smooth part of F at some theta, and its gradient (K, P) in float64."""

    value: float
    gradient: Tensor


class Objective:
    """The mean negative log-likelihood of samples, to which each call adds a penalty.

    Args:
        samples: X (n, D), the samples of this process.
        y: class indices (n,), int64, in [0, classes).
        classes: K.
        weight: sample weights (n,), >= 0, or None for ones.
        bias: whether the logits have a bias.
        processes: the processes that share the samples; by default this one alone.
        offset: the vector (D,) that was subtracted from the samples, or None. theta belongs to the
            samples after the subtraction; ``coefficients`` and ``theta_of`` translate (see
            ``centring``).

    Attributes:
        total: S, the sum of the weights.
        unit: a power of two near the mean weight. Division by it keeps sums in float32 finite and
            loses no digits.
        weight: the sample weights divided by ``unit``, float64, or None for ones.
        divisor: S divided by ``unit``.
        passes: how often all of X was read for both of its products, in any dtype.
        feature_names, class_names: names for messages, or None.
    """

    feature_names: Sequence[str] | None = None
    class_names: Sequence[str] | None = None

    def __init__(
        self,
        samples: Samples,
        y: Tensor,
        classes: int,
        weight: Tensor | None = None,
        bias: bool = True,
        processes: Processes | None = None,
        offset: Tensor | None = None,
    ) -> None:
        self.samples, self.y, self.classes = samples, y, classes
        self.bias, self.processes, self.offset = bias, processes or Processes(), offset
        self.passes = 0.0
        total = float(samples.n if weight is None else weight.double().sum())
        sums = torch.tensor([total, samples.n], dtype=torch.float64, device=samples.device)
        self.total, n = self.summed(sums).tolist()
        self.unit = 1.0 if weight is None else 2.0 ** math.floor(math.log2(self.total / n))
        self.weight = None if weight is None else weight.double() / self.unit
        self.divisor = self.total / self.unit

    def threads(self) -> AbstractContextManager[None]:
        """Return a context in which torch uses one thread, if a pass is small (see ``threads``)."""
        on_cpu, (n, d) = self.samples.device.type == "cpu", (self.samples.n, self.samples.d)
        return one_thread_if(on_cpu and is_small_fit(n, d, self.classes))

    @property
    def weights(self) -> Tensor:
        """``weight``, or ones if it is None: (n,), float64."""
        if self.weight is None:
            return torch.ones_like(self.y, dtype=torch.float64)
        return self.weight

    @cached_property
    def mean(self) -> Tensor:
        """Weighted mean of the samples (D,), from half a pass."""
        w = self.weights.unsqueeze(1)
        result = w.new_zeros(self.samples.d)
        for at, block in self.samples.blocks(1):
            result += block.transposed(w[at].to(self.samples.dtype), bias=False).squeeze(0)
        self.passes += 0.5
        mean: Tensor = self.summed(result) / self.divisor
        return mean

    @cached_property
    def spread(self) -> Tensor:
        """Weighted root mean square of each column (D,), float64, from half a pass."""
        squares: Tensor = self.squares(self.weights.to(self.samples.dtype).unsqueeze(1))
        return self.weight_of(squares)[0].sqrt()

    @cached_property
    def influence(self) -> Tensor:
        """sum_j x_ij^2 / spread_j^2 of each sample (n,), from half a pass.

        Times the curvature of a sample this is about its leverage score. The two are equal if the
        curvature is the same on all samples that make up a column.
        """
        squares = self.zeros()[:1] + 1.0
        self.weight_of(squares)[0] = torch.where(self.spread > 0, self.spread, math.inf).square()
        return self.leverages(squares.reciprocal().to(self.samples.dtype))[:, 0]

    def class_ranges(self) -> tuple[Tensor, Tensor]:
        """Return the least and the largest entry of each column per class (K, D), float64.

        Samples of weight 0 do not count. This takes half a pass.
        """
        group = self.y
        if self.weight is not None:
            group = torch.where(self.weight > 0, group, -1)
        least = self.zeros()[:, : self.samples.d].fill_(math.inf)
        most = -least
        for at, block in self.samples.blocks():
            low, high = block.group_ranges(group[at], self.classes)
            least, most = torch.minimum(least, low), torch.maximum(most, high)
        self.passes += 0.5
        return -self.processes.largest(-least), self.processes.largest(most)

    @property
    def shape(self) -> tuple[int, int]:
        """(K, P), the shape of theta."""
        return self.classes, self.samples.d + self.bias

    def zeros(self) -> Tensor:
        """Return theta = 0."""
        return torch.zeros(self.shape, dtype=torch.float64, device=self.samples.device)

    def summed(self, x: Tensor) -> Tensor:
        """Add x up over the processes, in place, and return it."""
        return self.processes.summed(x)

    def evaluate(self, theta: Tensor, penalty: Penalty, dtype: torch.dtype) -> Evaluated:
        """Return the smooth part of F at theta and its gradient, from one pass in ``dtype``."""
        return self.evaluate_many([theta], [penalty], dtype)[0]

    def evaluate_many(
        self, thetas: Sequence[Tensor], penalties: Sequence[Penalty], dtype: torch.dtype
    ) -> list[Evaluated]:
        """Return ``evaluate`` of several theta with their penalties, from one pass."""
        J, (K, P) = len(thetas), self.shape
        stacked = torch.cat(list(thetas)).to(dtype)
        sums = stacked.new_zeros(J * K * P + J, dtype=torch.float64)
        values, gradient = sums[:J], sums[J:].view(J * K, P)
        for at, block in self.samples.blocks(K):
            w = None if self.weight is None else self.weight[at]
            block_values, block_gradient = block.loss_and_gradient(
                stacked, self.y[at], w, K, self.bias
            )
            values += block_values
            gradient += block_gradient
        self.passes += 1
        self.summed(sums).div_(self.divisor)
        results = []
        for j, (theta, penalty) in enumerate(zip(thetas, penalties, strict=True)):
            g = gradient[j * K : (j + 1) * K]
            W = self.weight_of(theta)
            self.weight_of(g).add_(W, alpha=penalty.l2)
            value = float(values[j]) + penalty.l2 / 2 * float(W.square().sum())
            results.append(Evaluated(value, g))
        return results

    def gradient_at_zero(self) -> Tensor:
        """Return the gradient (K, P) of the mean NLL at W = 0, from half a pass.

        The bias is at its optimum for W = 0, where the probabilities are the weighted class
        frequencies. Products are computed in the dtype of the samples.
        """
        w = self.weights / self.divisor
        p = torch.bincount(self.y, w, minlength=self.classes)
        p = self.summed(p) if self.bias else torch.full_like(p, 1 / self.classes)
        r = p.repeat(len(w), 1)
        r[torch.arange(len(w), device=w.device), self.y] -= 1
        return self.transposed(r.mul_(w.unsqueeze(1)).to(self.samples.dtype))

    def reweighted(self, weight: Tensor) -> Objective:
        """Return the objective of the same samples with other weights (n,), in units of ``unit``.

        A weight of 0 leaves a sample out.
        """
        weight = weight * self.unit
        other = Objective(
            self.samples, self.y, self.classes, weight, self.bias, self.processes, self.offset
        )
        other.feature_names, other.class_names = self.feature_names, self.class_names
        return other

    def coefficients(self, theta: Tensor) -> tuple[Tensor, Tensor]:
        """Return weight (K, D) and bias (K,) for X as it was given; zeros if there is no bias."""
        W = self.weight_of(theta).clone()
        b = theta[:, -1].clone() if self.bias else theta.new_zeros(len(theta))
        return W, b if self.offset is None else b - W @ self.offset

    def theta_of(self, W: Tensor, b: Tensor) -> Tensor:
        """Return theta (K, P) of a weight (K, D) and a bias (K,) for X as it was given."""
        theta = self.zeros()
        self.weight_of(theta).copy_(W)
        if self.bias:
            theta[:, -1] = b
            if self.offset is not None:
                theta[:, -1] += self.weight_of(theta) @ self.offset
        return theta

    def probabilities(self, theta: Tensor, dtype: torch.dtype) -> Tensor:
        """Return the class probabilities (n, K) of the samples, from half a pass."""
        return self.logits(theta, dtype).softmax(1)

    def logits(self, theta: Tensor, dtype: torch.dtype) -> Tensor:
        """Return the logits (n, K) of the samples, from half a pass."""
        theta = theta.to(dtype)
        z = theta.new_empty(self.samples.n, self.classes)
        for at, block in self.samples.blocks(len(theta)):
            z[at] = block.logits(theta, self.bias)
        self.passes += 0.5
        return z

    def transposed(self, r: Tensor) -> Tensor:
        """Return sum_i r_i [x_i, 1]^T (K, P), float64, for residuals r (n, K), from half a pass."""
        result = self.zeros()
        for at, block in self.samples.blocks(len(result)):
            result += block.transposed(r[at], self.bias)
        self.passes += 0.5
        return self.summed(result)

    def hessian_product(self, p: Tensor, v: Tensor, penalty: Penalty) -> Tensor:
        """Return H v (K, P) at the probabilities p (n, K), from one pass in the dtype of p."""
        result = self.zeros()
        v_fast = v.to(p.dtype)
        for at, block in self.samples.blocks(len(v)):
            w = None if self.weight is None else self.weight[at]
            result += block.hessian_product(v_fast, p[at], w, self.bias)
        self.passes += 1
        self.summed(result).div_(self.divisor)
        self.weight_of(result).add_(self.weight_of(v), alpha=penalty.l2)
        return result

    def squares(self, c: Tensor) -> Tensor:
        """Return 1/S sum_i c_im [x_i, 1]^2 (M, P) for c (n, M), from half a pass.

        For the curvatures c_ik = w_i p_ik (1 - p_ik) this is the diagonal of the Hessian without
        the penalty. Products are computed in the dtype of c, sums over blocks in float64.
        """
        result = c.new_zeros(c.shape[1], self.shape[1], dtype=torch.float64)
        for at, block in self.samples.blocks(len(result)):
            result += block.transposed(c[at], self.bias, squared=True)
        self.passes += 0.5
        return self.summed(result).div_(self.divisor)

    def leverages(self, inverse: Tensor) -> Tensor:
        """Return sum_j [x_i, 1]_j^2 inverse_mj (n, M) for ``inverse`` (M, P), from half a pass."""
        result = inverse.new_empty(self.samples.n, len(inverse))
        for at, block in self.samples.blocks(len(inverse)):
            result[at] = block.logits(inverse, self.bias, squared=True)
        self.passes += 0.5
        return result

    def weight_of(self, theta: Tensor) -> Tensor:
        """Return the weight (K, D) in theta, a view."""
        return theta[:, : self.samples.d]
