"""The reference solver of the tests against scikit-learn, closed forms and cases made by hand."""

import doctest
import math
from typing import Any

import numpy as np
import problems
import pytest
import reference
from reference import lower_bound, minimum, objective, rounding, separation
from scipy import sparse, special
from sklearn.datasets import load_iris, load_wine
from sklearn.linear_model import LogisticRegression

PENALTIES = [(1.0, 0.0), (1e-3, 0.0), (1e4, 0.0), (0.1, 1.0), (10.0, 1.0), (1.0, 0.4), (1e3, 0.9)]


def scaled(load: Any) -> tuple[Any, Any]:
    X, y = load(return_X_y=True)
    return (X - X.mean(0)) / X.std(0), y


def overlapping(seed: int = 0, n: int = 80, D: int = 3, K: int = 3) -> tuple[Any, Any]:
    rng = np.random.default_rng(seed)
    return rng.normal(size=(n, D)), np.append(np.arange(K), rng.integers(K, size=n - K))


@pytest.mark.parametrize("module", [reference, problems])
def test_examples(module: Any) -> None:
    results = doctest.testmod(module, extraglobs={"np": np})
    assert results.attempted > 0
    assert results.failed == 0


@pytest.mark.parametrize("load", [load_iris, load_wine])
@pytest.mark.parametrize("C", [1e-3, 1.0, 100.0])
@pytest.mark.parametrize("fit_intercept", [True, False])
@pytest.mark.parametrize("weighted", [True, False])
def test_minimum_with_l2_is_that_of_scikit_learn(load, C, fit_intercept, weighted) -> None:
    X, y = scaled(load)
    w = np.random.default_rng(0).uniform(0, 2, len(y)) if weighted else None
    peer = LogisticRegression(
        C=C, solver="newton-cholesky", tol=1e-10, fit_intercept=fit_intercept, max_iter=1000
    ).fit(X, y, w)
    b = peer.intercept_ if fit_intercept else np.zeros(3)
    theirs = objective(X, y, peer.coef_, b, C, 0.0, w)
    found = minimum(X, y, C, 0.0, fit_intercept, w)
    assert found.value == pytest.approx(theirs, rel=1e-11)
    assert found.value - found.bound <= 2e-12 * found.value
    np.testing.assert_allclose(found.weight, peer.coef_, atol=1e-6)
    np.testing.assert_allclose(found.bias - found.bias.mean(), b - b.mean(), atol=1e-5)


@pytest.mark.parametrize("load", [load_iris, load_wine])
@pytest.mark.parametrize(("C", "l1_ratio"), [(0.1, 1.0), (1.0, 1.0), (0.3, 0.5)])
def test_minimum_with_l1_is_that_of_scikit_learn(load, C, l1_ratio) -> None:
    X, y = scaled(load)
    peer = LogisticRegression(C=C, l1_ratio=l1_ratio, solver="saga", tol=1e-9, max_iter=20000)
    peer.fit(X, y)
    theirs = objective(X, y, peer.coef_, peer.intercept_, C, l1_ratio)
    found = minimum(X, y, C, l1_ratio)
    assert found.value == pytest.approx(theirs, rel=1e-9)
    assert found.value <= theirs + 1e-14
    assert found.value - found.bound <= 1e-10 * found.value
    np.testing.assert_allclose(found.weight, peer.coef_, atol=1e-4)


@pytest.mark.parametrize("kept", [True, False])
@pytest.mark.parametrize("fit_intercept", [True, False])
@pytest.mark.parametrize("weighted", [True, False])
def test_minimum_of_one_categorical_column_is_in_its_shares(kept, fit_intercept, weighted) -> None:
    """The optimum of a level is its class frequencies, or 1/K if neither column nor bias has it."""
    rng = np.random.default_rng(0)
    level = rng.choice(4, 400, p=[0.6, 0.3, 0.07, 0.03])
    y = np.append(np.tile(np.arange(3), 4), rng.integers(3, size=388))
    level[:12] = np.repeat(np.arange(4), 3)  # each class occurs in each level
    w = 10 ** rng.uniform(0, 6, 400) if weighted else np.ones(400)
    X = np.eye(4)[level][:, : 4 if kept else 3]
    shares = np.stack([np.bincount(y[level == k], w[level == k]) for k in range(4)])
    shares /= shares.sum(1, keepdims=True)
    if not kept and not fit_intercept:
        shares[3] = 1 / 3
    expected = -w @ np.log(shares[level, y]) / w.sum()
    for data in (X, sparse.csr_matrix(X)):
        found = minimum(data, y, math.inf, 0.0, fit_intercept, w)
        assert found.value == pytest.approx(expected, rel=1e-12)
        assert found.value - found.bound <= 1e-11
        assert found.step < 1e-2
        F = objective(data, y, found.weight, found.bias, math.inf, 0.0, w)
        assert pytest.approx(expected, rel=1e-12) == F
        assert not separation(data, y, fit_intercept, w)


@pytest.mark.parametrize(("C", "l1_ratio"), PENALTIES)
def test_minimum_takes_a_weight_for_repetition(C: float, l1_ratio: float) -> None:
    X, y = overlapping()
    times = np.random.default_rng(1).integers(0, 4, len(y))
    times[:3] = 1
    repeated = minimum(X.repeat(times, 0), y.repeat(times), C, l1_ratio)
    weighted = minimum(X, y, C, l1_ratio, sample_weight=times)
    assert weighted.value == pytest.approx(repeated.value, rel=1e-10)
    np.testing.assert_allclose(weighted.weight, repeated.weight, atol=1e-4)


def test_minimum_without_a_penalty_is_that_of_all_scales_and_offsets() -> None:
    X, y = overlapping()
    X = np.round(X * 2**10) / 2**10
    changed = (X + [0, 2.0**20, -(2.0**10)]) * [2.0**-20, 1, 2.0**20]
    plain, other = minimum(X, y), minimum(changed, y)
    assert other.value == pytest.approx(plain.value, rel=1e-12)
    F = objective(changed, y, other.weight, other.bias)
    assert pytest.approx(plain.value, rel=1e-12) == F


@pytest.mark.parametrize("C", [1.0, 1e5])
@pytest.mark.parametrize("l1_ratio", [0.0, 0.5, 1.0])
def test_minimum_is_found_from_far_away_and_in_spite_of_weights(C, l1_ratio) -> None:
    X, y = overlapping(2, n=40, D=5)
    w = 10.0 ** np.random.default_rng(3).uniform(0, 12, 40)
    found = minimum(X, y, C, l1_ratio, sample_weight=w)
    assert found.value - found.bound <= 1e-9 * found.value
    start = 1e3 * np.random.default_rng(4).normal(size=(3, 5)), np.zeros(3)
    again = minimum(X, y, C, l1_ratio, sample_weight=w, start=start)
    assert again.value == pytest.approx(found.value, rel=1e-9)
    assert again.value >= found.bound


@pytest.mark.parametrize(("C", "l1_ratio"), [*PENALTIES, (math.inf, 0.0)])
def test_minimum_ends_where_it_begins_at_the_minimum(C: float, l1_ratio: float) -> None:
    X, y = overlapping()
    X[:, 1] = X[:, 0] + 1e-3 * X[:, 1] + 50
    found = minimum(X, y, C, l1_ratio)
    again = minimum(X, y, C, l1_ratio, start=(found.weight, found.bias), tol=1e-9)
    assert again.iterations == 1
    assert again.value == pytest.approx(found.value, rel=1e-10)


@pytest.mark.parametrize("seed", [147, 287, 367, 393, 606, 648, 772, 967, 1770])
def test_minimum_of_hard_problems(seed: int) -> None:
    """Weights to 1e12, rare classes and coefficients of 1000 need a part of the reference each."""
    p = problems.problem(seed)
    data, w = (p.X, p.y), p.weights()
    found = minimum(*data, p.C, p.l1_ratio, p.fit_intercept, w)
    F = objective(*data, found.weight, found.bias, p.C, p.l1_ratio, w)
    assert pytest.approx(found.value, rel=1e-10, abs=0) == F
    assert found.value - found.bound <= 1e-9 * found.value


@pytest.mark.parametrize(("C", "l1_ratio"), [*PENALTIES, (math.inf, 0.0)])
@pytest.mark.parametrize("fit_intercept", [True, False])
@pytest.mark.parametrize("size", [0.0, 1e-3, 0.3, 10.0])
def test_a_lower_bound_is_below_the_minimum(C, l1_ratio, fit_intercept, size) -> None:
    X, y = overlapping(n=120)
    w = np.random.default_rng(1).uniform(0, 2, len(y))
    found = minimum(X, y, C, l1_ratio, fit_intercept, w)
    rng = np.random.default_rng(2)
    W = found.weight + size * rng.normal(size=found.weight.shape)
    b = found.bias + size * rng.normal(size=3) * fit_intercept
    plain, newton = (
        lower_bound(X, y, W, b, C, l1_ratio, fit_intercept, w, newton=newton)
        for newton in (False, True)
    )
    assert plain <= newton <= found.value * (1 + 1e-13)
    if size == 0:
        assert newton >= found.value * (1 - 1e-10)
        assert math.isinf(C) or plain >= found.value * (1 - 1e-3)
    if size == 1e-3:
        # The gap is half the Newton decrement, which is F minus the minimum to leading order.
        assert newton >= found.value - 1.1 * (objective(X, y, W, b, C, l1_ratio, w) - found.value)


@pytest.mark.parametrize("l1_ratio", [0.0, 0.3, 1.0])
def test_objective_is_its_definition(l1_ratio: float) -> None:
    X, y = overlapping()
    rng = np.random.default_rng(1)
    W, b, w = rng.normal(size=(3, 3)), rng.normal(size=3), rng.uniform(0, 2, len(y))
    nll = -special.log_softmax(X @ W.T + b, 1)[np.arange(len(y)), y]
    penalty = ((1 - l1_ratio) / 2 * (W**2).sum() + l1_ratio * abs(W).sum()) / 0.7
    expected = (w @ nll + penalty) / w.sum()
    for data in (X, sparse.csr_matrix(X)):
        F = objective(data, y, W, b, 0.7, l1_ratio, w)
        assert pytest.approx(expected, rel=1e-14) == F


def test_objective_has_digits_that_a_product_in_float64_loses() -> None:
    X, y = overlapping()
    X += [0, 1e6, -1e6]
    W = np.random.default_rng(1).normal(size=(3, 3))
    b = -W @ X.mean(0)
    z = X.astype(np.longdouble) @ W.T.astype(np.longdouble) + b
    exact = float((np.log(np.exp(z).sum(1)) - z[np.arange(len(y)), y]).mean())
    product = float(-special.log_softmax(X @ W.T + b, 1)[np.arange(len(y)), y].mean())
    F = objective(X, y, W, b)
    assert pytest.approx(exact, rel=1e-14, abs=0) == F
    assert 1e-13 * exact < abs(product - exact) < rounding(X, y, W, b)


def test_objective_has_the_digits_of_a_small_nll() -> None:
    X, y = np.array([[40.0], [-40.0]]), np.array([1, 0])
    F = objective(X, y, np.array([[0.0], [1.0]]), np.zeros(2))
    assert pytest.approx(math.exp(-40), rel=1e-14, abs=0) == F


def complete() -> tuple[Any, Any]:
    X, _ = overlapping()
    return X, X.argmax(1)


def touching() -> tuple[Any, Any]:
    """Return two classes that share only one point."""
    X = np.linspace(-1, 1, 41)[:, None]
    return np.vstack([X, X[20:21]]), np.append(X[:, 0] > 0, True).astype(int)


def one_class_apart() -> tuple[Any, Any]:
    """Return quasi-completely separated data: class 0 is apart, and the other classes overlap."""
    X, y = overlapping()
    X[:, 0] = np.where(y == 0, abs(X[:, 0]), -abs(X[:, 0]))
    return X, y


def level_without_a_class() -> tuple[Any, Any]:
    X, y = overlapping()
    X[:, 2] = (y != 1) & (X[:, 0] > 1)
    return X, y


def by_a_narrow_margin() -> tuple[Any, Any]:
    """Return classes that only the difference of two almost equal columns separates."""
    X, y = overlapping()
    X[:, 1] = X[:, 0] + 1e-5 * (y + np.random.default_rng(1).uniform(0, 0.9, len(y)))
    return X, y


def few_samples() -> tuple[Any, Any]:
    return overlapping(n=6, D=8)


@pytest.mark.parametrize(
    "make",
    [complete, touching, one_class_apart, level_without_a_class, by_a_narrow_margin, few_samples],
)
def test_separation_is_found(make: Any) -> None:
    X, y = make()
    assert separation(X, y)
    assert separation(sparse.csr_matrix(X * [1e6, *[1e-6] * (X.shape[1] - 1)]), y)
    found = minimum(X, y)
    assert found.separates or found.step > 0.5


@pytest.mark.parametrize("seed", range(5))
def test_separation_is_not_found_where_classes_overlap(seed: int) -> None:
    X, y = overlapping(seed)
    X = np.hstack([X, X[:, :1], X[:, :1] + 1e-5 * X[:, 1:2], np.ones((len(X), 1))])
    for fit_intercept in (True, False):
        assert not separation(X, y, fit_intercept)
        found = minimum(X, y, fit_intercept=fit_intercept)
        assert not found.separates
        assert found.step < 1e-2
        assert found.value - found.bound <= 1e-10


def test_separation_depends_on_the_intercept() -> None:
    X, y = np.array([[1.0], [2.0], [3.0], [4.0]]), np.array([0, 0, 1, 1])
    assert separation(X, y)
    assert not separation(X, y, fit_intercept=False)


def test_a_linear_program_that_is_too_large_is_not_solved() -> None:
    X, y = complete()
    entries = 2 * (3 + 1) * 2 * len(y)
    assert separation(X.repeat(2, 0), y.repeat(2), most=entries) is True
    assert separation(X, y, most=entries - 1) is None


def test_samples_of_weight_0_do_not_count() -> None:
    X, y = complete()
    y[:5] = (y[:5] + 1) % 3
    w = np.ones(len(y))
    assert not separation(X, y, sample_weight=w)
    w[:5] = 0
    assert separation(X, y, sample_weight=w)
    assert minimum(X, y, 1.0, sample_weight=w).value == pytest.approx(
        minimum(X[5:], y[5:], 1.0).value, rel=1e-12
    )


def test_problems_are_as_they_promise() -> None:
    for seed in range(300):
        p = problems.problem(seed)
        n, D = p.X.shape
        K = int(p.y.max()) + 1
        weights = p.weights()
        assert p.y.shape == (n,)
        assert 10 <= n <= 20000
        assert 2 <= K <= 30
        assert K * (D + 1) <= problems.NUMBERS + K
        assert np.bincount(p.y, weights).min() > 0
        assert np.isfinite(p.X.data if sparse.issparse(p.X) else p.X).all()
        assert p.l1_ratio in (0.0, 1.0) or 0 < p.l1_ratio < 1
        if p.class_weight:
            sums = np.bincount(p.y, weights)
            np.testing.assert_allclose(sums, sums.mean())
