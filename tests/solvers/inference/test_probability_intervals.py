"""Intervals of predicted probabilities against R, statsmodels and autograd."""

import doctest
from typing import Any

import numpy as np
import pytest
import torch
from reference_values import problem, values
from scipy import sparse
from torch import Tensor

from softmax_torch.solvers import Inference, inference
from softmax_torch.solvers.inference import probability_intervals as module
from softmax_torch.solvers.inference.normal import interval
from softmax_torch.solvers.inputs import as_samples

CLUSTERED = problem("clustered")


def fitted(name: str, **options: Any) -> Inference:
    made = problem(name)
    return inference(made.X, made.y, feature_names=made.features, **options)


def check(got: Tensor, expected: Any, rtol: float = 1e-6, atol: float = 1e-9) -> None:
    np.testing.assert_allclose(got.numpy(), np.asarray(expected), rtol=rtol, atol=atol)


def test_example() -> None:
    found = doctest.testmod(module)
    assert found.attempted > 0
    assert found.failed == 0


def test_equals_rs_effects() -> None:
    """R's numbers hold the digits of ``nnet::multinom``, about seven."""
    expected = values("anes96")["probabilities"]
    found = fitted("anes96", reference=3).predict_intervals(expected["X"])
    for name in ("probabilities", "standard_errors", "logit_standard_errors", "lower", "upper"):
        check(getattr(found, name), expected[name], 1e-6, 0)


@pytest.mark.parametrize("covariance", ["nonrobust", "HC0"])
def test_equals_statsmodels_for_two_classes(covariance: Any) -> None:
    api = pytest.importorskip("statsmodels.api")
    made = problem("spector")
    with_ones = np.column_stack([made.X, np.ones(32)])
    peer = api.GLM(made.y, with_ones, family=api.families.Binomial()).fit(
        tol=1e-14, cov_type=covariance
    )
    expected = peer.get_prediction(with_ones).summary_frame(alpha=0.1)
    found = fitted("spector", covariance=covariance, confidence=0.9).predict_intervals(made.X)
    check(found.probabilities[:, 1], expected["mean"])
    check(found.standard_errors[:, 1], expected["mean_se"])
    check(found.lower[:, 1], expected["mean_ci_lower"])
    check(found.upper[:, 1], expected["mean_ci_upper"])
    check(found.lower[:, 0], 1 - found.upper[:, 1])


def log_odds(theta: Tensor, x: Tensor) -> Tensor:
    """log(p / (1 - p)) of each class (K,) for one row [x, 1] (P,)."""
    z = theta @ x
    others = [torch.cat([z[:k], z[k + 1 :]]).logsumexp(0) for k in range(len(z))]
    return z - torch.stack(others)


@pytest.mark.parametrize("reference", [0, 2, None])
@pytest.mark.parametrize("fit_intercept", [True, False])
def test_errors_are_those_of_autograds_jacobian(fit_intercept: bool, reference: Any) -> None:
    fit = fitted("clustered", reference=reference, fit_intercept=fit_intercept, covariance="HC1")
    X = torch.tensor(CLUSTERED.X[::17] * 3)
    found = fit.predict_intervals(X)
    V = fit.covariance_of_theta()
    for i, row in enumerate(X):
        x = torch.cat([row, torch.ones(1, dtype=torch.float64)]) if fit_intercept else row
        J = torch.autograd.functional.jacobian(lambda t, x=x: log_odds(t, x), fit.theta)
        J = J.flatten(1)
        check(found.logit_standard_errors[i], (J @ V @ J.T).diagonal().sqrt(), 1e-9)
        J = torch.autograd.functional.jacobian(lambda t, x=x: (t @ x).softmax(0), fit.theta)
        J = J.flatten(1)
        check(found.standard_errors[i], (J @ V @ J.T).diagonal().sqrt(), 1e-9)
        expected = interval(log_odds(fit.theta, x), found.logit_standard_errors[i], 0.95)
        check(torch.stack([found.lower[i], found.upper[i]], 1), expected.sigmoid(), 1e-12)


def test_digits_hold_where_a_probability_rounds_to_1() -> None:
    theta = torch.tensor([[300.0], [-10.0], [0.0]], dtype=torch.float64)
    V = torch.tensor([[4.0, 0.5, 0.0], [0.5, 1.0, 0.0], [0.0, 0.0, 0.0]], dtype=torch.float64)
    samples = as_samples([[1.0]], None, torch.float64)
    found = module.probability_intervals(samples, theta, V, ("a", "b", "c"), 0.95)
    assert found.probabilities[0, 0] == 1
    one = torch.ones(1, dtype=torch.float64)
    odds = log_odds(theta, one).exp()  # (K,)
    J = torch.autograd.functional.jacobian(lambda t: log_odds(t, one), theta).flatten(1)
    errors = (J @ V @ J.T).diagonal().sqrt()
    check(found.logit_standard_errors[0], errors, 1e-13, 0)
    check(found.standard_errors[0], odds / (1 + odds).square() * errors, 1e-12, 0)
    check(found.upper[0, 1:], (odds * (1.959963984540054 * errors).exp())[1:], 1e-12, 0)


def test_intervals_lie_in_0_and_1_and_hold_the_probability() -> None:
    fit = fitted("anes96")
    far = problem("anes96").X[:20] * 30
    previous = torch.zeros(20, 7, dtype=torch.float64)
    for confidence in (0.5, 0.9, 1 - 1e-9):
        found = fit.predict_intervals(far, confidence=confidence)
        assert ((found.lower >= 0) & (found.lower <= found.probabilities)).all()
        assert ((found.upper <= 1) & (found.upper >= found.probabilities)).all()
        assert (found.upper - found.lower >= previous).all()
        previous = found.upper - found.lower
    assert (previous > 0.5).any()


@pytest.mark.parametrize("rows", [7, 1 << 22])
def test_forms_of_data(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "COVARIANCES", 16 * rows)
    fit = fitted("clustered")
    X = CLUSTERED.X
    expected = fit.predict_intervals(X)
    assert expected.probabilities.dtype == torch.float64
    for form in (sparse.csr_array(X), [X[:100], X[100:]], torch.tensor(X)):
        found = fit.predict_intervals(form)
        check(found.lower, expected.lower, 1e-12)
        check(found.standard_errors, expected.standard_errors, 1e-12)
        check(fit.predict_proba(form), expected.probabilities, 1e-12)
    np.testing.assert_allclose(expected.probabilities.sum(1), 1, rtol=1e-14)


def test_frames() -> None:
    pd = pytest.importorskip("pandas")
    frame = pd.DataFrame(CLUSTERED.X, columns=["x1", "x2", "x3"])
    fit = inference(frame, CLUSTERED.y)
    found = fit.predict_intervals(frame[:4])
    table = found.to_frame()
    assert table.shape == (16, 4)
    assert table.loc[(3, "2"), "upper"] == float(found.upper[3, 2])
    assert table.loc[(1, "0"), "probability"] == float(fit.predict_proba(frame)[1, 0])
    check(fit.predict_proba(CLUSTERED.X), fit.predict_proba(frame), 0, 0)
    with pytest.raises(ValueError, match=r"the columns of the fit .* got them in another order"):
        fit.predict_proba(frame[["x2", "x1", "x3"]])
    with pytest.raises(ValueError, match=r"without \['x3'\] and with \['other'\] besides"):
        fit.predict_proba(frame.rename(columns={"x3": "other"}))
    named = {"feature_names": ["a", "b", "c"]}
    renamed = inference(frame, CLUSTERED.y, **named)  # type: ignore[arg-type]
    check(renamed.predict_proba(frame), fit.predict_proba(frame), 0, 0)
    with pytest.raises(ValueError, match=r"without \['a', 'b', 'c'\] and with"):
        inference(CLUSTERED.X, CLUSTERED.y, **named).predict_proba(frame)  # type: ignore[arg-type]


def test_refused_arguments() -> None:
    fit = fitted("spector")
    with pytest.raises(ValueError, match="X: expected 3 columns as in the fit, got 2"):
        fit.predict_proba([[1.0, 2.0]])
    with pytest.raises(ValueError, match=r"confidence: expected a number in \(0, 1\), got 0"):
        fit.predict_intervals([[1.0, 2.0, 0.0]], confidence=0)
