"""Wald, likelihood-ratio and score tests, and criteria, against statsmodels and scipy."""

from typing import Any

import numpy as np
import pytest
import torch
from scipy import sparse, stats
from small_samples import NAMES, small
from statsmodels.discrete.discrete_model import MNLogit

from softmax_torch.solvers import inference
from softmax_torch.solvers.inference.column_subset import ColumnSubset
from softmax_torch.solvers.inference.hypothesis_tests import chi_squared_tail
from softmax_torch.solvers.inputs import as_samples

X, Y, GROUPS = small()


def peer(columns: list[int]) -> Any:
    x = np.column_stack([X[:, columns], np.ones(len(X))])
    return MNLogit(Y, x).fit(method="newton", disp=0, tol=1e-13)


@pytest.mark.parametrize("df", [1, 2, 3, 8, 100])
def test_the_tail_of_chi_squared(df: int) -> None:
    for x in (0.0, 1e-3, 0.5, df, 3.0 * df, 100.0, 1300.0):
        assert chi_squared_tail(x, df) == pytest.approx(stats.chi2.sf(x, df), rel=2e-9, abs=0)


@pytest.mark.parametrize("features", [[0], [1, 2], [0, 1, 2]])
@pytest.mark.parametrize("reference", [0, 1, None])
def test_wald(features: list[int], reference: int | None) -> None:
    found = inference(X, Y, reference=reference, feature_names=NAMES)
    whole = peer([0, 1, 2])
    flat = [4 * k + j for k in range(2) for j in features]
    expected = whole.wald_test(np.eye(8)[flat], scalar=True)
    for names in (features, [NAMES[j] for j in features], np.array(features)):
        test = found.wald_test(names)
        assert test.statistic == pytest.approx(float(expected.statistic), rel=1e-9)
        assert test.p_value == pytest.approx(float(expected.pvalue), rel=1e-6)
        assert test.df == len(flat)


def test_wald_uses_the_covariance() -> None:
    found = inference(X, Y, covariance="cluster", groups=GROUPS)
    one = found.covariance.view(2, 4, 2, 4)[:, 1, :, 1]
    b = found.coefficients[:, 1]
    assert found.wald_test(1).statistic == pytest.approx(float(b @ torch.linalg.inv(one) @ b))
    assert found.wald_test(1).statistic != pytest.approx(inference(X, Y).wald_test(1).statistic)
    assert found.wald_test(np.int64(1)) == found.wald_test(1)  # type: ignore[arg-type]


@pytest.mark.parametrize("features", [[0], [1, 2]])
def test_likelihood_ratio(features: list[int]) -> None:
    left = [j for j in range(3) if j not in features]
    statistic = 2 * (peer([0, 1, 2]).llf - peer(left).llf)
    for data in (X, X.tolist(), sparse.csr_array(X), [X[:100], X[100:]]):
        test = inference(data, Y).likelihood_ratio_test(features)
        assert test.statistic == pytest.approx(statistic, rel=1e-8)
        assert test.df == 2 * len(features)
        assert test.p_value == pytest.approx(stats.chi2.sf(statistic, test.df), rel=1e-6)


def test_far_columns_in_tests() -> None:
    """A column far from 0 is centred for the fit."""
    far = X + [0, 1e5, 0]
    for name in ("wald_test", "likelihood_ratio_test", "score_test"):
        near_test, far_test = (getattr(inference(x, Y), name)([0, 1]) for x in (X, far))
        assert far_test.statistic == pytest.approx(near_test.statistic, rel=1e-6)


@pytest.mark.parametrize("name", ["wald_test", "likelihood_ratio_test", "score_test"])
def test_statistics_grow_with_frequencies(name: str) -> None:
    one, four = (getattr(inference(X, Y, sample_weight=w), name)(1) for w in (None, 4.0))
    assert four.statistic == pytest.approx(4 * one.statistic, rel=1e-8)


def test_columns_of_shifted_samples() -> None:
    subset = ColumnSubset(as_samples(X, None, None), torch.tensor([0, 2]))
    shifted = subset.shifted(torch.tensor([1.0, -2.0], dtype=torch.float64))
    expected = torch.tensor(X[:, [0, 2]] - [1.0, -2.0])
    torch.testing.assert_close(shifted.rows(torch.arange(300)), expected)


@pytest.mark.parametrize("features", [[1], [0, 2], [0, 1, 2]])
@pytest.mark.parametrize("weighted", [False, True])
def test_score(features: list[int], weighted: bool) -> None:
    """U^T H^-1 U at the optimum without the features, from the definition."""
    w = torch.arange(300, dtype=torch.float64) % 2 + 1 if weighted else torch.ones(300).double()
    left = [j for j in range(3) if j not in features]
    x = torch.tensor(np.column_stack([X, np.ones(300)]))
    gamma = torch.zeros(2, 4, dtype=torch.float64)
    if left:
        gamma[:, [*left, 3]] = inference(X[:, left], Y, sample_weight=w).coefficients
    else:
        totals = torch.bincount(torch.tensor(Y), w)
        gamma[:, 3] = (totals[1:] / totals[0]).log()

    def loss(gamma: torch.Tensor) -> torch.Tensor:
        z = torch.nn.functional.pad(x @ gamma.T, (1, 0))
        nll = torch.nn.functional.cross_entropy(z, torch.tensor(Y), reduction="none")
        return (w * nll).sum()

    U = torch.func.grad(loss)(gamma).flatten()
    H = torch.func.hessian(loss)(gamma).view(8, 8)
    test = inference(X, Y, sample_weight=w).score_test(features)
    assert test.statistic == pytest.approx(float(U @ torch.linalg.solve(H, U)), rel=1e-6)
    assert test.df == 2 * len(features)


def test_of_the_whole_and_criteria() -> None:
    found, expected = inference(X, Y), peer([0, 1, 2])
    assert found.likelihood_ratio is not None
    assert found.likelihood_ratio.statistic == pytest.approx(expected.llr, rel=1e-8)
    assert found.likelihood_ratio.p_value == pytest.approx(expected.llr_pvalue, rel=1e-6)
    assert found.likelihood_ratio == found.likelihood_ratio_test()
    assert found.likelihood_ratio.df == expected.df_model
    for name in ("aic", "bic"):
        assert getattr(found, name) == pytest.approx(getattr(expected, name), rel=1e-10)
    assert found.pseudo_r2 == pytest.approx(expected.prsquared, rel=1e-8)
    assert found.log_likelihood_null == pytest.approx(expected.llnull, rel=1e-8)


def test_without_an_intercept_no_features_are_equal_probabilities() -> None:
    found = inference(X, Y, fit_intercept=False)
    assert found.log_likelihood_null == pytest.approx(-300 * np.log(3))
    assert found.likelihood_ratio == found.likelihood_ratio_test()
    assert found.score_test().df == found.wald_test().df == 6


def test_a_feature_without_effect_is_found_rarely() -> None:
    """All tests reject at 10% for few of the features that have no effect."""
    rng = np.random.default_rng(1)
    y = rng.integers(0, 3, 400)
    noise = rng.normal(size=(400, 12))
    found = inference(noise, y)
    for name in ("wald_test", "likelihood_ratio_test", "score_test"):
        p = [getattr(found, name)(j).p_value for j in range(0, 12, 2)]
        assert 0 <= sum(value < 0.1 for value in p) <= 3


@pytest.mark.parametrize("name", ["likelihood_ratio_test", "score_test"])
@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"penalty": "l2", "C": 1.0}, "expected a fit with penalty=.none., .*got 'l2'"),
        ({"covariance": "HC0"}, "expected covariance=.nonrobust., .*got 'HC0'; wald_test uses"),
    ],
)
def test_tests_that_assume_the_model(name: str, options: dict[str, Any], match: str) -> None:
    found = inference(X, Y, **options)
    assert (found.likelihood_ratio is None) == ("penalty" in options)
    with pytest.raises(ValueError, match=f"{name}: {match}"):
        getattr(found, name)(0)


@pytest.mark.parametrize("features", ["weight", 3, -1, 1.5, True, np.int64(3), [0, "x"], []])
def test_unknown_features(features: Any) -> None:
    with pytest.raises(ValueError, match="features: expected"):
        inference(X, Y, feature_names=NAMES).wald_test(features)
