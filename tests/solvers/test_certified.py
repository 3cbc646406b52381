"""Data on which fits once stopped far from the optimum or did not stop, with the right answers.

Each example represents a kind of problem; ``test_campaign`` draws thousands of every kind.
"""

import math
import warnings
from typing import Any

import numpy as np
import pytest
import reference
import torch
from numpy.typing import NDArray
from problems import problem
from scipy import sparse
from sklearn.datasets import load_iris
from sklearn.preprocessing import scale

from softmax_torch.estimator import SoftmaxClassifier
from softmax_torch.solvers import ConvergenceWarning, cross_validate, fit, inference

Array = NDArray[Any]


class Dummies:
    """One categorical column as dummies without the last level, two classes, and the optimum."""

    def __init__(self, n: int, levels: int, seed: int = 0) -> None:
        rng = np.random.default_rng(seed)
        p = np.arange(1, levels + 1) ** -1.5
        level = rng.choice(levels, n, p=p / p.sum())
        level[: 2 * levels] = np.repeat(np.arange(levels), 2)
        share = 1 / (1 + np.exp(-rng.normal(size=levels)))
        self.y = (rng.random(n) < share[level]).astype(int)
        self.y[: 2 * levels] = np.tile([0, 1], levels)  # both classes in every level
        self.X = (level[:, None] == np.arange(levels - 1)).astype(float)
        self.ones = np.bincount(level, self.y, minlength=levels)
        self.zeros = np.bincount(level, 1 - self.y, minlength=levels)
        mean = (self.ones / (self.ones + self.zeros))[level]
        self.optimum = -np.mean(np.log(np.where(self.y == 1, mean, 1 - mean)))


@pytest.mark.parametrize(("n", "levels"), [(4000, 50), (10_000, 100), (20_000, 290)])
@pytest.mark.parametrize("solver", ["auto", "lbfgs"])
def test_rare_dummies_without_a_penalty(n: int, levels: int, solver: str) -> None:
    """The optimum predicts the class frequencies of each level."""
    data = Dummies(n, levels)
    solution = fit(data.X, data.y, C=math.inf, solver=solver)
    assert solution.converged
    # Without a penalty "auto" ends with an accurate Newton step.
    assert solution.objective == pytest.approx(data.optimum, rel=1e-9 if solver == "auto" else 1e-6)


def test_inference_on_rare_dummies() -> None:
    """Coefficients are log odds, their variances 1 / ones + 1 / zeros of both levels."""
    data = Dummies(10_000, 100)
    found = inference(data.X, data.y)
    odds = np.log(data.ones / data.zeros)
    variance = 1 / data.ones + 1 / data.zeros
    np.testing.assert_allclose(found.coefficients[0, :-1], odds[:-1] - odds[-1], rtol=1e-6)
    errors = np.sqrt(variance[:-1] + variance[-1])
    np.testing.assert_allclose(found.standard_errors[0, :-1], errors, rtol=1e-6)
    np.testing.assert_allclose(found.coefficients[0, -1], odds[-1], rtol=1e-6)
    np.testing.assert_allclose(found.standard_errors[0, -1], np.sqrt(variance[-1]), rtol=1e-6)


@pytest.mark.parametrize("C", [1e3, 1e4, 1e6])
def test_rare_dummies_with_a_weak_penalty(C: float) -> None:
    data = Dummies(10_000, 100)
    solution = fit(data.X, data.y, C=C)
    assert solution.converged
    assert solution.duality_gap <= 1e-6 * solution.objective
    by_newton = fit(data.X, data.y, C=C, solver="newton", tol=1e-9)
    assert solution.objective == pytest.approx(by_newton.objective, rel=1.1e-6)


@pytest.mark.parametrize("dtype", [None, "float32"])
@pytest.mark.parametrize(
    ("C", "optimum"), [(1e3, 0.03966607898912), (1e4, 0.0396623080605), (1e6, 0.039661828863267)]
)
def test_repeated_samples_with_a_weak_penalty(C: float, optimum: float, dtype: Any) -> None:
    """Iris repeated 500 times; the optima come from damped Newton in float64."""
    X, y = load_iris(return_X_y=True)
    solution = fit(np.repeat(X, 500, 0), np.repeat(y, 500), C=C, dtype=dtype)
    assert solution.converged
    assert solution.objective == pytest.approx(optimum, rel=1e-6)


def quasi_separated(seed: int) -> tuple[Array, Array, int]:
    """Return 0/1 columns, classes, and the index of a column that is 0 for all of class 2."""
    rng = np.random.default_rng(seed)
    n = 20_000
    X = (rng.random((n, 30)) < rng.uniform(0.003, 0.01, 30)).astype(float)
    y, column = rng.integers(0, 3, n), int(rng.integers(30))
    y[(X[:, column] > 0) & (y == 2)] = 1
    return X, y, column


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("form", [np.asarray, sparse.csr_array])
@pytest.mark.parametrize("call", [lambda X, y: fit(X, y, C=math.inf), inference])
def test_separation_by_a_rare_column_is_named(seed: int, form: Any, call: Any) -> None:
    X, y, column = quasi_separated(seed)
    with pytest.raises(ValueError, match=rf"column {column} separates class 2 from .* 0 and 1"):
        call(form(X), y)


def test_overlap_of_samples_of_weight_0_does_not_count() -> None:
    """Classes are separated if only samples of weight 0 overlap."""
    X = np.arange(8.0)[:, None]
    y, weight = np.array([0, 0, 0, 1, 0, 1, 1, 1]), np.ones(8)
    assert fit(X, y, C=math.inf).converged
    weight[4] = 0
    with pytest.raises(ValueError, match="column 0 separates class 0 from class 1"):
        fit(X, y, C=math.inf, sample_weight=weight)


@pytest.mark.parametrize(
    ("X", "y", "intercept", "match"),
    [
        # Thresholds between groups of classes; without an intercept the threshold is 0.
        (
            [0, 1, 0, 1, 2, 3, 2, 3],
            [0, 0, 1, 1, 2, 2, 3, 3],
            True,
            "classes 0 and 1 from .* 2 and 3",
        ),
        ([1, 1, 0, 0, 1], [0, 0, 1, 1, 1], True, "class 1 from class 0"),
        ([-1, 0, -1, 0], [0, 0, 1, 1], True, None),
        ([1, 2, 2, 3], [0, 0, 1, 1], False, None),
        ([-1, 0, 0, 3], [0, 0, 1, 1], False, "class 0 from class 1"),
        ([-1, 0, 0, 0], [1, 1, 0, 0], False, "class 1 from class 0"),
        ([5, 5, 5, 5], [0, 0, 1, 1], True, None),
    ],
)
def test_one_column_that_separates(X: Any, y: Any, intercept: bool, match: str | None) -> None:
    X = np.array(X, float)[:, None]
    for form in (X, sparse.csr_array(X)):
        if match is None:
            assert fit(form, y, C=math.inf, fit_intercept=intercept).converged
        else:
            with pytest.raises(ValueError, match=f"column 0 separates {match}"):
                fit(form, y, C=math.inf, fit_intercept=intercept)


def test_a_combination_that_separates_is_named() -> None:
    """Columns 1 and 4 are 0 except in 200 rows, where the sign of their sum is the class."""
    rng = np.random.default_rng(0)
    X, y = rng.normal(size=(5000, 6)), rng.integers(0, 3, 5000)
    X[:, [1, 4]] = 0
    X[:200, [1, 4]] = rng.normal(size=(200, 2))
    y[:200] = X[:200, 1] + X[:200, 4] > 0
    with pytest.raises(ValueError, match=r"class [01] from class [012], most of all columns .*4"):
        fit(X, y, C=math.inf)
    X[0, [1, 4]], y[0] = (1.0, 1.0), 0  # one sample on the other side
    X[1, [1, 4]], y[1] = (1.0, -2.0), 2
    X[2, [1, 4]], y[2] = (-2.0, 3.0), 2
    assert fit(X, y, C=math.inf).converged


def test_l1_without_an_intercept_leaves_zero() -> None:
    """A power iteration that starts in the null space of the model gives no bound on its steps."""
    X, y = load_iris(return_X_y=True)
    model = SoftmaxClassifier(C=0.05, l1_ratio=0.1, fit_intercept=False).fit(scale(X), y)
    assert np.abs(model.coef_).max() == pytest.approx(0.566, abs=1e-3)
    assert model.score(scale(X), y) == pytest.approx(0.833, abs=1e-3)


@pytest.mark.parametrize("classes", [2, 3])
@pytest.mark.parametrize("seed", range(5))
def test_one_feature_with_l1_and_no_intercept(classes: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(100, 1))
    y = (X @ rng.normal(size=(1, classes)) + rng.gumbel(size=(100, classes))).argmax(1)
    y[:classes] = range(classes)
    X[np.arange(100) % 3 == y % 3] += 0.7
    solution = fit(X, y, C=1.0, l1_ratio=1.0, fit_intercept=False)
    assert solution.converged
    assert solution.weight.any()
    assert solution.objective < math.log(classes) - 1e-7


@pytest.mark.parametrize("offset", [1e3, 1e5, 1e6])
@pytest.mark.parametrize("form", [np.asarray, sparse.csr_array, lambda X: [X[:70], X[70:]]])
def test_columns_far_from_0(offset: float, form: Any) -> None:
    """The intercept absorbs an offset, so F and W at the optimum do not depend on it."""
    X, y = load_iris(return_X_y=True)
    for options in ({}, {"l1_ratio": 1.0}, {"dtype": torch.float32}):
        expected = fit(X, y, **options)
        found = fit(form(X + offset), y, **options)
        assert found.converged
        assert found.objective == pytest.approx(expected.objective, rel=2e-6)
        assert found.iterations <= expected.iterations + 10
        torch.testing.assert_close(found.weight, expected.weight, rtol=1e-3, atol=1e-3)
        z = torch.from_numpy(X + offset) @ found.weight.T + found.bias
        nll = torch.nn.functional.cross_entropy(z, torch.from_numpy(y))
        W = found.weight
        assert found.objective == pytest.approx(
            float(nll)
            + float(W.abs().sum() if "l1_ratio" in options else W.square().sum() / 2) / 150,
            rel=1e-7,
        )


def test_a_warm_start_of_columns_far_from_0() -> None:
    X, y = load_iris(return_X_y=True)
    first = fit(X + 1e5, y)
    assert fit(X + 1e5, y, warm_start=first).iterations <= 1


def test_inference_on_columns_far_from_0() -> None:
    """An offset changes neither slopes nor their errors; the intercept is that of X as given."""
    X, y = load_iris(return_X_y=True)
    X, y = X[50:, :2], y[50:] - 1
    near, far = inference(X, y), inference(X + 3e5, y)
    torch.testing.assert_close(far.coefficients[:, :2], near.coefficients[:, :2])
    torch.testing.assert_close(far.standard_errors[:, :2], near.standard_errors[:, :2])
    contrast = torch.tensor([3e5, 3e5, 1.0], dtype=torch.float64)  # the intercept at the old 0
    assert float(contrast @ far.coefficients[0]) == pytest.approx(
        float(near.coefficients[0, 2]), rel=1e-4
    )
    assert float(contrast @ far.covariance @ contrast) == pytest.approx(
        float(near.covariance[2, 2]), rel=1e-3
    )


@pytest.mark.parametrize("l1_ratio", [0.0, 1.0])
def test_a_constant_column_does_not_prevent_convergence(l1_ratio: float) -> None:
    X, y = load_iris(return_X_y=True)
    constant = np.ones((150, 1))
    found = fit(constant, y, l1_ratio=l1_ratio)
    assert found.converged
    assert found.objective == pytest.approx(math.log(3))
    beside = fit(np.concatenate([X, constant], 1), y, l1_ratio=l1_ratio)
    assert beside.objective == pytest.approx(fit(X, y, l1_ratio=l1_ratio).objective, rel=2e-6)
    assert fit(constant, y, C=math.inf).converged


@pytest.mark.slow
def test_newton_steps_take_over_where_lbfgs_is_slow() -> None:
    """46 distinct samples, 16 classes, scales from 1e-6 to 1e6: 1000 steps of L-BFGS end 0.4% above
    the optimum."""
    p = problem(250)
    solution = fit(p.X, p.y, C=p.C, sample_weight=p.sample_weight, tol=p.tol)
    assert solution.converged
    found = reference.minimum(p.X, p.y, p.C, 0.0, True, p.sample_weight)
    assert solution.objective == pytest.approx(found.value, rel=1e-7)


@pytest.mark.slow
def test_l1_with_many_classes_ends() -> None:
    """With a matrix over all coordinates, factorized for each face, it takes 226 s."""
    rng = np.random.default_rng(0)
    X, y = rng.normal(size=(600, 20)), rng.integers(0, 300, 600)
    y[:300] = np.arange(300)
    solution = fit(X, y, C=10.0, l1_ratio=1.0)
    assert solution.converged
    assert solution.objective == pytest.approx(1.0470621288214, rel=1e-6)
    assert solution.iterations < 40


def test_newton_steps_do_not_finish_gradient_descent() -> None:
    X, y = load_iris(return_X_y=True)
    with pytest.warns(ConvergenceWarning, match="max_iter was reached first"):
        solution = fit(X, y, solver="gradient_descent", max_iter=120)
    assert solution.iterations == 120
    assert solution.objective > fit(X, y).objective * 1.01


def test_weights_of_any_size_give_the_same_fit() -> None:
    X, y = load_iris(return_X_y=True)
    weight = np.random.default_rng(0).uniform(0.5, 2, 150)
    expected = fit(X, y, sample_weight=weight)
    for unit in (2.0**40, 2.0**-40):
        found = fit(X, y, sample_weight=weight * unit, C=1 / unit)
        torch.testing.assert_close(found.weight, expected.weight, rtol=0, atol=0)
    # The same problem in other units, with a penalty of 1e-38 times the loss. Rounding decides
    # whether the bound can be certified, so that the last digits of a matrix product may end both
    # fits with a warning; the optimum is the same.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        huge = fit(X * 1e13, y, sample_weight=weight * 1e12, dtype=torch.float32)
        same = fit(X, y, sample_weight=weight, C=1e38)
    assert huge.objective == pytest.approx(same.objective, rel=1e-9)


def test_nearly_separated_classes_of_any_size_are_fitted(kernels: Any) -> None:
    """A class whose probabilities are 0 or 1 to all digits leaves the Hessian positive."""
    X, y = load_iris(return_X_y=True)
    for seed in range(12):
        weight = np.random.default_rng(seed).uniform(0.5, 2, 150) * 1e12
        with warnings.catch_warnings():  # rounding may prevent a certificate
            warnings.simplefilter("ignore", ConvergenceWarning)
            found = fit(X * 1e13, y, sample_weight=weight, dtype=torch.float32)
        assert math.isfinite(found.objective)


def test_more_columns_than_samples_have_no_errors() -> None:
    rng = np.random.default_rng(0)
    with pytest.raises(ValueError, match="30 samples for 49 columns and the intercept"):
        inference(rng.normal(size=(30, 49)), rng.integers(0, 2, 30))
    X = rng.normal(size=(60, 30))
    X[:, 29] = X[:, :29] @ rng.normal(size=29)
    with pytest.raises(ValueError, match=r"others \(column 0, column 1, .* more are involved\)"):
        inference(X, rng.integers(0, 2, 60))


def test_a_fold_of_weight_0() -> None:
    X, y = load_iris(return_X_y=True)
    weight = np.zeros(150)
    weight[[0, 1, 2, 50, 51, 52, 100, 101, 102]] = 1
    found = cross_validate(X, y, [0.1, 1.0], folds=3, sample_weight=weight)
    assert found.nll.isfinite().all()


@pytest.mark.parametrize("seed", [839, 1827])
def test_separation_that_newton_steps_from_large_margins_miss(seed: int) -> None:
    """Nearly collinear columns: large margins hide the direction, Newton steps from 0 find it."""
    p = problem(seed)
    with pytest.raises(ValueError, match="separates"):
        fit(p.X, p.y, C=math.inf, sample_weight=p.sample_weight, class_weight=p.class_weight)
