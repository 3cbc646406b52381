"""Inference against the values of R and Stata: coefficients, covariances, tests and criteria."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import reference_values
import torch
from reference_values import problem, stata, values
from torch import Tensor

from softmax_torch.solvers import Inference, inference

LARGE = [pytest.param(name, marks=pytest.mark.slow) for name in ("anes96", "fair", "affair")]
PROBLEMS = ["spector", "clustered", *LARGE]
TWO_CLASSES = ["spector", LARGE[-1]]


def fitted(name: str, **options: Any) -> Inference:
    made = problem(name)
    return inference(made.X, made.y, feature_names=made.features, **options)


def check(got: Any, expected: Any, rtol: float = 1e-6) -> None:
    np.testing.assert_allclose(np.asarray(got), np.asarray(expected), rtol=rtol)


def check_covariance(got: Tensor, expected: Any) -> None:
    """Entries agree relative to the standard errors of their row and column."""
    V = torch.tensor(expected)
    size = V.diagonal().sqrt()
    assert ((got - V) / torch.outer(size, size)).abs().max() < 1e-6


@pytest.mark.parametrize("name", PROBLEMS)
def test_fit_and_tests_equal_those_of_vglm(name: str) -> None:
    found, expected = fitted(name), values(name)["ml"]
    check(found.coefficients, expected["coefficients"])
    check(found.standard_errors, expected["standard_errors"])
    check_covariance(found.covariance, expected["covariance"])
    check(found.log_likelihood, expected["log_likelihood"], 1e-10)
    check(found.log_likelihood_null, expected["log_likelihood_null"], 1e-10)
    check([found.aic, found.bic], [expected["aic"], expected["bic"]], 1e-10)
    features = problem(name).features
    tests = [found.likelihood_ratio_test(feature) for feature in features]
    check([test.statistic for test in tests], expected["lr"])
    check([test.p_value for test in tests], expected["lr_p"], 1e-5)
    check([found.wald_test(feature).statistic for feature in features], expected["wald"])


@pytest.mark.parametrize("name", PROBLEMS)
def test_fit_equals_that_of_multinom(name: str) -> None:
    """A quasi-Newton fit, whose last digits are not those of the optimum."""
    found, expected = fitted(name), values(name)["multinom"]
    check(found.coefficients, expected["coefficients"], 1e-4)
    check(found.standard_errors, expected["standard_errors"])
    check(found.log_likelihood, expected["log_likelihood"], 1e-10)


@pytest.mark.parametrize("name", PROBLEMS)
def test_sandwich_equals_that_of_r(name: str) -> None:
    expected = values(name)["sandwich"]
    check_covariance(fitted(name, covariance="HC0").covariance, expected["HC0"])
    check(fitted(name, covariance="HC1").standard_errors, expected["HC1_standard_errors"])


def test_clusters_equal_those_of_vcov_cl() -> None:
    found = fitted("clustered", covariance="cluster", groups=problem("clustered").groups)
    check_covariance(found.covariance, values("clustered")["sandwich"]["cluster_G"])


@pytest.mark.parametrize("name", TWO_CLASSES)
def test_two_classes_equal_glm(name: str) -> None:
    found, expected = fitted(name), values(name)["glm"]
    check(found.coefficients, expected["coefficients"])
    check_covariance(found.covariance, expected["covariance"])
    for kind in ("HC0", "HC1"):
        check_covariance(fitted(name, covariance=kind).covariance, expected[kind])
    scores = [found.score_test(feature).statistic for feature in problem(name).features]
    check(scores, expected["score"])
    check(found.score_test().statistic, expected["score_whole"])


@pytest.mark.parametrize("name", ["anes96", "spector"])
def test_fit_equals_that_of_stata(name: str) -> None:
    """To the digits that statsmodels stores."""
    found, expected = fitted(name), stata(name)
    shape = found.coefficients.shape
    check(found.coefficients, expected["params"].reshape(shape), 1e-5)
    check(found.standard_errors, expected["bse"].reshape(shape), 2e-7)
    check(found.z_values, expected["z"].reshape(shape))
    check(found.p_values, expected["pvalues"].reshape(shape), 5e-6)
    intervals = expected["conf_int"].reshape(*shape, 2)
    np.testing.assert_allclose(found.confidence_intervals, intervals, rtol=1e-6, atol=1e-5)
    whole = found.likelihood_ratio
    assert whole is not None
    check(found.log_likelihood, expected["llf"], 1e-7)
    check(found.log_likelihood_null, expected["llnull"], 1e-7)
    check(whole.statistic, expected["llr"], 1e-7)
    check(whole.p_value, expected["llr_pvalue"])
    check(found.pseudo_r2, expected["prsquared"], 1e-7)
    check([found.aic, found.bic], [expected["aic"], expected["bic"]], 1e-7)


def test_probabilities_equal_those_of_stata() -> None:
    check(fitted("spector").predict_proba(problem("spector").X)[:, 1], stata("spector")["phat"])


def test_problems_are_written_for_r(tmp_path: Path) -> None:
    """The file that R reads holds every digit of the problem."""
    reference_values.write(tmp_path)
    made = problem("clustered")
    table = np.loadtxt(tmp_path / "clustered.csv", delimiter=",", skiprows=1)
    assert made.groups is not None
    assert (table == np.column_stack([made.X, made.y, made.groups])).all()
    assert {path.stem for path in tmp_path.iterdir()} == set(reference_values.PROBLEMS)
