"""Intervals and tests from the profile of the likelihood, against R's values and brute force."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from jeffreys import intercepts, penalised
from reference_values import problem, values
from scipy import optimize, stats
from torch import Tensor

from softmax_torch.solvers import inference
from softmax_torch.solvers import problem as problems
from softmax_torch.solvers.fit import ConvergenceWarning
from softmax_torch.solvers.inference import constrained_maximum, firth, profile_likelihood

FIRTH = ["spector", "clustered", "separated2", "separated3"]


def separated(n: int = 24) -> tuple[Tensor, Tensor]:
    """Return two classes that the first of two features separates."""
    generator = torch.Generator().manual_seed(3)
    X = torch.randn(n, 2, generator=generator, dtype=torch.float64)
    y = (X[:, 0] > 0.2).long()
    X[:, 0] += 0.3 * (2 * y - 1)
    return X, y


def overlapping(K: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(4)
    X = torch.randn(40, 2, generator=generator, dtype=torch.float64)
    return X, torch.randint(K, (40,), generator=generator)


@pytest.mark.parametrize("name", FIRTH)
def test_intervals_and_tests_equal_those_of_r(name: str) -> None:
    (X, y, *_), expected = problem(name), values(name)["firth"]
    ours = inference(X, y, penalty="firth")
    np.testing.assert_allclose(
        ours.confidence_intervals, expected["profile_intervals"], rtol=1e-6, atol=1e-8
    )
    tests = [ours.likelihood_ratio_test(j) for j in range(X.shape[1])]
    statistics = [test.statistic for test in tests]
    np.testing.assert_allclose(statistics, expected["penalised_lr"], rtol=1e-7)
    assert tests[0].df == len(ours.coefficients)
    if len(ours.coefficients) == 1:  # then a feature is a coefficient
        p = stats.chi2.sf(expected["penalised_lr"], 1)
        np.testing.assert_allclose(ours.p_values[0, :-1], p, rtol=1e-6)


@pytest.mark.parametrize(
    ("penalty", "share", "confidence"),
    [("firth", 0.5, 0.5), ("firth", 0.5, 0.99), ("none", 0.0, 0.95)],
)
def test_intervals_equal_brute_force(penalty: Any, share: float, confidence: float) -> None:
    """The ends for a slope; a grid finds the best intercept for each, as there are local ones."""
    X, y = overlapping(2) if penalty == "none" else separated()
    x = X[:, :1]
    columns = intercepts(x)

    def value(slope: float, intercept: Tensor) -> Tensor:
        gamma = torch.stack([torch.full_like(intercept, slope), intercept])
        return penalised(gamma, columns, y, penalty=share)

    def profile(slope: float) -> float:
        grid = torch.linspace(-4 - abs(slope), 4 + abs(slope), 99, dtype=torch.float64)
        i = int(torch.vmap(lambda b: value(slope, b))(grid).nan_to_num(-math.inf).argmax())
        near = float(grid[max(i - 1, 0)]), float(grid[min(i + 1, 98)])
        found = optimize.minimize_scalar(
            lambda b: -float(value(slope, torch.tensor(b).double())),
            method="bounded",
            bounds=near,
            options={"xatol": 1e-7},
        )
        return float(found.fun)

    ours = inference(x, y, penalty=penalty, intervals="profile", confidence=confidence)
    least = profile(float(ours.coefficients[0, 0]))
    cut = least + stats.chi2.ppf(confidence, 1) / 2
    ends = [
        optimize.brentq(lambda s: profile(s) - cut, *sorted((float(ours.coefficients[0, 0]), far)))
        for far in (-50.0, 50.0)
    ]
    np.testing.assert_allclose(ours.confidence_intervals[0, 0], ends, rtol=1e-6)


def test_a_coefficient_is_significant_if_its_interval_leaves_0_out() -> None:
    X, y = overlapping(2)
    p_values = inference(X, y, penalty="firth").p_values[0]
    for column, p in enumerate(p_values.tolist()):
        at_edge = inference(X, y, penalty="firth", confidence=1 - p)
        ends = at_edge.confidence_intervals[0, column]
        assert ends.abs().min() < 1e-6 < ends.abs().max()


def test_the_test_of_all_features_is_that_of_the_summary() -> None:
    X, y = separated()
    ours = inference(X, y, penalty="firth")
    assert ours.likelihood_ratio == ours.likelihood_ratio_test()
    assert ours.likelihood_ratio_test().df == 2
    # intercepts alone, with the information of all columns
    columns = intercepts(X)

    def negative(b: float) -> float:
        return -float(penalised(torch.tensor([0.0, 0.0, b]).double(), columns, y))

    alone = optimize.minimize_scalar(negative, (-1.0, 1.0), tol=1e-12)
    gamma = ours.coefficients.flatten()
    statistic = 2 * (float(penalised(gamma, columns, y)) + alone.fun)
    assert ours.likelihood_ratio_test().statistic == pytest.approx(statistic, rel=1e-8)


@pytest.mark.parametrize("penalty", ["none", "firth"])
def test_references(penalty: Any) -> None:
    X, y = overlapping(3)
    options: dict[str, Any] = {"penalty": penalty, "intervals": "profile"}
    order = torch.tensor([1, 2, 0])
    ours = inference(X, y, reference=2, **options)  # class 2 becomes class 0
    first = inference(X, order[y], **options)
    for name in ("confidence_intervals", "p_values"):
        torch.testing.assert_close(getattr(ours, name), getattr(first, name), rtol=1e-6, atol=1e-7)
    # For two classes a deviation from the mean is half of the difference.
    one = inference(X, y % 2, **options)
    mean = inference(X, y % 2, reference=None, **options)
    torch.testing.assert_close(
        2 * mean.confidence_intervals[1], one.confidence_intervals[0], rtol=1e-6, atol=1e-7
    )


def test_intervals_of_columns_far_from_0(monkeypatch: pytest.MonkeyPatch) -> None:
    """The intercept of X as given is a combination of the centred coefficients."""
    X, y = overlapping(3)
    X = X + torch.tensor([0.0, 20.0])
    centred = inference(X, y, penalty="firth")
    assert centred.model.objective.offset is not None
    monkeypatch.setattr(problems, "offset_of", lambda samples, processes: None)
    plain = inference(X, y, penalty="firth")
    assert plain.model.objective.offset is None
    for name in ("confidence_intervals", "p_values"):
        torch.testing.assert_close(
            getattr(centred, name), getattr(plain, name), rtol=1e-5, atol=1e-6
        )


def test_multipliers_are_the_slope_of_the_profile() -> None:
    """At a constraint far from the optimum, whose multiplier hides what is left of the score."""
    X, y = overlapping(3)
    likelihood = firth.Likelihood(problems.objective_of(X, y, True, *[None] * 4), True)
    C = torch.eye(6, dtype=torch.float64)[:2]
    start = torch.tensor([3.0, -3.0, 0, 0, 0, 0], dtype=torch.float64)
    best = constrained_maximum.maximum(likelihood, start, C)
    assert best.iterations < 40
    for c, multiplier in zip(C, best.multipliers.tolist(), strict=True):
        moved = [constrained_maximum.maximum(likelihood, start + h * c, C) for h in (-1e-3, 1e-3)]
        slope = (moved[1].value - moved[0].value) / 2e-3
        assert multiplier == pytest.approx(slope, rel=1e-5)


def test_without_a_penalty_they_are_likelihood_ratio_tests() -> None:
    X, y = overlapping(2)
    ours = inference(X, y, intervals="profile")
    for j in range(2):
        expected = ours.likelihood_ratio_test(j).p_value
        assert float(ours.p_values[0, j]) == pytest.approx(expected, rel=1e-6)


def test_wald_on_request() -> None:
    X, y = separated()
    ours = inference(X, y, penalty="firth", intervals="wald")
    half = (ours.confidence_intervals[..., 1] - ours.confidence_intervals[..., 0]) / 2
    torch.testing.assert_close(half, 1.959963984540054 * ours.standard_errors)
    robust = inference(X, y, penalty="firth", covariance="HC0")
    assert robust.intervals == "wald"


def test_the_summary_says_what_it_shows() -> None:
    X, y = separated()
    text = inference(X, y, penalty="firth").summary()
    assert "Firth's penalised likelihood" in text
    assert "P>chi2" in text
    assert "P>|z|" not in text
    assert "P>|z|" in inference(X, y, penalty="firth", intervals="wald").summary()


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"intervals": "exact"}, "intervals: expected None, wald or profile; got 'exact'"),
        (
            {"intervals": "profile", "penalty": "l2", "C": 1.0},
            "the model, got 'l2' and 'nonrobust'",
        ),
        ({"intervals": "profile", "covariance": "HC0"}, "the model, got 'none' and 'HC0'"),
    ],
)
def test_refused_arguments(options: dict[str, Any], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        inference(*overlapping(2), **options)


def test_refused_tests() -> None:
    ours = inference(*overlapping(2), penalty="firth", covariance="HC0")
    with pytest.raises(ValueError, match=r"likelihood_ratio_test: .*got 'HC0'"):
        ours.likelihood_ratio_test(0)
    with pytest.raises(ValueError, match=r"score_test: .*got 'firth'"):
        inference(*overlapping(2), penalty="firth").score_test(0)


def test_an_end_that_is_not_found_is_infinite(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(profile_likelihood, "MAX_STEPS", 1)
    ours = inference(*separated(), penalty="firth")
    with pytest.warns(ConvergenceWarning, match="within 1 steps, got none near .*as infinite"):
        assert ours.confidence_intervals[0, 0].tolist() == [-math.inf, math.inf]


@pytest.mark.slow
def test_coverage_of_small_samples() -> None:
    """The interval of one slope, in 400 data sets of 40 samples; also of those that separate."""
    generator = torch.Generator().manual_seed(0)
    gamma = torch.tensor([2.0, -0.5], dtype=torch.float64)
    x = torch.randn(40, 1, generator=generator, dtype=torch.float64)
    p = (intercepts(x) @ gamma).sigmoid()
    slope, covered = torch.tensor([[1.0, 0.0]]).double(), 0
    for _ in range(400):
        y = torch.bernoulli(p, generator=generator).long()
        likelihood = firth.Likelihood(problems.objective_of(x, y, True, *[None] * 4), True)
        best = constrained_maximum.maximum(likelihood, torch.zeros(2).double())
        low, high = profile_likelihood.profile_intervals(likelihood, best, slope, 0.95)[0]
        covered += bool(low <= 2.0 <= high)
    assert 0.93 <= covered / 400 <= 0.97
