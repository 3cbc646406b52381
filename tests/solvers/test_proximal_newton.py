"""Proximal Newton finds the optimum of L1 and elastic net, with exact zeros."""

import math
import warnings
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from scipy.sparse import csr_matrix
from sklearn.datasets import load_digits, load_iris
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from softmax_torch.solvers import ConvergenceWarning, Solution, fit, hessian_model
from softmax_torch.solvers.certificate import certify
from softmax_torch.solvers.inputs import as_samples
from softmax_torch.solvers.objective import Objective, Penalty
from softmax_torch.solvers.proximal_newton import ProximalNewton


def digits(n: int = 400) -> tuple[Tensor, Tensor]:
    X, y = load_digits(return_X_y=True)
    return torch.from_numpy(X[:n]) / 16, torch.from_numpy(y[:n])


def iris() -> tuple[Tensor, Tensor]:
    X, y = load_iris(return_X_y=True)
    X = torch.from_numpy(X)
    return (X - X.mean(0)) / X.std(0), torch.from_numpy(y)


def wide(classes: int = 3) -> tuple[Tensor, Tensor]:
    """Return 60 samples of 150 features, of which 4 matter."""
    generator = torch.Generator().manual_seed(0)
    X = torch.randn(60, 150, generator=generator, dtype=torch.float64)
    scores = X[:, :classes] - X[:, 3:4] / 2
    noise = torch.randn(60, classes, generator=generator, dtype=torch.float64)
    return X, (scores + noise).argmax(1)


def total(
    X: Tensor, y: Tensor, W: Tensor, b: Tensor, C: float, l1_ratio: float, w: Tensor | None = None
) -> float:
    """Return F by its definition."""
    w = torch.ones(len(y), dtype=torch.float64) if w is None else w
    nll = torch.nn.functional.cross_entropy(X.double() @ W.T + b, y, reduction="none") @ w
    norms = (1 - l1_ratio) / 2 * W.square().sum() + l1_ratio * W.abs().sum()
    return float((nll + norms / C) / w.sum())


def violation(X: Tensor, y: Tensor, s: Solution, C: float, l1_ratio: float) -> float:
    """Return the largest violation of the KKT conditions."""
    p = (X.double() @ s.weight.T + s.bias).softmax(1)
    r = (p - torch.nn.functional.one_hot(y)) / len(y)
    g = r.T @ X.double() + (1 - l1_ratio) / (C * len(y)) * s.weight
    l1 = l1_ratio / (C * len(y))
    at_zero = (g.abs() - l1).clamp_min(0)
    off = torch.where(s.weight == 0, at_zero, (g + l1 * s.weight.sign()).abs())
    return max(float(off.max()), float(r.sum(0).abs().max()))


def problem(X: Tensor, y: Tensor, C: float, l1_ratio: float = 1.0) -> tuple[Objective, Penalty]:
    objective = Objective(as_samples(X, None, None), y, int(y.max()) + 1)
    return objective, Penalty.of_strength(C, l1_ratio, objective.total)


@pytest.mark.parametrize(
    ("data", "C", "l1_ratio"),
    [
        (digits, 0.1, 1.0),
        pytest.param(digits, 1.0, 0.5, marks=pytest.mark.slow),
        pytest.param(digits, 5.0, 1.0, marks=pytest.mark.slow),
        (iris, 1.0, 1.0),
        (iris, 100.0, 0.9),
        (wide, 0.3, 1.0),
        (wide, 1.0, 0.5),
    ],
)
def test_the_optimum_is_no_higher_than_that_of_scikit_learn(data, C, l1_ratio) -> None:
    X, y = data()
    s = fit(X, y, C=C, l1_ratio=l1_ratio, tol=1e-7)
    assert s.converged
    peer = LogisticRegression(solver="saga", C=C, l1_ratio=l1_ratio, tol=1e-9, max_iter=3000)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it need not converge
        peer.fit(X.numpy(), y.numpy())
    theirs = total(
        X, y, torch.from_numpy(peer.coef_), torch.from_numpy(peer.intercept_), C, l1_ratio
    )
    ours = total(X, y, s.weight, s.bias, C, l1_ratio)
    assert ours == pytest.approx(s.objective, rel=1e-13)
    assert ours <= theirs * (1 + 1e-8)
    assert violation(X, y, s, C, l1_ratio) <= 1e-7
    assert 0 < int((s.weight == 0).sum()) < s.weight.numel()


@pytest.mark.parametrize("l1_ratio", [1.0, 0.5])
def test_two_classes_have_the_optimum_of_binary_logistic_regression(l1_ratio: float) -> None:
    X, y = wide(2)
    C = 0.5
    s = fit(X, y, C=C, l1_ratio=l1_ratio, tol=1e-8)
    # With w = W_1 - W_0 the least ||W||_1 is ||w||_1, and the least ||W||^2 is ||w||^2 / 2.
    l1, l2 = l1_ratio / C, (1 - l1_ratio) / C / 2
    peer = LogisticRegression(
        solver="saga", C=1 / (l1 + l2), l1_ratio=l1 / (l1 + l2), tol=1e-10, max_iter=10000
    ).fit(X.numpy(), y.numpy())
    w = torch.from_numpy(peer.coef_)
    W = torch.cat([-w, w]) / 2
    theirs = total(X, y, W, torch.tensor([0.0, peer.intercept_.item()]), C, l1_ratio)
    assert s.objective == pytest.approx(theirs, rel=1e-9)
    assert violation(X, y, s, C, l1_ratio) <= 1e-8


@pytest.mark.parametrize("fit_intercept", [True, False])
def test_a_strong_penalty_leaves_the_class_shares(fit_intercept: bool) -> None:
    X, y = iris()
    y = y.where(torch.arange(150) > 30, 2)
    s = fit(X, y, C=1e-3, l1_ratio=1.0, fit_intercept=fit_intercept)
    assert s.converged
    assert not s.weight.any()
    p = torch.bincount(y) / 150 if fit_intercept else torch.full((3,), 1 / 3)
    torch.testing.assert_close(s.bias.softmax(0), p.double())


def test_without_an_intercept() -> None:
    X, y = digits()
    s = fit(X, y, C=0.5, l1_ratio=1.0, fit_intercept=False)
    peer = LogisticRegression(
        solver="saga", C=0.5, l1_ratio=1.0, fit_intercept=False, tol=1e-5, max_iter=3000
    ).fit(X.numpy(), y.numpy())
    assert s.converged
    assert not s.bias.any()
    assert s.objective <= total(X, y, torch.from_numpy(peer.coef_), s.bias, 0.5, 1.0) * (1 + 1e-8)


def test_no_penalty_is_for_the_smooth_solvers() -> None:
    X, y = iris()
    y = y.roll(20)  # so that the classes cannot be separated
    both = [fit(X, y, C=math.inf, l1_ratio=ratio) for ratio in (1.0, 0.0)]
    assert both[0].objective == both[1].objective
    with pytest.raises(ValueError, match="solver"):
        fit(X, y, C=math.inf, l1_ratio=1.0, solver="proximal_newton")


@pytest.mark.parametrize("C", [0.1, 3.0])
def test_sparse_and_float32_samples(C: float) -> None:
    X, y = digits()
    dense = fit(X, y, C=C, l1_ratio=1.0)
    for other in (csr_matrix(X.numpy()), X.float()):
        s = fit(other, y, C=C, l1_ratio=1.0)
        assert s.converged
        assert s.objective == pytest.approx(dense.objective, rel=1e-9)


def test_passes_in_float32_are_finished_in_float64() -> None:
    X, y = digits()
    s = fit(X, y, C=1.0, l1_ratio=1.0, dtype=torch.float32, tol=1e-8)
    assert s.converged
    assert violation(X, y, s, 1.0, 1.0) <= 1e-9


def test_a_sample_weight_counts_repeated_samples() -> None:
    X, y = digits(200)
    w = torch.arange(200) % 3
    weighted = fit(X, y, C=0.2, l1_ratio=0.7, sample_weight=w)
    repeated = fit(X.repeat_interleave(w, 0), y.repeat_interleave(w), C=0.2, l1_ratio=0.7)
    assert weighted.objective == pytest.approx(repeated.objective, rel=1e-10)
    torch.testing.assert_close(weighted.weight, repeated.weight, rtol=0, atol=1e-4)


def test_features_of_any_scale_and_a_column_of_zeros() -> None:
    X, y = iris()
    X = torch.cat([X * torch.tensor([1e-3, 1.0, 1e3, 1e5]), torch.zeros(150, 1), X[:, 1:2]], 1)
    s = fit(X, y, C=10.0, l1_ratio=1.0)
    assert s.converged
    assert s.iterations <= 40
    assert not s.weight[:, 4].any()


@pytest.mark.parametrize("C", [0.5, 20.0])
def test_large_working_sets_use_hessian_products(C: float, monkeypatch) -> None:
    X, y = digits()
    known = fit(X, y, C=C, l1_ratio=1.0)
    monkeypatch.setattr(hessian_model, "MATRIX", 40)
    s = fit(X, y, C=C, l1_ratio=1.0, max_iter=25)
    assert s.converged
    assert s.objective == pytest.approx(known.objective, rel=1e-9)


@pytest.mark.parametrize("sampled", [2048, 40])
def test_models_from_all_rows_equal_the_hessian(sampled: int, monkeypatch) -> None:
    X, y = digits()
    objective, penalty = problem(X, y, 1.0, 0.5)
    generator = torch.Generator().manual_seed(0)
    theta = torch.randn(10, 65, generator=generator, dtype=torch.float64)
    at = torch.arange(0, 650, 7)
    kind = hessian_model.SampledModel if sampled > len(at) else hessian_model.ExactModel
    monkeypatch.setattr(hessian_model, "MATRIX", sampled)
    monkeypatch.setattr(hessian_model, "RELATIVE_RIDGE", 1e-12)
    damping = torch.linspace(0, 1, len(at), dtype=torch.float64)
    model = kind(objective, penalty, theta, at, 0, damping)  # all 400 rows are drawn
    v = torch.randn(len(at), generator=generator, dtype=torch.float64)
    whole = objective.zeros()
    whole.view(-1)[at] = v
    p = objective.probabilities(theta, torch.float64)
    Hv = objective.hessian_product(p, whole, penalty).view(-1)[at]
    torch.testing.assert_close(model.product(v), Hv + damping * v, rtol=1e-6, atol=1e-12)


def test_a_correction_makes_the_model_reproduce_the_last_change_of_the_gradient() -> None:
    objective, penalty = problem(*digits(), 1.0)
    generator = torch.Generator().manual_seed(0)
    at = torch.arange(0, 650, 7)
    none = torch.zeros(len(at))
    model = hessian_model.SampledModel(objective, penalty, objective.zeros(), at, 0, none)
    face = torch.arange(len(at)) % 3 > 0
    for _ in range(4):
        s = torch.randn(len(at), generator=generator, dtype=torch.float64)
        y = 1.5 * model.blocks[0] @ s + 1e-4 * torch.randn(len(at), generator=generator).double()
        model.update(s, y)
        torch.testing.assert_close(model.product(s), y)
        d = model.solve(face, s)
        assert not d[~face].any()
        torch.testing.assert_close(model.product(d)[face], s[face])
    assert len(model.pairs) == 4


@pytest.mark.parametrize("C", [0.5, 20.0])
def test_a_state_resumes_bit_for_bit(C: float) -> None:
    X, y = digits()
    first, then = (
        ProximalNewton(*problem(X, y, C), torch.zeros(10, 65).double(), X.dtype) for _ in range(2)
    )
    for steps in (0, 1, 3):
        for _ in range(steps):
            assert first.step()
        then.load_state_dict(first.state_dict())
        expected, expected_passes = first.theta, first.objective.passes
        assert then.objective.passes == expected_passes
        first.step()
        then.step()
        assert then.theta.equal(first.theta)
        assert not first.theta.equal(expected)
        assert then.objective.passes == first.objective.passes


def test_every_step_descends() -> None:
    X, y = digits()
    s = fit(X, y, C=1.0, l1_ratio=1.0, tol=1e-7)
    values = [p.objective for p in s.history]
    assert all(b <= a for a, b in pairwise(values))
    assert s.iterations <= 25


def test_a_warm_start_from_the_optimum_takes_no_iteration() -> None:
    X, y = digits()
    s = fit(X, y, C=1.0, l1_ratio=1.0, tol=1e-7)
    again = fit(X, y, C=1.0, l1_ratio=1.0, warm_start=s)
    assert again.iterations == 0
    assert (again.weight == 0).equal(s.weight == 0)


@pytest.mark.parametrize("l1_ratio", [1.0, 0.5])
def test_weights_of_columns_of_zeros_become_zero(l1_ratio: float) -> None:
    X, y = digits()
    s = fit(X, y, C=1.0, l1_ratio=l1_ratio)
    dead = ~X.any(0)
    assert dead.any()
    generator = torch.Generator().manual_seed(0)
    weight = s.weight + dead * torch.randn(s.weight.shape, generator=generator)
    again = fit(X, y, C=1.0, l1_ratio=l1_ratio, warm_start=replace(s, weight=weight))
    assert again.converged
    assert again.iterations <= 10
    assert not again.weight[:, dead].any()


def test_a_tolerance_below_rounding_ends_with_a_warning() -> None:
    X, y = iris()
    with pytest.warns(ConvergenceWarning, match="no further step lowers F"):
        s = fit(X, y, C=1.0, l1_ratio=1.0, tol=1e-18)
    assert violation(X, y, s, 1.0, 1.0) <= 1e-10


def test_a_step_at_the_optimum_moves_nothing() -> None:
    X, y = iris()
    objective, penalty = problem(X, y, 1e-3)
    solver = ProximalNewton(objective, penalty, objective.zeros(), torch.float64)
    while solver.step():
        assert solver.iterations < 50
    theta = certify(objective, solver.theta, penalty).theta
    torch.testing.assert_close(solver.theta.softmax(0), theta.softmax(0))
