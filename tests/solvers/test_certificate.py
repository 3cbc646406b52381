"""A certificate bounds the distance to the optimum, wherever it is asked for."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from softmax_torch.solvers import fit, inputs
from softmax_torch.solvers.certificate import certify, subgradient
from softmax_torch.solvers.objective import Objective, Penalty
from softmax_torch.solvers.processes import Processes


def problem(weighted: bool, bias: bool = True) -> tuple[Objective, dict[str, Any]]:
    generator = torch.Generator().manual_seed(0)
    X = torch.randn(150, 6, generator=generator, dtype=torch.float64) + 1
    y = (X @ torch.randn(6, 4, generator=generator, dtype=torch.float64)).argmax(1)
    y[::7] = torch.arange(len(y[::7])) % 4
    weight = torch.rand(150, generator=generator, dtype=torch.float64) if weighted else None
    if weight is not None:
        weight[::5] = 0  # samples that do not count
    target, classes = inputs.as_class_indices(y, 150, X.device, Processes())
    objective = Objective(inputs.as_samples(X, None, None), target, classes, weight, bias)
    return objective, {"X": X, "y": y, "sample_weight": weight, "fit_intercept": bias}


def dual(objective: Objective, theta: Tensor, l2: float, X: Tensor) -> float:
    """D of the probabilities at theta, term by term."""
    z = X @ objective.weight_of(theta).T
    p = (z + theta[:, -1] if objective.bias else z).softmax(1)
    w = torch.ones_like(p[:, 0]) if objective.weight is None else objective.weight
    w = w / w.sum()
    r = torch.nn.functional.one_hot(objective.y, p.shape[1]) - p
    if objective.bias:
        assert (w @ r).abs().max() < 1e-15  # the condition under which D is a bound
    V = (r * w.unsqueeze(1)).T @ X
    return float(-(w @ (p * p.log()).sum(1)) - V.square().sum() / (2 * l2))


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("scale", [0.0, 0.1, 3.0])
def test_gap_is_that_to_the_dual_and_a_bound(weighted: bool, bias: bool, scale: float) -> None:
    objective, arguments = problem(weighted, bias)
    best = fit(**arguments, tol=1e-14)
    penalty = Penalty.of_strength(1.0, 0.0, objective.total)
    generator = torch.Generator().manual_seed(1)
    theta = scale * torch.randn(objective.shape, generator=generator, dtype=torch.float64)
    got = certify(objective, theta, penalty)
    assert got.gap is not None
    bound = dual(objective, got.theta, penalty.l2, arguments["X"])
    assert got.gap == pytest.approx(got.value - bound, rel=1e-9)
    assert got.value - best.objective <= got.gap
    assert bound <= best.objective + 1e-15
    objective.weight_of(theta).sub_(objective.weight_of(got.theta))
    assert not objective.weight_of(theta).any()  # nothing but the bias was moved
    if bias:
        assert got.gradient[:, -1].abs().max() < 1e-14


def test_gap_of_a_solution_is_small_and_a_solution_is_all_that_has_a_small_one() -> None:
    _, arguments = problem(False)
    solution = fit(**arguments, tol=1e-12)
    assert solution.duality_gap is not None
    assert 0 <= solution.duality_gap <= 1e-12 * solution.objective
    assert solution.kkt_residual < 1e-6


def test_without_an_l2_penalty_there_is_no_gap() -> None:
    objective, _ = problem(False)
    theta = objective.zeros()
    assert certify(objective, theta, Penalty(0.0)).gap is None
    assert certify(objective, theta, Penalty(0.1, 0.1)).gap is None
    assert fit(**problem(False)[1], C=math.inf).duality_gap is None


def test_subgradient_is_the_least_one() -> None:
    objective, _ = problem(False)
    theta, gradient = objective.zeros(), objective.zeros()
    theta[0, :2] = torch.tensor([2.0, -2.0])
    gradient[0, :4] = torch.tensor([0.3, 0.3, 0.3, -0.1])
    gradient[1, -1] = 0.7  # the bias is not penalized
    s = subgradient(objective, theta, gradient, 0.2)
    assert s[0, :4].tolist() == pytest.approx([0.5, 0.1, 0.1, 0.0])
    assert s[1, -1] == 0.7
    assert s.count_nonzero() == 4
