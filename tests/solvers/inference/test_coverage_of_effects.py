"""Coverage: 95% intervals of probabilities and effects hold the truth in 93 to 97% of draws."""

from typing import Any

import pytest
import torch
from torch import Tensor

from softmax_torch.solvers.inference.marginal_effects import MarginalEffects, marginal_effects
from softmax_torch.solvers.inference.probability_intervals import (
    probabilities,
    probability_intervals,
)
from softmax_torch.solvers.inputs import as_samples
from softmax_torch.solvers.problem import objective_of

COUNT = 2000
NAMES = ("a", "b", "c")


def draws(count: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return X (n, 2), the true theta (3, 3), and theta and covariance of each draw of classes."""
    generator = torch.Generator().manual_seed(0)
    n, K, P = 300, 3, 3
    X = torch.randn(n, 2, generator=generator, dtype=torch.float64)
    x = torch.cat([X, torch.ones(n, 1, dtype=torch.float64)], 1)
    truth = torch.tensor([[0.0, 0.0, 0.0], [1.0, -0.5, 0.3], [-0.4, 0.8, -0.6]]).double()
    y = torch.multinomial((x @ truth.T).softmax(1), count, True, generator=generator).T
    target = torch.nn.functional.one_hot(y, K).double()  # (count, n, K)
    theta = torch.zeros(count, K, P, dtype=torch.float64)
    for _ in range(8):
        p = (x @ theta.mT).softmax(2)
        gradient = torch.einsum("cnk,np->ckp", target - p, x)[:, 1:]
        A = p.unsqueeze(3) * (torch.eye(K) - p.unsqueeze(2))
        H = torch.einsum("cnkl,npq->ckplq", A[:, :, 1:, 1:], x[:, :, None] * x[:, None])
        inverse = torch.linalg.inv(H.reshape(count, (K - 1) * P, -1))
        step = (inverse @ gradient.flatten(1).unsqueeze(2)).view(count, K - 1, P)
        theta[:, 1:] += step
    assert step.abs().max() < 1e-8
    V = torch.zeros(count, K, P, K, P, dtype=torch.float64)
    V[:, 1:, :, 1:] = inverse.view(count, K - 1, P, K - 1, P)
    return X, truth, theta, V.reshape(count, K * P, K * P)


def check(covered: Tensor) -> None:
    share = covered / COUNT
    assert ((share >= 0.93) & (share <= 0.97)).all(), share


@pytest.mark.slow
def test_probabilities() -> None:
    _, truth, thetas, Vs = draws(COUNT)
    points = torch.tensor([[0.0, 0.0], [1.0, 1.0], [-1.5, 1.0], [2.0, -2.0]], dtype=torch.float64)
    samples = as_samples(points, None, torch.float64)
    true = probabilities(samples, truth)
    assert true.min() < 0.02
    covered = torch.zeros_like(true)
    for theta, V in zip(thetas, Vs, strict=True):
        found = probability_intervals(samples, theta, V, NAMES, 0.95)
        covered += (found.lower <= true) & (true <= found.upper)
    check(covered)


@pytest.mark.slow
@pytest.mark.parametrize("at", ["average", "mean"])
def test_marginal_effects(at: Any) -> None:
    X, truth, thetas, Vs = draws(COUNT)
    objective = objective_of(X, torch.arange(len(X)) % 3, True, None, None, None, None)

    def effects(theta: Tensor, V: Tensor) -> MarginalEffects:
        return marginal_effects(objective, theta, V, ("x1", "x2"), NAMES, at)

    true = effects(truth, Vs[0]).effects
    covered = torch.zeros_like(true)
    for theta, V in zip(thetas, Vs, strict=True):
        low, high = effects(theta, V).confidence_intervals.unbind(2)
        covered += (low <= true) & (true <= high)
    check(covered)
