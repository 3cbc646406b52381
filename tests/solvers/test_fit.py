"""What a fit says of itself is so, to the digits of float64."""

import numpy as np
import pytest
import torch

from softmax_torch.solvers import fit


def test_objective_has_the_digits_of_float64() -> None:
    """Sums of weights too, which float32 does not hold."""
    rng = np.random.default_rng(0)
    X, y, w = rng.normal(size=(50, 3)), rng.integers(3, size=50), rng.uniform(0.1, 3, 50)
    solution = fit(X, y, C=0.5, sample_weight=w)
    W, b = solution.weight, solution.bias
    nll = -(torch.from_numpy(X) @ W.T + b).log_softmax(1)[range(50), y].numpy()
    F = (w @ nll + W.square().sum().item()) / w.sum()  # 1 / 2 C is 1
    assert solution.objective == pytest.approx(F, rel=1e-14)
