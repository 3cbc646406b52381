"""The duality gap is an upper bound on F - F*, at any point and with any penalty."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from softmax_torch.solvers import fit, inputs
from softmax_torch.solvers.certificate import certify, subgradient
from softmax_torch.solvers.newton_bound import newton_bound
from softmax_torch.solvers.objective import Objective, Penalty
from softmax_torch.solvers.processes import Processes
from softmax_torch.solvers.targets import as_class_indices


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def problem(weighted: bool, bias: bool = True) -> tuple[Objective, dict[str, Any]]:
    generator = torch.Generator().manual_seed(0)
    X = torch.randn(150, 6, generator=generator, dtype=torch.float64) + 1
    y = (X @ torch.randn(6, 4, generator=generator, dtype=torch.float64)).argmax(1)
    y[::7] = torch.arange(len(y[::7])) % 4
    weight = torch.rand(150, generator=generator, dtype=torch.float64) if weighted else None
    if weight is not None:
        weight[::5] = 0  # samples that do not count
    target, classes = as_class_indices(y, 150, X.device, Processes())
    objective = Objective(inputs.as_samples(X, None, None), target, classes, weight, bias)
    return objective, {"X": X, "y": y, "sample_weight": weight, "fit_intercept": bias}


def dual(objective: Objective, theta: Tensor, l2: float, X: Tensor) -> float:
    """Return D(p) for the probabilities p at theta, term by term."""
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
def test_gap_is_primal_minus_dual_and_a_bound(weighted: bool, bias: bool, scale: float) -> None:
    objective, arguments = problem(weighted, bias)
    best = fit(**arguments, tol=1e-14)
    penalty = Penalty.of_strength(1.0, 0.0, objective.total)
    generator = torch.Generator().manual_seed(1)
    theta = scale * torch.randn(objective.shape, generator=generator, dtype=torch.float64)
    got = certify(objective, theta, penalty)
    bound = dual(objective, got.theta, penalty.l2, arguments["X"])
    assert got.gap == pytest.approx(got.value - bound, rel=1e-9)
    assert got.value - best.objective <= got.gap
    assert bound <= best.objective + 1e-15
    objective.weight_of(theta).sub_(objective.weight_of(got.theta))
    assert not objective.weight_of(theta).any()  # only the bias was moved
    if bias:
        assert got.gradient[:, -1].abs().max() < 1e-14


def test_gap_and_kkt_residual_of_a_solution_are_small() -> None:
    _, arguments = problem(False)
    solution = fit(**arguments, tol=1e-12)
    assert 0 <= solution.duality_gap <= 1e-12 * solution.objective
    assert solution.kkt_residual < 1e-6


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("l2", [0.0, 0.02])
@pytest.mark.parametrize("scale", [0.0, 0.1, 3.0])
def test_gap_with_an_l1_penalty_is_a_bound(bias: bool, l2: float, scale: float) -> None:
    objective, arguments = problem(True, bias)
    total = objective.total
    penalty = Penalty(l2, 0.01)
    C, ratio = 1 / ((l2 + 0.01) * total), 0.01 / (l2 + 0.01)
    best = fit(**arguments, C=C, l1_ratio=ratio, tol=1e-9)
    assert best.converged
    theta = scale * torch.randn(objective.shape, generator=seeded(1), dtype=torch.float64)
    got = certify(objective, theta, penalty)
    assert got.value - best.objective <= got.gap
    # The gap goes to 0 with the distance to the optimum.
    assert best.duality_gap <= 1e-9 * best.objective
    assert got.gap < 100 * (got.value - best.objective) + 1


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("scale", [0.0, 0.02, 0.3])
@pytest.mark.parametrize("l2", [0.0, 0.02])
def test_newton_bound_is_a_bound_without_a_penalty_too(
    weighted: bool, bias: bool, scale: float, l2: float
) -> None:
    objective, arguments = problem(weighted, bias)
    C = 1 / (l2 * objective.total) if l2 else math.inf
    best = fit(**arguments, C=C, tol=1e-13)
    theta = objective.zeros()
    objective.weight_of(theta).copy_(best.weight)
    if bias:
        theta[:, -1] = best.bias
    theta += scale * torch.randn(objective.shape, generator=seeded(1), dtype=torch.float64)
    before = objective.evaluate(theta, Penalty(l2), torch.float64).value
    got = newton_bound(objective, theta, Penalty(l2), 1e-12, 0)
    assert got.value <= before * (1 + 1e-15)
    assert got.value - best.objective <= got.gap + 1e-15 * before
    if scale == 0.02:  # near enough for a bound, which is not much too large
        assert got.reach < 1
        assert got.gap < before - best.objective


def test_newton_bound_is_large_if_cg_has_not_converged(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """With a preconditioner that ignores a column CG does not move there; the bound is large."""
    objective, arguments = problem(False)
    best = fit(**arguments, C=math.inf, tol=1e-13)
    theta = torch.cat([best.weight, best.bias.unsqueeze(1)], 1)
    theta[0, 2] += 0.3
    before = objective.evaluate(theta, Penalty(0.0), torch.float64).value

    class Blind:
        def inverse(self, l2: float) -> Any:
            return lambda g: g * torch.tensor([1.0, 1, 1e-12, 1, 1, 1, 1])

    monkeypatch.setattr("softmax_torch.solvers.newton_bound.sketch_of", lambda *_: Blind())
    monkeypatch.setattr("softmax_torch.solvers.newton_bound.CG_ITERATIONS", 4)
    got = newton_bound(objective, theta, Penalty(0.0), 1e-6, 0)
    assert got.value - best.objective <= got.gap
    assert before - best.objective > 1e-3  # theta is far from the optimum
    assert got.gap > 1e-4  # and the bound is not small


def test_every_solution_has_a_gap() -> None:
    _, arguments = problem(False)
    for options in ({}, {"C": math.inf}, {"l1_ratio": 1.0}, {"l1_ratio": 0.5}):
        solution = fit(**arguments, **options)
        assert 0 <= solution.duality_gap <= 1e-6 * solution.objective


def test_subgradient_has_the_least_norm() -> None:
    objective, _ = problem(False)
    theta, gradient = objective.zeros(), objective.zeros()
    theta[0, :2] = torch.tensor([2.0, -2.0])
    gradient[0, :4] = torch.tensor([0.3, 0.3, 0.3, -0.1])
    gradient[1, -1] = 0.7  # the bias is not penalized
    s = subgradient(objective, theta, gradient, 0.2)
    assert s[0, :4].tolist() == pytest.approx([0.5, 0.1, 0.1, 0.0])
    assert s[1, -1] == 0.7
    assert s.count_nonzero() == 4
